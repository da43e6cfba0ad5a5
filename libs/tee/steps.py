"""Responsible for the record of an appraisal: its numbered steps, what each compared, and which one refused.

A verdict needs no record, so by default none is kept. An operator who asks why evidence is refused gets one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from libs.errors import MeshError

TITLES = {
    1: "size and shape",
    2: "signature and certificate chain",
    3: "TCB status and endorsements",
    4: "guest attributes",
    5: "binding to challenge, key and claims",
    6: "event log and registers",
    7: "app-compose",
    8: "measurement",
    9: "machine",
    10: "GPU",
    11: "claims",
}


class Note(Protocol):
    """Takes what a step compares: a name, what the evidence shows, what is required of it."""

    def __call__(self, name: str, found: object, required: object, /) -> None: ...


class Steps(Protocol):
    """Is told of every step of an appraisal, in order."""

    def step(self, number: int, /) -> AbstractContextManager[Note]:
        """Enclose one step; what it raises MUST come through."""
        ...


@dataclass(frozen=True, slots=True)
class Compared:
    name: str
    found: str
    required: str


@dataclass(slots=True)
class Step:
    """One step that was begun. It passed unless there is a refusal."""

    number: int
    compared: list[Compared] = field(default_factory=list)
    refusal: MeshError | None = None

    @property
    def title(self) -> str:
        return TITLES[self.number]


class Record:
    """Keeps every step that was begun."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    @contextmanager
    def step(self, number: int, /) -> Iterator[Note]:
        begun = Step(number)
        self.steps.append(begun)

        def note(name: str, found: object, required: object, /) -> None:
            begun.compared.append(Compared(name, _words(found), _words(required)))

        try:
            yield note
        except MeshError as error:
            begun.refusal = error
            raise


class _Silent:
    """Keeps nothing."""

    def step(self, _number: int, /) -> _Silent:
        return self

    def __enter__(self) -> Note:
        return ignore

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def ignore(_name: str, _found: object, _required: object, /) -> None:
    """The note of a step that nobody records."""


SILENT: Steps = _Silent()


def _words(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, frozenset | set):
        return ", ".join(sorted(_words(item) for item in value)) or "none"
    if isinstance(value, tuple | list):
        return ", ".join(_words(item) for item in value) or "none"
    return str(value)
