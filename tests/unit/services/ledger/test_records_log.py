"""Files of records, read by the ledger and by the second reading: a piece at a time, as if all of it were at hand."""

from __future__ import annotations

import io
import tracemalloc
from hashlib import sha256
from pathlib import Path

import pytest

from libs.audit.log.findings import Findings, Status
from libs.audit.log.records import read_records
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.records_log import OWED, RecordsLog, encode, read_each, read_whole

FRAMING = 40
PIECE = 1 << 20
FOLLOWING = b"TMOw"


def stored(*synced: list[bytes]) -> bytes:
    """Records as they lie in a file, those of one list synced together."""
    return b"".join(encode(FOLLOWING if at else OWED, each) for group in synced for at, each in enumerate(group))


def expected(data: bytes) -> tuple[list[bytes], int, int | None]:
    """What the whole bytes say: the whole records at the beginning, where they end, and which later one is whole."""

    def record_at(at: int, *magics: bytes) -> bytes | None:
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "big")
        if data[at : at + 4] not in magics or sha256(data[at:end]).digest() != data[end : end + 32]:
            return None
        return data[at + 8 : end]

    found, end = [], 0
    while (record := record_at(end, OWED, FOLLOWING)) is not None:
        found.append(record)
        end += len(record) + FRAMING
    later = (at for at in range(end + 1, len(data)) if data.startswith(OWED, at) and record_at(at, OWED) is not None)
    return found, end, next(later, None)


def agree(path: Path, data: bytes) -> None:
    """Both readers say what the whole bytes do."""
    path.write_bytes(data)
    records, end, later = expected(data)
    found: list[bytes] = []
    if later is None:
        assert read_each(path, OWED, found.append) == end
    else:
        with pytest.raises(LogDamaged, match=f"damaged at byte {end}: what was synced later is whole at byte {later}"):
            read_each(path, OWED, found.append)
    assert found == records
    findings = Findings()
    assert [record for _, record in read_records(io.BytesIO(data), OWED, "owed.log", findings)] == records
    told = [(each.status, each.offset) for each in findings.wrong]
    assert told == ([] if end == len(data) else [(Status.TORN if later is None else Status.DAMAGED, end)])


def test_every_cut_and_flip_is_judged_as_the_whole_bytes_are(tmp_path: Path) -> None:
    data = stored([b"one", b"", b"three"], [b"four"], [b"five", b"TMOW", b"seven"])
    for at in range(len(data) + 1):
        agree(tmp_path / "owed.log", data[:at])
    for at in range(len(data)):
        for bit in (0x01, 0x20, 0x80):
            agree(tmp_path / "owed.log", data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])


@pytest.mark.parametrize("shift", range(-6, 3))
def test_a_record_across_two_pieces_is_found(tmp_path: Path, shift: int) -> None:
    # The ledger looks on where another record can begin at the earliest, the second reading at the next byte.
    for searched_from in (1, FRAMING):
        damaged = bytearray(stored([bytes(searched_from + PIECE + shift - FRAMING)]))
        damaged[20] ^= 1
        agree(tmp_path / "owed.log", bytes(damaged) + stored([b"whole"]))
        [(at, record)] = read_whole(tmp_path / "owed.log", OWED)
        assert (at, record) == (len(damaged), b"whole")


def test_of_a_damaged_file_each_whole_record_is_found(tmp_path: Path) -> None:
    data = stored([b"one", b"two", b"three"], [b"four"], [b"five", b"six"])
    names = [b"one", b"two", b"three", b"four", b"five", b"six"]
    for at in range(len(data)):
        (tmp_path / "owed.log").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        found = list(read_whole(tmp_path / "owed.log", OWED))
        changed = next(number for number in range(6) if at < len(stored(names[: number + 1])))
        assert [record for _, record in found] == names[:changed] + names[changed + 1 :], at
        assert all(data[place + 8 : place + 8 + len(record)] == record for place, record in found)


def test_what_follows_the_last_whole_record_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "owed.log"
    log = RecordsLog(path, OWED, 0)
    log.append([b"whole"])
    log.close()
    with path.open("ab") as file:
        file.truncate(log.end + 64 * PIECE)
    tracemalloc.start()
    try:
        assert read_each(path, OWED, lambda record: None) == log.end
        assert len(list(read_whole(path, OWED))) == 1
        with path.open("rb") as file:
            assert len(list(read_records(file, OWED, "owed.log", Findings()))) == 1
        assert tracemalloc.get_traced_memory()[1] < 8 * PIECE
    finally:
        tracemalloc.stop()


class Changing(io.BytesIO):
    """A file that its ledger changes while it is read: after so many reads."""

    def __init__(self, data: bytes, after: int, changed: bytes) -> None:
        super().__init__(data)
        self._after, self._changed = after, changed

    def read(self, size: int | None = -1) -> bytes:
        self._after -= 1
        if self._after == 0:
            at = self.tell()
            self.seek(0)
            self.truncate()
            self.write(self._changed)
            self.seek(at)
        return super().read(size)


@pytest.mark.parametrize("after", range(1, 12))
def test_a_file_that_its_ledger_changes_meanwhile_is_not_called_damaged(after: int) -> None:
    """The second reading may look at a ledger that runs."""
    data = stored([b"one"], [b"two"], [b"three"])
    grown = data + stored([b"four"], [b"five"])
    for later in (grown, stored([b"n"], [b"e"], [b"w"]), b""):
        findings = Findings()
        list(read_records(Changing(data, after, later), OWED, "owed.log", findings))
        assert not findings.wrong
    findings = Findings()
    list(read_records(Changing(data[:-1], after, grown), OWED, "owed.log", findings))
    assert not any(each.status is Status.DAMAGED for each in findings.wrong)
