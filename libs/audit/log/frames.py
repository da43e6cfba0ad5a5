"""It is responsible for one frame's bytes: a commit's header, rows, bodies and trailer, and whether they agree.

Rows are held as columns: checking a column at once is what lets a reading keep up with a disk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import BinaryIO

from libs.audit.log.findings import BytesContradict, BytesWrong

HEADER_SIZE = 160
MAGIC = b"TMF1"
PUBLIC = bytes(16)
TENANTS_KINDS = frozenset({1, 9, 10})
LEDGERS_KINDS = frozenset(range(16, 23))
KINDS = frozenset(range(1, 14)) | LEDGERS_KINDS

_ROW_SIZE = 152
_TRAILER_SIZE = 112
_MAX_ROWS = 4096
_MAX_SIZE = 16 << 20
_MIN_BODY, _MAX_BODY = 33, 32 + 512 * 1024 + 16
_HASHED = 152
_HEADER = struct.Struct(">4sIQI4sQ16sQQQQ32s40s")
_ROW = struct.Struct(">4xB3xQ32s16s32sII16s32s")
_CONSTANTS = {at: bytes([value]) for at, value in enumerate(b"TML1\0\0\0\0") if at != 4}
"""What every leaf has in common, by its place in the row."""
_LEAF = struct.Struct(">96s56x")
_BODY = struct.Struct(">4xB95xI48x")
"""Kind, and how long the body is."""
_TRAILER = struct.Struct(">32s32s32sI4s8s")
_KIND_AT, _VAULT_AT = 4, 96


@dataclass(frozen=True, slots=True)
class Header:
    """A frame's own word about its place."""

    length: int
    first: int
    count: int
    epoch: int
    source: bytes
    source_low: int
    source_high: int
    durable: int
    wall_ns: int
    previous: bytes


@dataclass(frozen=True, slots=True)
class Rows:
    """A frame's rows by column."""

    kinds: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    issuers: tuple[bytes, ...] = ()
    tags: tuple[bytes, ...] = ()
    commitments: tuple[bytes, ...] = ()
    vault_epochs: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    vaults: tuple[bytes, ...] = ()
    body_hashes: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that agrees with itself."""

    header: Header
    data: bytes
    rows: Rows
    lengths: tuple[int, ...]
    """Of the bodies that are there: 0 where one was taken out."""
    leaf_hashes: list[bytes]
    chain_after: bytes
    root_after: bytes
    digest: bytes

    def bodies(self) -> list[tuple[int, int]]:
        """Return where each row's body begins and ends in `data`."""
        start = HEADER_SIZE + _ROW_SIZE * self.header.count
        return list(pairwise(accumulate(self.lengths, initial=start)))

    def leaves(self) -> list[bytes]:
        """Return each row's leaf."""
        return _leaves(self.data[HEADER_SIZE : HEADER_SIZE + _ROW_SIZE * self.header.count])

    def verify_bodies(self, numbers: Iterable[int] | None = None) -> None:
        """Check the bodies of all rows, or of some, against their rows. Raises `BytesWrong`."""
        bounds, hashes, view = self.bodies(), self.rows.body_hashes, memoryview(self.data)
        for number in range(len(bounds)) if numbers is None else numbers:
            begin, end = bounds[number]
            if end > begin and sha256(view[begin:end]).digest() != hashes[number]:
                raise BytesWrong(begin, f"the body of row {number} does not match its hash")

    @property
    def trailer_at(self) -> int:
        return len(self.data) - _TRAILER_SIZE


def read_header(data: bytes) -> Header:
    """Read a frame's first 160 bytes. Raises `BytesWrong`."""
    if len(data) < HEADER_SIZE:
        raise BytesWrong(len(data), "the file ends within a frame's header")
    if sha256(data[:_HASHED]).digest()[: HEADER_SIZE - _HASHED] != data[_HASHED:HEADER_SIZE]:
        raise BytesWrong(0, "a frame's header does not match its hash")
    magic, length, first, count, reserved, *values, rest = _HEADER.unpack_from(data)
    if magic != MAGIC or any(reserved) or any(rest):
        raise BytesWrong(0, "not a frame of version 1, or reserved bytes that are not zero")
    if count > _MAX_ROWS or not HEADER_SIZE + _ROW_SIZE * count + _TRAILER_SIZE <= length <= _MAX_SIZE:
        raise BytesWrong(4, "a frame's length and count cannot both be right")
    return Header(length, first, count, *values)


