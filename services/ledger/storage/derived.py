"""It is responsible for the derived file of a sealed segment: everything that there is to look up in it.

A file is what its segment says and nothing else; it names the segment by its footer's hash and ends in a MAC, so that
whoever has the disk can only have it made anew. Integers are big-endian and unsigned.

    hashes     of the leaves, 32 bytes each
    frames     first leaf, counted from the segment's, u32; offset u64; hash
    ids        first 16 bytes of each entry's id, in order; leaf u32
    places     leaves, u32 each: by kind, by vault, by issuer
    tail       head, tables, MAC, u32 length of the tail
"""

from __future__ import annotations

import hmac
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256

from libs.transparency.chain import domain
from libs.transparency.merkle import HASH_SIZE
from services.ledger.storage import pages
from services.ledger.storage.recent import Recent
from services.ledger.storage.tables import packed

FOLDER = "index"
SUFFIX = ".idx"
FRAME = struct.Struct(">IQ32s")
ID = struct.Struct(">16sI")
PLACE = struct.Struct(">I")
SPAN = struct.Struct(">II")
"""Where a key's places begin, and how many there are."""
ISSUER_ROW = struct.Struct(">32sIIII")
"""An issuer, the span of its places, the span of its runs."""
RUN = struct.Struct(">QQ")
FENCE_STEP = 256
"""Each such id also lies in the tail, so that finding an id reads one page."""

_MAGIC = b"TMIX0002"
_HEAD = struct.Struct(">8sQIIQ32s9I")
_LENGTH = struct.Struct(">I")
_MAC_SIZE = 32


@dataclass(frozen=True, slots=True)
class Tail:
    """What is read of the file when it is opened."""

    first: int
    count: int
    frames: int
    last_frame: int
    """Offset of the segment's last frame."""
    footer_hash: bytes
    kinds: bytes
    vaults: bytes
    epochs: bytes
    issuers: bytes
    runs: bytes
    closings: bytes
    nodes: bytes
    """Roots of the subtrees of 256 leaves that become complete in this segment."""
    fence: bytes
    digests: bytes
    """Of the pages before the tail."""

    def pack(self, key: bytes) -> bytes:
        head = (self.first, self.count, self.frames, self.last_frame, self.footer_hash)
        tables = self._tables()
        body = _HEAD.pack(_MAGIC, *head, *map(len, tables)) + b"".join(tables)
        tail = body + _mac(key, body)
        return tail + _LENGTH.pack(len(tail))

    @classmethod
    def parse(cls, data: bytes, key: bytes) -> Tail | None:
        """Read a tail without the length at its end; None for what was not packed under this key."""
        body = data[:-_MAC_SIZE]
        if len(body) < _HEAD.size or not hmac.compare_digest(_mac(key, body), data[-_MAC_SIZE:]):
            return None
        magic, first, count, frames, last_frame, footer_hash, *lengths = _HEAD.unpack_from(body)
        if magic != _MAGIC or _HEAD.size + sum(lengths) != len(body):
            return None
        tables, at = [], _HEAD.size
        for length in lengths:
            tables.append(body[at : at + length])
            at += length
        return cls(first, count, frames, last_frame, footer_hash, *tables)

    @property
    def frames_at(self) -> int:
        return HASH_SIZE * self.count

    @property
    def ids_at(self) -> int:
        return self.frames_at + FRAME.size * self.frames

    @property
    def places_at(self) -> int:
        return self.ids_at + ID.size * self.count

    @property
    def size(self) -> int:
        """Bytes of the file before the tail."""
        return self.places_at + 3 * PLACE.size * self.count

    def _tables(self) -> tuple[bytes, ...]:
        return (
            self.kinds,
            self.vaults,
            self.epochs,
            self.issuers,
            self.runs,
            self.closings,
            self.nodes,
            self.fence,
            self.digests,
        )


def file_name(first: int) -> str:
    """Return the name of the file that is derived from the segment that begins at a leaf."""
    return f"{first:020d}{SUFFIX}"


def tail_length(end: bytes) -> int:
    """Return how long the tail is before the file's last 4 bytes."""
    return int(_LENGTH.unpack(end)[0])


def build(recent: Recent, hashes: bytes, nodes: bytes, footer_hash: bytes, key: bytes) -> bytes:
    """Return the file of a whole segment."""
    first = recent.first
    firsts, offsets, frame_hashes = recent.frames
    frames = b"".join(FRAME.pack(at - first, *rest) for at, *rest in zip(firsts, offsets, frame_hashes, strict=True))
    ids = sorted(found + PLACE.pack(index - first) for found, index in recent.ids.items())
    places = _Places(first)
    kinds = packed(bytes([kind]) + places.add(found) for kind, found in recent.kinds.items())
    vaults = packed(vault + places.add(found) for vault, found in recent.vaults.items())
    runs: list[tuple[int, int]] = []
    issuers = []
    for issuer in sorted(recent.issuers):
        merged = list(merge(recent.runs[issuer]))
        issuers.append(issuer + places.add(recent.issuers[issuer]) + SPAN.pack(len(runs), len(merged)))
        runs.extend(merged)
    data = b"".join((hashes, frames, *ids, *places.packed))
    tail = Tail(
        first=first,
        count=recent.end - first,
        frames=len(firsts),
        last_frame=recent.last_frame,
        footer_hash=footer_hash,
        kinds=kinds,
        vaults=vaults,
        epochs=packed(
            each.vault_id + PLACE.pack(each.epoch) + PLACE.pack(each.index - first) for each in recent.sealed_under()
        ),
        issuers=b"".join(issuers),
        runs=b"".join(RUN.pack(*run) for run in runs),
        closings=packed(issuer + PLACE.pack(index - first) for issuer, index in recent.closers),
        nodes=nodes,
        fence=b"".join(found[:16] for found in ids[::FENCE_STEP]),
        digests=pages.digests_of(data),
    )
    return data + tail.pack(key)


def merge(runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield runs of numbers in order, those that touch as one."""
    low = high = None
    for start, end in sorted(runs):
        if low is None or high is None:
            low, high = start, end
        elif start <= high + 1:
            high = max(high, end)
        else:
            yield low, high
            low, high = start, end
    if low is not None and high is not None:
        yield low, high


class _Places:
    """Places, one key's after the other's."""

    def __init__(self, first: int) -> None:
        self.packed: list[bytes] = []
        self._first, self._count = first, 0

    def add(self, found: array[int]) -> bytes:
        """Add one key's places and return their span."""
        span = SPAN.pack(self._count, len(found))
        self.packed.append(struct.pack(f">{len(found)}I", *(index - self._first for index in found)))
        self._count += len(found)
        return span


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, domain("ledger-index") + body, sha256).digest()
