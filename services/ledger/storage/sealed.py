"""It is responsible for passing over a sealed segment at start by its header, footer and last frame.

Segments name each other by their footers, a footer names what its segment holds, and the derived file was made from
those very bytes. Whoever reads an entry verifies it, and all of it is read again in the background. What does not fit
here is not judged here: the segment is then read, and that says what is wrong and where.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from libs.transparency.chain import batch_hash
from services.ledger.storage import derived, frames, segments
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.head import Head
from services.ledger.storage.index import Index
from services.ledger.storage.segment_files import SegmentFile, identity


@dataclass(frozen=True, slots=True)
class Sealed:
    """A segment's two ends."""

    header: segments.Header
    footer: segments.Footer
    footer_hash: bytes
    frames_end: int
    """Where the frames end in the file, which in a bare one is not where the footer says."""


def read(file: SegmentFile) -> Sealed | None:
    """Return the ends of a sealed segment; None for one that is not sealed, or not all there."""
    with file.path.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size < segments.HEADER_SIZE + segments.FOOTER_SIZE:
            return None
        start = opened.read(segments.HEADER_SIZE)
        opened.seek(size - segments.FOOTER_SIZE)
        end = opened.read(segments.FOOTER_SIZE)
    try:
        header, footer = segments.Header.parse(start), segments.Footer.parse(end)
    except segments.SegmentMalformed:
        return None
    frames_end = size - segments.FOOTER_SIZE
    if footer.length != frames_end and not file.is_bare:
        return None
    return Sealed(header, footer, segments.footer_hash(end), frames_end)


def continues(header: segments.Header, number: int, log: bytes, footer_hash: bytes, head: Head) -> bool:
    """Whether a segment's header begins where the log before it ends."""
    expected = (number, head.size, log, footer_hash, head.chain, head.frame_hash)
    actual = (header.number, header.first, header.log_id, header.previous_footer, header.chain, header.frame_hash)
    return actual == expected and header.peaks == head.range.peaks and header.epoch >= head.epoch


def pass_over(
    file: SegmentFile, number: int, log: bytes, footer_hash: bytes, head: Head, index: Index
) -> Sealed | None:
    """Move head and index to a sealed segment's end; None, and nothing is changed, where it must be read instead."""
    sealed = read(file)
    if sealed is None or not continues(sealed.header, number, log, footer_hash, head):
        return None
    footer = sealed.footer
    if (footer.number, footer.first) != (number, head.size):
        return None
    found = index.open(footer.first, identity(sealed.footer_hash, is_bare=file.is_bare))
    if found is None:
        return None
    last = _last_frame(file, found.last_frame, sealed)
    if last is None or found.end != footer.first + footer.count:
        return None
    index.take(found)
    head.move_to(last, footer.chain, index.tree.peaks(found.end), footer.frame_hash)
    if head.root() != footer.root:
        raise LogDamaged(derived.file_name(found.first), 0, "it has another tree than the segment that it is made from")
    return sealed


def _last_frame(file: SegmentFile, offset: int, sealed: Sealed) -> frames.Header | None:
    """Return the header of the frame that the footer ends with."""
    footer = sealed.footer
    with file.path.open("rb") as opened:
        opened.seek(offset)
        start = opened.read(frames.HEADER_SIZE)
        try:
            header = frames.parse_header(start)
        except frames.FrameDamaged:
            return None
        rows = opened.read(frames.ROW_SIZE * header.count)
    same = batch_hash(start, rows, footer.chain, footer.root) == footer.frame_hash
    length = frames.bare_length(rows) if file.is_bare else header.length
    return header if same and offset + length == sealed.frames_end else None