def rest_of_bare(header: Header, file: BinaryIO) -> bytes:
    """Read what follows the header of a frame that tenants' bodies were taken out of."""
    table = file.read(_ROW_SIZE * header.count)
    whole_rows = _BODY.iter_unpack(table[: len(table) // _ROW_SIZE * _ROW_SIZE])
    kept = sum(length for kind, length in whole_rows if kind not in TENANTS_KINDS)
    # What the rows say is not verified yet, and no more than the whole frame is to be held.
    return table + file.read(min(kept + _TRAILER_SIZE, header.length))


def read_frame(header: Header, data: bytes, *, is_bare: bool = False) -> Frame:
    """Read a frame and no more. Bodies are not looked at: their hashes are in the rows. Raises `BytesWrong`.

    What is wrong with rows that match their hash is a `BytesContradict`.
    """
    rows_end, trailer_at = HEADER_SIZE + _ROW_SIZE * header.count, len(data) - _TRAILER_SIZE
    if trailer_at < rows_end or (len(data) < header.length and not is_bare):
        raise BytesWrong(len(data), "the file ends within a frame")
    chain_after, root_after, digest, length, magic, reserved = _TRAILER.unpack_from(data, trailer_at)
    if length != header.length or magic != b"TMFE" or any(reserved):
        raise BytesWrong(trailer_at + 96, "a frame's end does not match its beginning")
    if sha256(b"\x03" + data[:rows_end] + chain_after + root_after).digest() != digest:
        raise BytesWrong(HEADER_SIZE, "a frame's rows and trailer do not match its hash")
    rows = _read_rows(data[HEADER_SIZE:rows_end]) if header.count else Rows()
    lengths = rows.lengths
    if is_bare:
        sized = zip(rows.kinds, lengths, strict=True)
        lengths = tuple(0 if kind in TENANTS_KINDS else length for kind, length in sized)
    whole = rows_end + sum(rows.lengths) + _TRAILER_SIZE
    if (rows_end + sum(lengths), whole) != (trailer_at, header.length):
        raise BytesContradict(HEADER_SIZE, "the bodies do not fill their frame")
    leaves = [sha256(b"\x00" + leaf).digest() for leaf in _leaves(data[HEADER_SIZE:rows_end])]
    return Frame(header, data, rows, lengths, leaves, chain_after, root_after, digest)


def find_header(data: bytes, start: int, first_at_least: int) -> int | None:
    """Return where, from `start`, a frame begins that claims to come at or after a leaf; or None."""
    at = data.find(MAGIC, start)
    while at >= 0:
        try:
            if read_header(data[at : at + HEADER_SIZE]).first >= first_at_least:
                return at
        except BytesWrong:
            pass  # Four bytes that happen to be a frame's first.
        at = data.find(MAGIC, at + 1)
    return None


def _leaves(table: bytes) -> list[bytes]:
    return [leaf for (leaf,) in _LEAF.iter_unpack(table)]


def _read_rows(table: bytes) -> Rows:
    for at, constant in _CONSTANTS.items():
        column = table[at::_ROW_SIZE]
        if column.strip(constant):
            row = len(column) - len(column.lstrip(constant))
            raise BytesContradict(HEADER_SIZE + _ROW_SIZE * row + at, f"row {row} has no leaf of version 1")
    rows = Rows(*zip(*_ROW.iter_unpack(table), strict=True))
    if not KINDS.issuperset(rows.kinds):
        row = next(row for row, kind in enumerate(rows.kinds) if kind not in KINDS)
        raise BytesContradict(HEADER_SIZE + _ROW_SIZE * row + _KIND_AT, f"row {row} is of an unknown kind")
    if min(rows.numbers) < 1 or min(rows.lengths) < _MIN_BODY or max(rows.lengths) > _MAX_BODY:
        raise BytesContradict(HEADER_SIZE, "a row has the number 0, or a body that is too short or too long")
    if not _belong_together(rows):
        raise BytesContradict(HEADER_SIZE + _VAULT_AT, "a row's kind, vault and month do not belong together")
    return rows


def _belong_together(rows: Rows) -> bool:
    """Whether what is a tenant's lies in a vault and a month, and nothing else does."""
    if PUBLIC not in rows.vaults and 0 not in rows.vault_epochs and TENANTS_KINDS.issuperset(rows.kinds):
        return True
    sealed = [vault != PUBLIC for vault in rows.vaults]
    return sealed == [kind in TENANTS_KINDS for kind in rows.kinds] == [epoch != 0 for epoch in rows.vault_epochs]
