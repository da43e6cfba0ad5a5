"""Responsible for telling a GGUF file that is whole from one shard of several: an engine that is given the first shard
loads the others, which lie beside it, by their names.

Only the header's metadata is read (GGUF 2 and 3, little-endian), and only so much of it as any real file has.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_MAGIC = b"GGUF"
_VERSIONS = {2, 3}
_MAX_BYTES = 64 << 20
"""Of metadata. Vocabularies of 256,000 tokens, with their merges, take some ten MiB."""
_MAX_VALUES = 4_000_000
"""Pairs, and values that are read one by one in arrays: their lengths alone cost time."""
_MAX_DEPTH = 4
"""Arrays in arrays."""
_SPLIT_COUNT = b"split.count"
_INTEGERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
_OTHERS = {6: 4, 7: 1, 12: 8}
"""Bytes of float32, bool and float64."""
_SIZES = {kind: struct.calcsize(form) for kind, form in _INTEGERS.items()} | _OTHERS
_STRING = 8
_ARRAY = 9


class GgufMalformed(Exception):
    """It begins as GGUF does, and cannot be read as such."""


def is_shard(path: Path) -> bool:
    """Say whether a file is GGUF and one of several. Raises `OSError` or `GgufMalformed`."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return False
        return _Header(file).is_shard()


class _Header:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._bytes_left = _MAX_BYTES
        self._values_left = _MAX_VALUES

    def is_shard(self) -> bool:
        if self._number("<I") not in _VERSIONS:
            raise GgufMalformed("its version is neither 2 nor 3, or it is big-endian")
        self._take(8)  # How many tensors there are.
        found = False
        # All pairs are read: a key that stood twice would otherwise be told by the one that the engine does not take.
        for _ in range(self._number("<Q")):
            key = self._string()
            kind = self._number("<I")
            if key == _SPLIT_COUNT:
                if kind not in _INTEGERS:
                    raise GgufMalformed("its split.count is no integer")
                found = found or self._number(_INTEGERS[kind]) not in (0, 1)
            else:
                self._skip(kind, 0)
        return found

    def _skip(self, kind: int, depth: int) -> None:
        if kind in _SIZES:
            self._take(_SIZES[kind])
        elif kind == _STRING:
            self._string()
        elif kind == _ARRAY and depth < _MAX_DEPTH:
            inner, count = self._number("<I"), self._number("<Q")
            if inner in _SIZES:
                self._take(_SIZES[inner] * count)
            else:
                for _ in range(count):
                    self._skip(inner, depth + 1)
        else:
            raise GgufMalformed(f"a value in its header has the unknown type {kind}")

    def _string(self) -> bytes:
        self._values_left -= 1
        if self._values_left < 0:
            raise GgufMalformed(f"its header has more than {_MAX_VALUES} values")
        return self._take(self._number("<Q"))

    def _number(self, form: str) -> int:
        (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return int(value)

    def _take(self, count: int) -> bytes:
        # Before it is read: a length is whatever who wrote the file says.
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise GgufMalformed(f"its header has more than {_MAX_BYTES} bytes")
        data = self._file.read(count)
        if len(data) != count:
            raise GgufMalformed("its header is cut off")
        return data
