"""One shard of several is no model: its engine would load the others unmeasured."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from libs.weights import WeightsMissing, measure
from libs.weights.gguf import GgufMalformed, is_shard

STRING, ARRAY = 8, 9


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def header(*pairs: bytes, version: int = 3, count: int | None = None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs) if count is None else count) + b"".join(pairs)


def split(count: int) -> bytes:
    return pair(b"split.count", 2, struct.pack("<H", count))


NAME = pair(b"general.name", STRING, text(b"m"))
TOKENS = pair(b"tokens", ARRAY, struct.pack("<IQ", STRING, 2) + text(b"a") + text(b"b"))
SCORES = pair(b"scores", ARRAY, struct.pack("<IQ", 6, 3) + bytes(12))
NESTED = pair(b"nested", ARRAY, struct.pack("<IQ", ARRAY, 1) + struct.pack("<IQ", 0, 2) + bytes(2))


@pytest.mark.parametrize(
    "pairs",
    [
        (split(2),),
        (NAME, TOKENS, SCORES, NESTED, split(2), NAME),
        (split(1), split(2)),
        (split(2), split(1)),
        (pair(b"split.count", 5, struct.pack("<i", -2)),),
    ],
)
async def test_a_single_shard_is_refused(tmp_path: Path, pairs: tuple[bytes, ...]) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(header(*pairs))
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(header())
    with pytest.raises(WeightsMissing, match="one GGUF shard of several"):
        await measure(path)
    # Under another name and through a link, too: what counts is what is in it.
    (tmp_path / "model").symlink_to(path)
    with pytest.raises(WeightsMissing, match="one GGUF shard of several"):
        await measure(tmp_path / "model")


async def test_shards_in_a_folder_are_all_measured(tmp_path: Path) -> None:
    for number in "12":
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_bytes(header(split(2)))
    assert len((await measure(tmp_path)).manifest.files) == 2


@pytest.mark.parametrize("pairs", [(), (NAME, TOKENS, SCORES, NESTED), (split(0),), (split(1), NAME)])
async def test_a_whole_file_is_measured(tmp_path: Path, pairs: tuple[bytes, ...]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header(*pairs) + b"tensors")
    assert len((await measure(path)).manifest.files) == 1


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"GGUF", "cut off"),
        (header(split(1))[:-1], "cut off"),
        (header(NAME, count=2), "cut off"),
        (header(version=1), "version"),
        (header(version=3 << 24), "version"),
        (header(pair(b"split.count", STRING, text(b"2"))), "no integer"),
        (header(pair(b"x", 13, b"")), "unknown type"),
        (header(struct.pack("<Q", 1 << 63)), "bytes"),
        (header(pair(b"x", ARRAY, struct.pack("<IQ", 12, 1 << 60))), "bytes"),
        (header(pair(b"x", ARRAY, struct.pack("<IQ", STRING, 1 << 60)) + bytes(8 * 4_000_001)), "values"),
        (header(pair(b"x", ARRAY, struct.pack("<IQ", ARRAY, 1) * 1_000)), "unknown type"),
        # Empty arrays in an array: as many lengths as are claimed are read, and no more than the bound.
        (header(pair(b"x", ARRAY, struct.pack("<IQ", ARRAY, 1 << 60)) + struct.pack("<IQ", 0, 0) * 9), "cut off"),
    ],
)
async def test_what_begins_as_gguf_and_cannot_be_read_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufMalformed, match=why):
        is_shard(path)
    with pytest.raises(WeightsMissing, match="begins as GGUF does"):
        await measure(path)
