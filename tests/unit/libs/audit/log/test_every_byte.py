"""What a reading makes of one wrong bit, or of a file's end, at each byte. Expectations know the format alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.audit.log.findings import Status
from tests.fakes.written_log import one_segment, sealed_segment

from .conftest import read, said

FIRST = "seg/00000000000000000000.seg"
_SEGMENT_HEADER = 4096


def frame_ends(segment: bytes) -> list[int]:
    ends = [_SEGMENT_HEADER]
    while segment[ends[-1] : ends[-1] + 4] == b"TMF1":
        ends.append(ends[-1] + int.from_bytes(segment[ends[-1] + 4 : ends[-1] + 8], "big"))
    return ends


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


def test_sound_log_has_nothing_wrong(sound: dict[str, bytes]) -> None:
    reading = read(sound)
    assert (reading.findings.worst, said(reading)) == (Status.SOUND, "")
    assert reading.newest is not None
    assert (reading.size, reading.newest.size, reading.issuers) == (9, 9, 2)


@pytest.mark.parametrize("name", ["checkpoint", "checkpoints.log", "log.json", "wm", FIRST])
def test_one_wrong_bit_at_any_byte_is_found(tmp_path: Path, name: str) -> None:
    files = one_segment(tmp_path / "log").files()
    end = frame_ends(files[FIRST])[-1]
    for at in range(len(files[name])):
        reading = read({**files, name: flipped(files[name], at)})
        worst = reading.findings.worst
        if name == FIRST and at >= end:
            assert worst is Status.TORN, at
        else:
            assert worst in {Status.DAMAGED, Status.ROLLED_BACK, Status.UNPROVEN}, (at, said(reading))
        assert any(name.endswith(each.file) for each in reading.findings.wrong), (at, said(reading))


def test_one_wrong_bit_at_any_byte_of_a_sealed_segment_is_damage(tmp_path: Path) -> None:
    files = sealed_segment(tmp_path / "log").files()
    content = files[FIRST]
    for at in range(len(content)):
        reading = read({**files, FIRST: flipped(content, at)})
        assert (reading.findings.worst, reading.findings.wrong[0].file) == (Status.DAMAGED, FIRST[4:]), at


def test_damage_is_named_with_its_place(sound: dict[str, bytes]) -> None:
    name = "seg/00000000000000000004.seg"
    second = frame_ends(sound[name])[1]
    reading = read({**sound, name: flipped(sound[name], second + 200)})
    (damage,) = [each for each in reading.findings.wrong if each.status is Status.DAMAGED]
    assert damage.file == name.removeprefix("seg/")
    assert damage.offset is not None
    assert second <= damage.offset <= second + 200


def test_end_at_any_byte_of_the_last_frames_is_the_exact_prefix(tmp_path: Path) -> None:
    files = one_segment(tmp_path / "log").files()
    ends, content = frame_ends(files[FIRST]), files[FIRST]
    unmarked = {**files, "wm": b""}
    for length in range(ends[0], len(content)):
        cut = content[:length]
        whole = [end for end in ends if end <= length]
        reading = read({**unmarked, FIRST: cut})
        size = len(whole) - 1
        assert reading.size == size
        if size < 2:
            assert reading.findings.worst is Status.ROLLED_BACK, length
            assert f"{size} leaves are left, but checkpoints.log promises 2" in said(reading)
        else:
            is_clean = length == whole[-1] or not cut[whole[-1] :].strip(b"\0")
            assert reading.findings.worst is (Status.SOUND if is_clean else Status.TORN), length
        if length % 7 == 0:
            marked = read({**files, FIRST: cut}).findings.worst
            assert marked is (Status.ROLLED_BACK if size < 3 else Status.SOUND), length


def test_end_at_any_byte_of_a_sealed_segment_is_damage(sound: dict[str, bytes]) -> None:
    for length in range(0, len(sound[FIRST]), 7):
        assert read({**sound, FIRST: sound[FIRST][:length]}).findings.worst is Status.DAMAGED, length


def test_end_at_any_byte_of_the_signed_heads_is_noticed(sound: dict[str, bytes]) -> None:
    heads = sound["checkpoints.log"]
    for length in range(len(heads)):
        reading = read({**sound, "checkpoints.log": heads[:length]})
        assert reading.findings.worst is Status.DAMAGED, length
        assert "checkpoints.log does not hold it" in said(reading)


def test_bytes_that_were_moved_are_found(sound: dict[str, bytes]) -> None:
    name = "seg/00000000000000000004.seg"
    start, middle, end = frame_ends(sound[name])[:3]
    content = sound[name]
    swapped = content[:start] + content[middle:end] + content[start:middle] + content[end:]
    left_out = content[:start] + content[middle:]
    repeated = content[:middle] + content[start:]
    for changed in (swapped, left_out, repeated):
        assert read({**sound, name: changed}).findings.worst is Status.DAMAGED
