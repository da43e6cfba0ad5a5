"""Where a log stands: what the next frame must continue, and whether one does."""

from __future__ import annotations

from collections.abc import Sequence

from libs.transparency import chain
from libs.transparency.merkle import CompactRange, leaf_hash
from services.ledger.storage.frames import HEADER_SIZE, TRAILER_SIZE, Frame, FrameDamaged, Row, encode, length_of
from services.ledger.storage.frames import Header as FrameHeader

NO_FRAME = bytes(32)
NO_SOURCE = bytes(16)


class SourceOutOfOrder(ValueError):
    """A frame's stream position does not go on from the log's."""


class Head:
    """The end of the log. Changes only by frames that continue it."""

    __slots__ = ("chain", "epoch", "frame_hash", "range", "source", "source_high", "wall_ns")

    def __init__(self, origin: str) -> None:
        self.chain = chain.chain_start(origin)
        self.range = CompactRange()
        self.frame_hash = NO_FRAME
        self.epoch = 0
        self.source = NO_SOURCE
        self.source_high = 0
        self.wall_ns = 0

    @property
    def size(self) -> int:
        return self.range.size

    def root(self) -> bytes:
        return self.range.root()

    def accept(self, frame: Frame, block_leaves: int) -> list[bytes]:
        """Move to the end of a frame that was read. Returns its leaf hashes. Raises `FrameDamaged`, then unchanged."""
        header = frame.header
        if header.first != self.size or header.previous != self.frame_hash:
            raise FrameDamaged(8, f"the frame does not continue the log at leaf {self.size}")
        if header.epoch < self.epoch or header.wall_ns < self.wall_ns or header.durable > header.first:
            raise FrameDamaged(24, "the frame's epoch or time goes back, or it claims unwritten leaves as synced")
        if crosses_block(header.first, header.count, block_leaves):
            raise FrameDamaged(16, "the frame crosses a block's end")
        try:
            self._check_source(header.source, header.source_low, header.source_high)
        except SourceOutOfOrder as error:
            raise FrameDamaged(32, str(error)) from error
        hashes = [leaf_hash(row.leaf_data) for row in frame.rows]
        chain_after, range_after = self._after(hashes)
        trailer = header.length - TRAILER_SIZE
        if chain_after != frame.chain_after:
            raise FrameDamaged(HEADER_SIZE if hashes else trailer, "the hash chain does not match the rows")
        if range_after.root() != frame.root_after:
            raise FrameDamaged(trailer + 32, "the root does not match the rows")
        self._move(header, chain_after, range_after, frame.hash)
        return hashes

    def build(
        self, rows: Sequence[Row], *, epoch: int, source: bytes, source_low: int, source_high: int, wall_ns: int
    ) -> tuple[bytes, list[bytes], Head]:
        """Return the next frame's bytes, its leaf hashes, and the head after it. Raises `SourceOutOfOrder`."""
        self._check_source(source, source_low, source_high)
        hashes = [leaf_hash(row.leaf_data) for row in rows]
        chain_after, range_after = self._after(hashes)
        header = FrameHeader(
            length=length_of(rows),
            first=self.size,
            count=len(rows),
            epoch=epoch,
            source=source,
            source_low=source_low,
            source_high=source_high,
            durable=self.size,
            wall_ns=max(wall_ns, self.wall_ns),
            previous=self.frame_hash,
        )
        data, digest = encode(header, rows, chain_after, range_after.root())
        after = Head.__new__(Head)
        after._move(header, chain_after, range_after, digest)
        return data, hashes, after

    def begin_at(self, size: int, peaks: Sequence[bytes], chain_before: bytes, frame_hash: bytes) -> None:
        """Begin in the middle of a log. Epoch, time and source are those of the frame that comes next."""
        self.range, self.chain, self.frame_hash = CompactRange(size, peaks), chain_before, frame_hash

    def move_to(self, last: FrameHeader, chain_after: bytes, peaks: Sequence[bytes], digest: bytes) -> None:
        """Move to the end of a frame that was verified elsewhere, whose hash this is."""
        self._move(last, chain_after, CompactRange(last.first + last.count, peaks), digest)

    def _after(self, hashes: Sequence[bytes]) -> tuple[bytes, CompactRange]:
        grown = self.range.copy()
        grown.extend(hashes)
        return chain.chain_over(self.chain, self.size, b"".join(hashes)), grown

    def _move(self, header: FrameHeader, chain_after: bytes, range_after: CompactRange, digest: bytes) -> None:
        self.chain, self.range, self.frame_hash = chain_after, range_after, digest
        self.epoch, self.wall_ns = header.epoch, header.wall_ns
        self.source, self.source_high = header.source, header.source_high

    def _check_source(self, source: bytes, low: int, high: int) -> None:
        if source == self.source and self.frame_hash != NO_FRAME and low != self.source_high + 1:
            raise SourceOutOfOrder(f"stream position {low} does not follow {self.source_high}")
        if low < 1 or high < low - 1:
            raise SourceOutOfOrder(f"{low} to {high} is no range of stream sequences, which start at 1")


def crosses_block(first: int, count: int, block_leaves: int) -> bool:
    """Whether leaves `first` and on lie in two blocks."""
    return count > 0 and first // block_leaves != (first + count - 1) // block_leaves
