"""Every change that a process makes to a folder, and every sync: what a power cut may leave is made from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.faults.ledger.disk import STEPS, WRITES, changes

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Made:
    """A file was made under a name."""

    name: str
    file: int
    """A number that no other file has."""


@dataclass(frozen=True, slots=True)
class Wrote:
    """A file has other bytes from `offset` on, and ends at `size`."""

    file: int
    offset: int
    data: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Synced:
    """A file's content IS durable."""

    file: int


@dataclass(frozen=True, slots=True)
class Renamed:
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Removed:
    name: str


@dataclass(frozen=True, slots=True)
class FolderSynced:
    """The names in a folder ARE durable."""

    name: str


@dataclass(frozen=True, slots=True)
class Begun:
    """Everything before this was there already."""


Change = Begun | Made | Wrote | Synced | Renamed | Removed | FolderSynced


class Recording:
    """Tells every change to one folder. What is there when it begins is made first, durably."""

    def __init__(self, folder: Path, tell: Callable[[Change], None]) -> None:
        self._folder = str(folder)
        self._tell = tell
        self._files: dict[int, int] = {}
        """By inode."""
        self._content: dict[int, bytes] = {}
        self.steps = 0
        self.writes: list[int] = []

    def install(self) -> None:
        for path in sorted(Path(self._folder).rglob("*")):
            if path.is_file():
                file = self._make(self._name(path), path.stat().st_ino)
                self._follow(file, path.read_bytes())
                self._tell(Synced(file))
        for folder in [Path(self._folder), *(path for path in Path(self._folder).rglob("*") if path.is_dir())]:
            self._tell(FolderSynced(self._name(folder)))
        self._tell(Begun())
        for name in STEPS:
            setattr(os, name, self._recorded(name, getattr(os, name)))

    def _recorded(self, name: str, real: Callable[..., _Result]) -> Callable[..., _Result]:
        def step(*arguments: Any, **options: Any) -> _Result:
            is_new = name == "open" and not os.path.lexists(arguments[0])
            is_change = changes(name, arguments)
            result = real(*arguments, **options)
            if is_change:
                self.steps += 1
                if name in WRITES:
                    self.writes.append(self.steps)
                self._record(name, arguments, result, is_new=is_new)
            return result

        return step

    def _record(self, name: str, arguments: tuple[Any, ...], result: Any, *, is_new: bool) -> None:
        match name:
            case "open" if is_new:
                self._make(self._name(arguments[0]), os.fstat(result).st_ino)
            case "open" | "pwrite" | "write" | "ftruncate":
                self._follow_descriptor(result if name == "open" else arguments[0])
            case "fsync" | "fdatasync" if os.path.isdir(path := f"/proc/self/fd/{arguments[0]}"):
                self._tell(FolderSynced(self._name(os.readlink(path))))
            case "fsync" | "fdatasync":
                self._tell(Synced(self._follow_descriptor(arguments[0])))
            case "rename" | "replace":
                self._tell(Renamed(self._name(arguments[0]), self._name(arguments[1])))
            case "unlink":
                self._tell(Removed(self._name(arguments[0])))

    def _make(self, name: str, inode: int) -> int:
        file = len(self._content)
        self._files[inode], self._content[file] = file, b""
        self._tell(Made(name, file))
        return file

    def _follow_descriptor(self, descriptor: int) -> int:
        """Tell what a file's content became, whoever wrote it: buffered writes are seen at the next step."""
        file = self._files[os.fstat(descriptor).st_ino]
        with open(f"/proc/self/fd/{descriptor}", "rb") as content:
            self._follow(file, content.read())
        return file

    def _follow(self, file: int, data: bytes) -> None:
        before = self._content[file]
        if data == before:
            return
        start = next((at for at, (a, b) in enumerate(zip(before, data, strict=False)) if a != b), None)
        offset = min(len(before), len(data)) if start is None else start
        self._content[file] = data
        self._tell(Wrote(file, offset, data[offset:], len(data)))

    def _name(self, path: str | Path) -> str:
        return os.path.relpath(path, self._folder)
