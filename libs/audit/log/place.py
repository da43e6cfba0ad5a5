"""It is responsible for the end of what was read: what the next frame or segment must continue, and whether it does."""

from __future__ import annotations

import struct
from hashlib import sha256

from libs.audit.log.findings import BytesContradict
from libs.audit.log.frames import HEADER_SIZE, Frame
from libs.audit.log.segments import NO_FOOTER, Footer, Header
from libs.audit.log.tree import Frontier

_NO_FRAME = bytes(32)
_LINK = struct.Struct(">B32sQ32s")


class Place:
    """Where a reading stands."""

    def __init__(self, origin: str, block_leaves: int) -> None:
        """Begin before the first leaf."""
        self.log_id = sha256(origin.encode()).digest()
        self.chain = sha256(b"teemesh/chain/v1\x00" + origin.encode()).digest()
        self._block_level = block_leaves.bit_length() - 1
        self.frontier = Frontier()
        self._blocks: list[bytes] = []
        self._first_block = 0
        """Which block is the first in `_blocks`."""
        self.frame_hash = _NO_FRAME
        self.footer_hash = NO_FOOTER
        self.number = 0
        """Of the next segment."""
        self.epoch = 0
        self.wall_ns = 0
        self._source: tuple[bytes, int] | None = None

    @property
    def size(self) -> int:
        return self.frontier.size

    def begin_at(self, header: Header) -> None:
        """Take a segment's word for everything before it: for a copy that holds the log from there on.

        What it says of the tree is proven by the first signed root that is reached from it.
        """
        self.chain, self.frame_hash, self.footer_hash = header.chain, header.frame_hash, header.previous_footer
        self.frontier = Frontier(header.first, header.peaks)
        self._first_block = header.first >> self._block_level
        self.number, self.epoch = header.number, header.epoch

    def enter(self, header: Header) -> None:
        """Move into the next segment. Raises `BytesContradict`."""
        mine = (self.number, self.size, self.log_id, self.footer_hash, self.chain, self.frame_hash, self.frontier.peaks)
        said = (
            header.number,
            header.first,
            header.log_id,
            header.previous_footer,
            header.chain,
            header.frame_hash,
            header.peaks,
        )
        if said != mine or header.epoch < self.epoch:
            raise BytesContradict(8, "the segment's header does not continue what comes before it")
        self.number += 1

    def follow(self, frame: Frame) -> None:
        """Move to the end of a frame. Raises `BytesContradict`."""
        header, last = frame.header, frame.header.first + max(frame.header.count, 1) - 1
        if header.first != self.size or header.previous != self.frame_hash:
            raise BytesContradict(8, f"the frame does not continue the log at leaf {self.size}")
        if header.first >> self._block_level != last >> self._block_level:
            raise BytesContradict(16, "the frame crosses a block's end")
        if header.epoch < self.epoch or header.wall_ns < self.wall_ns or header.durable > header.first:
            raise BytesContradict(
                24, "the frame's epoch or time goes back, or it states as durable what was not written"
            )
        self._verify_source(header.source, header.source_low, header.source_high)
        chain = self.chain
        for index, leaf in enumerate(frame.leaf_hashes, header.first):
            chain = sha256(_LINK.pack(2, chain, index, leaf)).digest()
        if chain != frame.chain_after:
            raise BytesContradict(HEADER_SIZE if frame.leaf_hashes else frame.trailer_at, "the hash chain is another")
        grown = self.frontier.copy()
        blocks = grown.add(frame.leaf_hashes, keep=(self._block_level,))
        if grown.root() != frame.root_after:
            raise BytesContradict(frame.trailer_at + 32, "the root is another")
        self._blocks += blocks.get(self._block_level, ())
        self.frontier, self.chain, self.frame_hash = grown, chain, frame.digest
        self.epoch, self.wall_ns = header.epoch, header.wall_ns
        self._source = (header.source, header.source_high)

    def leave(self, header: Header, footer: Footer, length: int, content: bytes) -> None:
        """Move out of a sealed segment. Raises `BytesContradict`."""
        mine = (header.number, header.first, self.size - header.first, length, content, self.chain, self.frame_hash)
        said = (
            footer.number,
            footer.first,
            footer.count,
            footer.length,
            footer.content_hash,
            footer.chain,
            footer.frame_hash,
        )
        if said != mine or footer.root != self.frontier.root() or footer.blocks != self._blocks_since(header.first):
            raise BytesContradict(8, "the segment's footer does not match its frames")
        self.footer_hash = footer.digest

    def _blocks_since(self, first: int) -> tuple[bytes, ...]:
        """Roots of the complete blocks that lie wholly in the segment that began at a leaf."""
        begun = -(-first >> self._block_level) - self._first_block
        return tuple(self._blocks[begun:])

    def _verify_source(self, source: bytes, low: int, high: int) -> None:
        if low < 1 or high < low - 1:
            raise BytesContradict(32, f"{low} to {high} is no range of stream sequences")
        if self._source is not None and source == self._source[0] and low != self._source[1] + 1:
            raise BytesContradict(32, f"stream position {low} does not follow {self._source[1]}")
