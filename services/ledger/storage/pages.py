"""It is responsible for reading a file whose pages' digests are known, each page verified when it is read.

So opening the file costs nothing, memory stays small, and a byte that has changed since is noticed by whoever reads it.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

from libs.errors import Code, MeshError

PAGE_SIZE = 8192
DIGEST_SIZE = 32
_CACHED = 16


class PageDamaged(MeshError):
    """A page is not what was written. The file is removed: the next start makes it anew."""

    code = Code.DATA_LOSS
    reason = "PAGE_DAMAGED"


def digests_of(data: bytes) -> bytes:
    """Return the digests of the pages that make up some bytes, end to end."""
    return b"".join(sha256(data[at : at + PAGE_SIZE]).digest() for at in range(0, len(data), PAGE_SIZE))


class Pages:
    """The first `size` bytes of a file, which is open only while a page is read. For any number of threads."""

    __slots__ = ("_cached", "_digests", "_path", "_size")

    def __init__(self, path: Path, size: int, digests: bytes) -> None:
        if len(digests) != -(-size // PAGE_SIZE) * DIGEST_SIZE:
            raise ValueError("there is one digest for each page")
        self._path, self._size, self._digests = path, size, digests
        self._cached: dict[int, bytes] = {}

    def read(self, offset: int, length: int) -> bytes:
        """Return some bytes. Raises `PageDamaged`, or `IndexError` beyond the end."""
        end = offset + length
        if not 0 <= offset <= end <= self._size:
            raise IndexError(f"no bytes {offset} to {end}")
        first = offset // PAGE_SIZE
        pages = [self._page(number) for number in range(first, -(-end // PAGE_SIZE))]
        start = offset - first * PAGE_SIZE
        return b"".join(pages)[start : start + length]

    def verify(self) -> None:
        """Read every page. Raises `PageDamaged`."""
        for number in range(len(self._digests) // DIGEST_SIZE):
            self._read(number)

    def _page(self, number: int) -> bytes:
        page = self._cached.get(number)
        if page is None:
            page = self._read(number)
            if len(self._cached) >= _CACHED:
                self._cached.clear()
            self._cached[number] = page
        return page

    def _read(self, number: int) -> bytes:
        start = number * PAGE_SIZE
        try:
            with self._path.open("rb", buffering=0) as file:
                page = os.pread(file.fileno(), min(PAGE_SIZE, self._size - start), start)
        except OSError:
            page = b""
        if sha256(page).digest() != self._digests[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE]:
            self._path.unlink(missing_ok=True)
            raise PageDamaged(f"{self._path.name} has changed between bytes {start} and {start + PAGE_SIZE}: ask again")
        return page
