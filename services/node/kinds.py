"""It is responsible for the kinds of values that a part of a request may have, and for what is wrong first with one.

A kind says which members an object has, and no others. It relies on nothing being nested deeper than kinds are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from libs.aci.rewriting import is_text

_LONGEST_NAME = 64
"""Of a member or a type that is refused, in the words that say so."""
_FETCHED = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, in words that quote no more of a prompt than a name."""

    said: str
    is_url: bool = False
    """Whether it is something that an engine would have to fetch."""


class Kind(Protocol):
    """What a value, as `rewriting.loads` made it, may be."""

    def fault(self, value: Any, where: str, fetches: bool) -> Fault | None:
        """Return what is wrong with the value that stands there, None where nothing is.

        `fetches` is true where the engine may fetch something, and judges what.
        """


@dataclass(frozen=True, slots=True)
class Anything:
    """Whatever it is, and whatever is in it."""

    def fault(self, value: Any, where: str, fetches: bool) -> Fault | None:
        return None


@dataclass(frozen=True, slots=True)
class Simple:
    """A text, a number, true, false or null: which, the engine judges."""

    def fault(self, value: Any, where: str, fetches: bool) -> Fault | None:
        return Fault(f"{where} must not be a list or an object") if isinstance(value, list | dict) else None


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes, encoded. Without any an engine would look for them elsewhere."""

    def fault(self, value: Any, where: str, fetches: bool) -> Fault | None:
        return None if is_text(value) and value else Fault(f"{where} must be a string that is not empty")


@dataclass(frozen=True, slots=True)
class Url:
    """Where bytes are: in the URL itself, unless the engine fetches."""

    def fault(self, value: Any, where: str, fetches: bool) -> Fault | None:
        if not is_text(value):
            return Fault(f"{where} must be a string")
        if value.startswith("data:") or (fetches and value.startswith(_FETCHED)):
            return None
        return Fault(f"{where} must begin with data: or is a URL that is not fetched here", is_url=True)


@dataclass(frozen=True, slots=True)
class Maybe:
    """Null, absent, or of that kind."""

    kind: Kind

    def fault(self, value: Any, where: str, fetches: bool) -> Fault | None:
        return None if value is None else self.kind.fault(value, where, fetches)


@dataclass(frozen=True, slots=True)
class Each:
    """A list of that kind; of a simple value there is nothing to judge."""

    kind: Kind

    def fault(self, value: Any, where: str, fetches: bool) -> Fault | None:
        if isinstance(value, dict):
            return Fault(f"{where} must not be an object")
        if isinstance(value, list):
            for position, each in enumerate(value):
                if (fault := self.kind.fault(each, f"{where}[{position}]", fetches)) is not None:
                    return fault
        return None


@dataclass(frozen=True, slots=True)
class Members:
    """An object with these members. One that is absent is judged as null is."""

    known: Mapping[str, Kind]

    def fault(self, value: Any, where: str, fetches: bool) -> Fault | None:
        if not isinstance(value, dict):
            return Fault(f"{where} must be an object")
        for name in value:
            if name not in self.known:
                return Fault(f"{name[:_LONGEST_NAME]!a} is not a member that is taken in {where}")
        for name, kind in self.known.items():
            if (fault := kind.fault(value.get(name), f"{where}.{name}", fetches)) is not None:
                return fault
        return None


@dataclass(frozen=True, slots=True)
class Typed:
    """An object whose `type` says what it has."""

    types: Mapping[str, Members]
    unsaid: str | None = None
    """Its type if it does not say it."""

    def fault(self, value: Any, where: str, fetches: bool) -> Fault | None:
        if not isinstance(value, dict):
            return Fault(f"{where} must be an object")
        said = value.get("type", self.unsaid)
        if not is_text(said):
            return Fault(f"{where}.type must be a string")
        if said not in self.types:
            return Fault(f"{said[:_LONGEST_NAME]!a} is not a type that is taken in {where}")
        return self.types[said].fault(value, where, fetches)


def members(*simple: str, **others: Kind) -> Members:
    """Return an object's kind by the names of its members."""
    return Members({**dict.fromkeys(simple, Simple()), **others})


def typed(types: Mapping[str, Members], unsaid: str | None = None) -> Typed:
    """Return the kind of an object with a type; `type` itself is a member of each."""
    return Typed({name: Members({"type": Simple(), **each.known}) for name, each in types.items()}, unsaid)


def with_more(kind: Members, **others: Kind) -> Members:
    """Return the kind of an object with these members besides."""
    return Members({**kind.known, **others})
