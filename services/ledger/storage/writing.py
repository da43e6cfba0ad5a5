"""The one segment that grows: appended to, synced, sealed. Whatever fails here ends the process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from libs.files import fsync_dir
from services.ledger.storage import segments
from services.ledger.storage.damage import LogBroken
from services.ledger.storage.records_log import write_all

_ZEROS = bytes(1 << 20)


class ActiveSegment:
    """Owned by the one writer. After `LogBroken` it takes nothing more."""

    __slots__ = ("_broken", "_descriptor", "_zeroed", "content", "end", "first", "number", "path", "zeros_ahead")

    def __init__(
        self, path: Path, *, number: int, first: int, end: int, content: segments.ContentHash, zeros_ahead: int
    ) -> None:
        """Open a verified segment whose frames end at `end`, where the file ends or only zeros follow."""
        self.path, self.number, self.first, self.end, self.content = path, number, first, end, content
        self.zeros_ahead, self._broken = zeros_ahead, False
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._zeroed = os.fstat(self._descriptor).st_size

    @classmethod
    def create(cls, folder: Path, header: segments.Header, zeros_ahead: int) -> ActiveSegment:
        """Make the next segment. It IS durable, or does not exist, when this ends. Raises `LogBroken`."""
        path, data = folder / segments.file_name(header.first), header.pack()
        temporary = path.with_suffix(".tmp")
        content = segments.ContentHash()
        content.update(data)
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                write_all(descriptor, data, 0)
                _write_zeros(descriptor, len(data), len(data) + zeros_ahead)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, path)
            fsync_dir(folder)
        except OSError as error:
            raise LogBroken(f"segment {path.name} could not be made: {error.strerror}") from error
        return cls(
            path,
            number=header.number,
            first=header.first,
            end=len(data),
            content=content,
            zeros_ahead=zeros_ahead,
        )

    def append(self, frame: bytes) -> int:
        """Add a frame and return its offset. It IS durable when this returns. Raises `LogBroken`."""
        offset = self.end
        with _Writing(self):
            if offset + len(frame) > self._zeroed:
                grown = offset + len(frame) + self.zeros_ahead
                _write_zeros(self._descriptor, self._zeroed, grown)
                self._zeroed = grown
            write_all(self._descriptor, frame, offset)
            os.fdatasync(self._descriptor)
        self.end += len(frame)
        self.content.update(frame)
        return offset

    def seal(self, footer: segments.Footer, sign: Callable[[bytes], bytes]) -> bytes:
        """End the file with its signed footer, durably, and close it. Returns the footer. Raises `LogBroken`."""
        data = segments.sign_footer(footer, sign)
        with _Writing(self):
            write_all(self._descriptor, data, self.end)
            os.ftruncate(self._descriptor, self.end + len(data))
            os.fsync(self._descriptor)
        self.close()
        return data

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Writing:
    """Turns the first failed write or sync into `LogBroken`, and every later attempt too."""

    __slots__ = ("_segment",)

    def __init__(self, segment: ActiveSegment) -> None:
        self._segment = segment

    def __enter__(self) -> None:
        if self._segment._broken:
            raise LogBroken(f"segment {self._segment.path.name} is broken since an earlier write")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._segment._broken = True
        if isinstance(error, OSError):
            name = self._segment.path.name
            raise LogBroken(f"segment {name} could not be written: {error.strerror}") from error


def _write_zeros(descriptor: int, start: int, end: int) -> None:
    for at in range(start, end, len(_ZEROS)):
        write_all(descriptor, _ZEROS[: min(len(_ZEROS), end - at)], at)
