"""One log's folder: made once, opened by one process at a time, verified at every start."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import structlog

from libs.files import fsync_dir
from services.ledger.storage import derived, recovery, segments, watermark
from services.ledger.storage import description as described
from services.ledger.storage.damage import LogBroken, LogExists, LogLocked
from services.ledger.storage.description import LogDescription
from services.ledger.storage.head import Head
from services.ledger.storage.index import Index, remove_strays
from services.ledger.storage.pages import PageDamaged
from services.ledger.storage.recovery import Floor
from services.ledger.storage.segment_files import SEGMENTS
from services.ledger.storage.watermark import Watermark
from services.ledger.storage.writing import ActiveSegment

_LOCK = "LOCK"
_DEFAULT = segments.Geometry()

log = structlog.get_logger()


class LogStore:
    """An open log. Only a `Sequencer` writes to it; `reader` and `index` serve everyone else.

    A context manager. Not for use after it ends, nor after `LogBroken`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        sign: Callable[[bytes], bytes],
        clock: Callable[[], int],
        index_key: bytes,
        promised: Sequence[Floor] = (),
        geometry: segments.Geometry = _DEFAULT,
    ) -> None:
        """Open and verify the log. `sign` is the acknowledgement key's; `clock` gives nanoseconds since 1970;
        `index_key` is what derived files are made under, and another one than before has them all made anew.

        Raises `LogMissing`, `LogLocked`, `LogDamaged` (exit 3), `LogRolledBack` (exit 4) or `LogBroken` (exit 70).
        """
        self._directory, self._sign, self._clock, self._geometry = directory, sign, clock, geometry
        self._index_key = index_key
        self.description = described.read(directory)
        with ExitStack() as closing:
            lock = lock_log(directory)
            closing.callback(os.close, lock)
            examined = self._examine(promised)
            self.report = recovery.recover(directory, examined)
            scanned = examined.scanned
            self.head, self.index, self.reader = scanned.head, scanned.index, examined.reader
            self.bare, self.prunings = frozenset(scanned.bare), examined.prunings
            mark = examined.marks.newest
            self.last_epoch = max(self.head.epoch, mark.epoch if mark else 0)
            self._footer_hash, self._next_number = scanned.footer_hash, scanned.number
            self._watermark = Watermark(directory / watermark.NAME, mark)
            closing.callback(self._watermark.close)
            if scanned.content is None:
                self._active = self._new_segment()
            else:
                self._active = ActiveSegment(
                    directory / SEGMENTS / segments.file_name(scanned.last_segment),
                    number=scanned.number - 1,
                    first=scanned.last_segment,
                    end=scanned.last_end,
                    content=scanned.content,
                    zeros_ahead=geometry.zeros_ahead,
                )
            closing.callback(lambda: self._active.close())
            self._closing = closing.pop_all()
        self.seals_at_stop = True
        """Whether a clean stop may seal: not before the log says whose key that is done with."""

    @staticmethod
    def create(directory: Path, description: LogDescription) -> None:
        """Make an empty log. Raises `LogExists`."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (directory / described.NAME).exists():
            raise LogExists(f"{directory} holds a log already")
        (directory / SEGMENTS).mkdir(mode=0o700, exist_ok=True)
        fsync_dir(directory)
        described.write(directory, description)

    def __enter__(self) -> LogStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            is_due = self.head.size - self._active.first >= self._geometry.sealed_at_stop
            if kind is None and is_due and self.seals_at_stop:
                self._seal()
        finally:
            self._closing.close()

    @property
    def directory(self) -> Path:
        return self._directory

    @property
    def log_id(self) -> bytes:
        return self.description.log_id

    @property
    def geometry(self) -> segments.Geometry:
        return self._geometry

    @property
    def end(self) -> tuple[int, int]:
        """Where the frames end: first leaf of the last segment, and the offset in its file."""
        return self._active.first, self._active.end

    def append(self, frame: bytes, after: Head) -> int:
        """Make a frame durable and move to the head after it. Returns its offset. Raises `LogBroken`.

        For the sequencer, or the replica of another's log, which MUST then add the frame to `index`.
        """
        if self._is_full():
            self._roll()
        offset = self._active.append(frame)
        self.head = after
        self._watermark.raise_to(after.size, after.epoch, after.chain, after.root())
        return offset

    def sync_watermark(self) -> None:
        """Make the watermark durable. For each checkpoint, before it is signed. Raises `LogBroken`."""
        self._watermark.sync()

    def _is_full(self) -> bool:
        grown = self.head.size - self._active.first
        if grown == 0 or self.head.size % self._geometry.block_leaves:
            return False
        return grown >= self._geometry.segment_leaves or self._active.end >= self._geometry.segment_bytes

    def _examine(self, promised: Sequence[Floor]) -> recovery.Examined:
        folder = self._directory / derived.FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        while True:
            index = Index(folder, self._index_key)
            try:
                examined = recovery.examine(self._directory, self.description.origin, self._geometry, index, promised)
            except PageDamaged as error:
                # The file is gone now, and its segment is read instead.
                log.warning("a derived file is damaged", why=str(error))
                continue
            remove_strays(folder, index.files)
            return examined

    def _roll(self) -> None:
        self._seal()
        self._active = self._new_segment()

    def _seal(self) -> None:
        active = self._active
        footer = segments.describe(
            active.number, active.first, self.head, self.index.tree, active.content, active.end, self._geometry
        )
        sealed = active.seal(footer, self._sign)
        self._footer_hash = segments.footer_hash(sealed)
        self._next_number = active.number + 1
        try:
            self.index.seal(self._footer_hash)
        except OSError as error:
            raise LogBroken(f"a derived file could not be written: {error.strerror}") from error

    def _new_segment(self) -> ActiveSegment:
        header = segments.Header(
            number=self._next_number,
            first=self.head.size,
            log_id=self.log_id,
            previous_footer=self._footer_hash,
            chain=self.head.chain,
            frame_hash=self.head.frame_hash,
            epoch=self.head.epoch,
            created_ns=self._clock(),
            peaks=self.head.range.peaks,
        )
        return ActiveSegment.create(self._directory / SEGMENTS, header, self._geometry.zeros_ahead)


def lock_log(directory: Path) -> int:
    """Return a descriptor that holds the log for this process until it is closed. Raises `LogLocked`."""
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise LogLocked(f"another process has the log in {directory} open") from error
    return descriptor
