"""It is responsible for taking in another member's frames: verified as a start verifies them, and durable.

What this member has beyond what both logs share was never held by a majority, and is taken back. Where it was, the
logs contradict each other, and this member ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import NoReturn

from libs.errors import Code, MeshError
from services.ledger.replication.cutting import LogDiverged, cut_and_end
from services.ledger.replication.frame_files import FrameEnd, FrameFiles, FrameName, Tip
from services.ledger.storage import frames
from services.ledger.storage.store import LogStore

Cut = Callable[[Path, FrameEnd, Tip], NoReturn]

_NAMED_FRAMES = 256


class AppendMalformed(MeshError):
    """What came are no whole frames."""

    code = Code.INVALID_ARGUMENT
    reason = "APPEND_MALFORMED"


class FrameNotHere(Exception):
    """The log has no frame of the name that the sent ones follow; `recent` are the last that it has."""

    def __init__(self, recent: Sequence[FrameName]) -> None:
        super().__init__("another frame is at that size")
        self.recent = recent


class Replica:
    """The log on this member, as others' frames are added. One caller at a time, in the thread that writes."""

    def __init__(self, store: LogStore, cut: Cut = cut_and_end) -> None:
        """`cut` cuts the log at the end of a frame, and ends the process that knows it longer."""
        self._store = store
        self._cut = cut
        self._files = FrameFiles(store)

    @property
    def size(self) -> int:
        return self._store.head.size

    @property
    def last_epoch(self) -> int:
        """The epoch of the last frame."""
        return self._store.head.epoch

    def root(self, size: int) -> bytes:
        """Return the root of the first `size` leaves."""
        return self._store.index.tree.root(size)

    def take(self, previous: FrameName, data: bytes, *, epoch: int, promised: int) -> FrameName:
        """Add frames that follow one that both logs have. Returns the last of them, which IS durable.

        `epoch` is the writer's; of `promised` leaves a majority was said to hold them. Raises `FrameNotHere`,
        `FrameDamaged`, `AppendMalformed`, `LogDiverged` or `LogBroken`. Does not return where frames had to be taken
        back: the process ends.
        """
        last = self._files.last()
        at = self._files.find(previous, last)
        if at is None:
            raise FrameNotHere(self._files.backwards(last, promised, _NAMED_FRAMES))
        for frame, raw in _frames(data):
            if frame.header.epoch > epoch:
                raise frames.FrameDamaged(24, "the frame is of an epoch that is not its writer's yet")
            if at.name.hash == last.name.hash:
                self._append(frame, raw)
                at = last = self._files.last()
            elif (own := self._files.following(at)).name.hash == frame.hash:
                at = own
            else:
                self._take_back(at, promised)
        return at.name

    def _append(self, frame: frames.Frame, raw: bytes) -> None:
        store = self._store
        after = copy(store.head)
        hashes = after.accept(frame, store.geometry.block_leaves)
        offset = store.append(raw, after)
        store.index.add(frame.header.first, frame.rows, offset, hashes, frame.hash)

    def _take_back(self, at: FrameEnd, promised: int) -> None:
        if at.name.size < promised:
            raise LogDiverged(
                f"the writer's log differs after leaf {at.name.size}, and a majority was said to hold {promised}"
            )
        self._cut(self._store.directory, at, self._files.tip(at))


def _frames(data: bytes) -> Iterator[tuple[frames.Frame, bytes]]:
    """Yield the frames in `data`, their own hashes verified. Raises `FrameDamaged`, `AppendMalformed`."""
    at = 0
    while at < len(data):
        header = frames.parse_header(data[at : at + frames.HEADER_SIZE])
        raw = data[at : at + header.length]
        if len(raw) != header.length:
            raise AppendMalformed("the bytes end within a frame")
        yield frames.parse(header, raw), raw
        at += header.length
