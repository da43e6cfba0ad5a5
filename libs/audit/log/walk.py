"""It is responsible for the way through a log's segment files, frame by frame, and for where and why it ends.

A last frame that was cut short is no damage: nobody was told of it. What proves that it was whole once is a later
frame, a seal, or a size that was promised; the last is for whoever knows the promises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import BinaryIO, Protocol

from libs.audit.log import frames, segments
from libs.audit.log.findings import BytesContradict, BytesWrong, Findings, Status
from libs.audit.log.frames import Frame
from libs.audit.log.place import Place
from libs.audit.log.segments import Footer, Header
from libs.audit.log.tree import Frontier

_CHUNK = 1 << 20


class LogSource(Protocol):
    """Where a log's files are. What cannot be read raises the source's own error."""

    def segments(self) -> Sequence[str]:
        """Return the names in the segments' folder, in order."""
        ...

    def open_segment(self, name: str) -> BinaryIO: ...

    def is_bare(self, name: str) -> bool:
        """Whether there is only what is left of a segment once the bodies of tenants' entries were taken out."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return another file's bytes, None where there is none."""
        ...

    def open_beside(self, name: str) -> BinaryIO | None:
        """Open another file that may be long, None where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Seal:
    """A footer that matches its segment, whose signature is still to be judged."""

    file: str
    offset: int
    footer: Footer


@dataclass(frozen=True, slots=True)
class Located:
    """A frame, where it lies, and the tree before it."""

    file: str
    offset: int
    frame: Frame
    before: Frontier


Take = Callable[[Located], None]
"""What is done with a frame that continues the log."""

Which = Callable[[Frame], Iterable[int] | None]
"""Of which rows the bodies are read; None for all."""


class Walk:
    """One way through a log. `place` moves along."""

    def __init__(self, source: LogSource, place: Place, findings: Findings, which: Which, take: Take) -> None:
        self._source, self._place, self._findings, self._which, self._take = source, place, findings, which, take
        self.seals: list[Seal] = []
        self.file, self.end = "seg", 0
        """The last file that was read, and where its last frame ends."""
        self.lengths: dict[str, int] = {}
        """How much of each file is the log's: to its footer's end, or to its last frame's."""
        self.bare: dict[str, int] = {}
        """The leaf after the last of each segment that is bare."""

    def run(self) -> bool:
        """Read to the end. Returns False where damage has kept the rest from being read."""
        names = [name for name in self._source.segments() if not name.endswith(".tmp")]
        return all(self._read(name, is_last=name == names[-1]) for name in names)

    def _read(self, name: str, *, is_last: bool) -> bool:
        if name != segments.file_name(self._place.size):
            if segments.first_leaf(name) is None:
                return self._damaged(name, 0, "the file is no segment and does not belong here")
            return self._damaged(segments.file_name(self._place.size), 0, f"it is missing; {name} comes next")
        with self._source.open_segment(name) as file:
            segment = _Segment(name, file, self._place, is_bare=self._source.is_bare(name))
            self.file, self.end = name, 0
            try:
                segment.enter()
            except BytesWrong as error:
                return self._damaged(name, error.at, error.why)
            try:
                segment.read_frames(self._which, self._take)
            except BytesWrong as error:
                is_cut_short = is_last and not segment.is_bare and not isinstance(error, BytesContradict)
                if not is_cut_short or segment.is_followed():
                    return self._damaged(name, segment.end + error.at, error.why)
                self._findings.add(Status.TORN, name, segment.end + error.at, f"{error.why}; no frame follows")
        self.end = self.lengths[name] = segment.end
        if segment.seal is not None:
            self.seals.append(segment.seal)
            self.lengths[name] += segments.FOOTER_SIZE
        elif not is_last or segment.is_bare:
            return self._damaged(name, segment.end, "a segment that is not the last one has no footer")
        if segment.is_bare:
            self.bare[name] = self._place.size
        return True

    def _damaged(self, name: str, at: int, why: str) -> bool:
        self._findings.add(Status.DAMAGED, name, at, why)
        return False


class _Segment:
    """One file's reading. `end` is where the frames end that continue the log."""

    def __init__(self, name: str, file: BinaryIO, place: Place, *, is_bare: bool) -> None:
        self._name, self._file, self._place, self.is_bare = name, file, place, is_bare
        self._header: Header
        self._content = sha256()
        self._next = 1
        """How far beyond `end` a later frame may begin."""
        self.end = 0
        self._whole = 0
        """How long the file is up to `end` with all bodies in it."""
        self.seal: Seal | None = None

    def enter(self) -> None:
        """Read the segment's header. Raises `BytesWrong`."""
        data = self._file.read(segments.HEADER_SIZE)
        self._header = segments.read_header(data)
        self._place.enter(self._header)
        self._content.update(data)
        self.end = self._whole = len(data)

    def read_frames(self, which: Which, take: Take) -> None:
        """Read to the end of the file, whatever it is. Raises `BytesWrong`, counted from `end`."""
        while start := self._file.read(frames.HEADER_SIZE):
            self._next = 1
            if not start.strip(b"\0"):
                self._verify_zeros(len(start))
                return
            if start.startswith(segments.SEAL_MAGIC):
                self._read_footer(start + self._file.read())
                return
            header = frames.read_header(start)
            self._next = header.length
            frame = frames.read_frame(header, start + self._rest(header), is_bare=self.is_bare)
            frame.verify_bodies(which(frame))
            before = self._place.frontier
            self._place.follow(frame)
            self._content.update(frame.data)
            take(Located(self._name, self.end, frame, before))
            self.end += len(frame.data)
            self._whole += header.length

    def is_followed(self) -> bool:
        """Whether what comes after the damage proves that these bytes were whole once."""
        self._file.seek(self.end)
        rest = self._file.read()
        if frames.find_header(rest, self._next, self._place.size) is not None:
            return True
        try:
            segments.read_footer(rest[-segments.FOOTER_SIZE :])
        except BytesWrong:
            return False
        return len(rest) > segments.FOOTER_SIZE

    def _rest(self, header: frames.Header) -> bytes:
        if self.is_bare:
            return frames.rest_of_bare(header, self._file)
        return self._file.read(header.length - frames.HEADER_SIZE)

    def _read_footer(self, rest: bytes) -> None:
        footer = segments.read_footer(rest[: segments.FOOTER_SIZE])
        # What a bare segment held is gone: that it was this, its frames say, each body by its hash.
        content = footer.content_hash if self.is_bare else self._content.digest()
        self._place.leave(self._header, footer, self._whole, content)
        if len(rest) > segments.FOOTER_SIZE:
            raise BytesWrong(segments.FOOTER_SIZE, "bytes follow the segment's footer: its file was not cut yet")
        self.seal = Seal(self._name, self.end, footer)

    def _verify_zeros(self, skipped: int) -> None:
        at = skipped
        while chunk := self._file.read(_CHUNK):
            if chunk.count(0) != len(chunk):
                wrong = len(chunk) - len(chunk.lstrip(b"\0"))
                raise BytesWrong(at + wrong, "bytes after the last frame are not zero")
            at += len(chunk)
