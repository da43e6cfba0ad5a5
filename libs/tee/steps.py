"""Responsible for the record of an appraisal: its numbered steps, what each compared, and which one refused.

A verdict needs no record, so by default none is kept. An operator who asks why evidence is refused gets one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import Flag
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

_REGISTER_BYTES = 48
# What values of other kinds are written as.
_LIKE_ANOTHER_KIND = re.compile(r"true|false|none|zero|nothing|-?[0-9]{1,20}|")


class Note(Protocol):
    """Takes what a step compares: a name, what the evidence shows, what is required of it.

    A value that only a record needs is given as a function that makes it. What it raises refuses nothing: whether
    evidence is refused, and why, does not depend on who looks.
    """

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
            begun.compared.append(Compared(name, _shown(found), _shown(required)))

        try:
            yield note
        except MeshError as error:
            begun.refusal = error
            raise


class Begun:
    """Knows which step was begun last, the one that refused where one did; tells others of all of them."""

    def __init__(self, told: Steps) -> None:
        self.number = 0
        self._told = told

    def step(self, number: int, /) -> AbstractContextManager[Note]:
        self.number = number
        return self._told.step(number)


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


def about(subject: str, note: Note) -> Note:
    """Put what is spoken of before every name that is noted, so that several of a kind are told apart."""
    if note is ignore:
        return note

    def noted(name: str, found: object, required: object, /) -> None:
        note(f"{subject}: {name}", found, required)

    return noted


def _shown(value: object) -> str:
    try:
        return _words(value() if callable(value) else value)
    # Nobody verified what is read here, so it fails in whatever way its reader does.
    except Exception:  # noqa: BLE001
        return "cannot be read"


def _words(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        # A register that nothing was measured into: nobody counts 96 zeros.
        return "zero" if len(value) == _REGISTER_BYTES and not any(value) else value.hex() or "nothing"
    if isinstance(value, Flag):
        return value.name or "none"
    if isinstance(value, Set):
        return ", ".join(sorted(_words(item) for item in value)) or "none"
    if isinstance(value, tuple):
        return ", ".join(_words(item) for item in value) or "none"
    # What follows came out of JSON: it must not read like a value of another kind that is required.
    if isinstance(value, list):
        return f"[{', '.join(json.dumps(item) if isinstance(item, str) else _words(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str) and _LIKE_ANOTHER_KIND.fullmatch(value) else str(value)
