"""A disk that a process meets at its own writes: it dies there, is told of an error, or writes what it was not given.

Steps are the calls that change files: `os.pwrite`, `write`, `fsync`, `fdatasync`, `ftruncate`, `rename`, `replace`,
`unlink`, `mkdir`, and opens that create. Installed in a process of its own, once, before the first step.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

STEPS = ("pwrite", "write", "fsync", "fdatasync", "ftruncate", "rename", "replace", "unlink", "mkdir", "open")
SECTOR = 512
_SYNCS = frozenset({"fsync", "fdatasync"})
WRITES = frozenset({"pwrite", "write"})
_LAST_WORDS = 2
"""The descriptor of what a process says."""
_Result = TypeVar("_Result")


class Kind(Enum):
    """What happens at a step."""

    NONE = "none"
    DEATH = "death"
    """The process is killed before it."""
    TORN = "torn"
    """The process is killed in its middle: half of a write is there."""
    ERROR = "error"
    """It fails."""
    DROPPED = "dropped"
    """It fails; where it was a sync, what was not durable is gone, and only a later sync says that all is well."""
    SHORT = "short"
    """Half is written, and that is said; where nothing is written, it fails."""
    FLIP = "flip"
    """One bit is another than the one given, as if memory had changed before."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What a process meets, from which of its steps on, and for how many."""

    kind: Kind = Kind.NONE
    step: int = 0
    lasting: int = 1
    number: int = 0
    """The error's."""


@dataclass(frozen=True, slots=True)
class Met:
    """The trouble came, at a step of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class SyncedAgain:
    """A descriptor whose sync had failed was synced once more."""

    name: str


class Disk:
    """Counts steps and makes trouble at one of them."""

    def __init__(self, trouble: Trouble, tell: Callable[[Met | SyncedAgain], None]) -> None:
        self._trouble = trouble
        self._tell = tell
        self._synced: dict[int, bytes] = {}
        self._failed: set[int] = set()
        self.steps = 0
        self.writes: list[int] = []
        """Which of the steps write bytes."""

    def install(self) -> None:
        for name in STEPS:
            setattr(os, name, self._step(name, getattr(os, name)))

    def _step(self, name: str, real: Callable[..., _Result]) -> Callable[..., _Result]:
        def step(*arguments: Any, **options: Any) -> _Result:
            if not changes(name, arguments):
                return real(*arguments, **options)
            self.steps += 1
            if name in WRITES:
                self.writes.append(self.steps)
            begun = self.steps - self._trouble.step
            if self._trouble.kind is not Kind.NONE and 0 <= begun < self._trouble.lasting:
                self._tell(Met(name))
                arguments = self._meet(name, real, arguments)
            elif name in _SYNCS and _file_of(arguments[0]) in self._failed:
                self._tell(SyncedAgain(name))
            result = real(*arguments, **options)
            if name in _SYNCS and self._trouble.kind is Kind.DROPPED:
                self._synced[_file_of(arguments[0])] = _content(arguments[0])
            return result

        return step

    def _meet(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what the call is made with instead; dies or raises where there is to be none."""
        kind = self._trouble.kind
        if kind is Kind.TORN and name in WRITES:
            descriptor, data, *offset = arguments
            real(descriptor, _half(data), *offset)
        if kind in (Kind.DEATH, Kind.TORN):
            os.kill(os.getpid(), signal.SIGKILL)
        if name in WRITES and kind is Kind.SHORT and len(arguments[1]) > SECTOR:
            return arguments[0], _half(arguments[1]), *arguments[2:]
        if name in WRITES and kind is Kind.FLIP:
            return arguments[0], _flipped(bytes(arguments[1]), self._trouble.number), *arguments[2:]
        if name in _SYNCS:
            self._failed.add(_file_of(arguments[0]))
            if kind is Kind.DROPPED:
                self._drop(arguments[0])
        raise OSError(self._trouble.number, os.strerror(self._trouble.number))

    def _drop(self, descriptor: int) -> None:
        path, content = f"/proc/self/fd/{descriptor}", self._synced.get(_file_of(descriptor))
        if content is not None and os.path.isfile(path):
            with open(path, "wb") as file:
                file.write(content)


def changes(name: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a call is a step: opening what is there, and making a folder that is there, change nothing."""
    if name == "open":
        return bool(arguments[1] & os.O_CREAT)
    if name == "write":
        return bool(arguments[0] > _LAST_WORDS)
    return name != "mkdir" or not os.path.isdir(arguments[0])


def _half(data: bytes | memoryview) -> bytes:
    """Half of a write. Disks and page caches keep sectors whole."""
    whole = len(data) // 2 // SECTOR * SECTOR
    return bytes(data)[: max(whole, SECTOR) if len(data) > SECTOR else 0]


def _file_of(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


def _content(descriptor: int) -> bytes:
    path = f"/proc/self/fd/{descriptor}"
    if not os.path.isfile(path):
        return b""
    with open(path, "rb") as file:
        return file.read()


def _flipped(data: bytes, number: int) -> bytes:
    at = random.Random(number).randrange(8 * len(data))  # noqa: S311 - a place, not a secret
    changed = bytearray(data)
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)
