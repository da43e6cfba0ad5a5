"""It is responsible for reading JSON objects so strictly that nothing in a signed document is ignored.

Members are read one by one, each exactly once. A reader names the refusal that its document raises, and every refusal
names the dotted member. What nobody read is refused at `end`: a misspelt rule must not look like a rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

from libs import jcs
from libs.errors import MeshError

T = TypeVar("T")

MAX_INTEGER = jcs.MAX_SAFE_INTEGER


class Members:
    """One JSON object, each of whose members is taken exactly once."""

    def __init__(self, value: Any, path: str, refusal: type[MeshError]) -> None:
        self._path = path
        self._refusal = refusal
        if not isinstance(value, dict):
            raise self.refuse("", "must be an object")
        self._left: dict[str, Any] = dict(value)

    def refuse(self, name: str, problem: str) -> MeshError:
        """Return the refusal that names a member of this object, for the caller to raise."""
        return self._refusal(f"{self.dotted(name) or 'the document'} {problem}")

    def dotted(self, name: str) -> str:
        """Return the full name of a member, for messages."""
        return ".".join(part for part in (self._path, name) if part)

    def end(self) -> None:
        """Refuse whatever was not read."""
        for name in self._left:
            raise self.refuse(name[:64] if name.isprintable() else ascii(name)[:64], "is not a known member")

    def text(self, name: str, pattern: re.Pattern[str]) -> str:
        """Return a string that the pattern matches from end to end."""
        return self._matching(self._take(name), name, pattern)

    def hexadecimal(self, name: str, octets: int) -> str:
        """Return a lower-case hexadecimal string of exactly so many bytes."""
        return self._hexadecimal(self._take(name), name, octets)

    def octets(self, name: str, length: int) -> bytes:
        """Return the bytes that a hexadecimal string of exactly so many bytes stands for."""
        return bytes.fromhex(self.hexadecimal(name, length))

    def blob(self, name: str, limit: int) -> bytes:
        """Return the bytes that a hexadecimal string of one to `limit` bytes stands for."""
        value = self._take(name)
        if not isinstance(value, str) or not 0 < len(value) <= 2 * limit or not re.fullmatch(r"([0-9a-f]{2})+", value):
            raise self.refuse(name, f"must be lower-case hexadecimal, at most {limit} bytes")
        return bytes.fromhex(value)

    def integer(self, name: str, low: int, high: int = MAX_INTEGER) -> int:
        """Return an integer within bounds, both included."""
        value = self._take(name)
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(name, f"must be an integer from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean."""
        value = self._take(name)
        if not isinstance(value, bool):
            raise self.refuse(name, "must be true or false")
        return value

    def has(self, name: str) -> bool:
        """Say whether an optional member is there and not yet read."""
        return name in self._left

    def value(self, name: str) -> Any:
        """Return a member as it is, for a reader of its own."""
        return self._take(name)

    def object(self, name: str) -> Members:
        """Return the reader of a nested object."""
        return Members(self._take(name), self.dotted(name), self._refusal)

    def objects(self, name: str) -> Iterator[Members]:
        """Yield the readers of a list of objects. The list may be empty."""
        for index, value in enumerate(self._list(self._take(name), name)):
            yield Members(value, self.dotted(f"{name}[{index}]"), self._refusal)

    def hexadecimals(self, name: str, octets: int, *, may_be_empty: bool = False) -> tuple[str, ...]:
        """Return a list of distinct hexadecimal strings, each of exactly so many bytes."""
        values = self._list(self._take(name), name)
        strings = tuple(self._hexadecimal(value, f"{name}[{index}]", octets) for index, value in enumerate(values))
        return self._set_of(strings, name, may_be_empty=may_be_empty)

    def texts(self, name: str, pattern: re.Pattern[str], *, may_be_empty: bool = False) -> tuple[str, ...]:
        """Return a list of distinct strings, each of which the pattern matches from end to end."""
        values = self._list(self._take(name), name)
        strings = tuple(self._matching(value, f"{name}[{index}]", pattern) for index, value in enumerate(values))
        return self._set_of(strings, name, may_be_empty=may_be_empty)

    def names(self, pattern: re.Pattern[str]) -> tuple[str, ...]:
        """Return the names of all members, for an object whose names are data."""
        for name in self._left:
            if not pattern.fullmatch(name):
                raise self.refuse(ascii(name)[:64], f"is not a name that matches {pattern.pattern}")
        return tuple(self._left)

    def distinct(self, values: list[T], name: str) -> tuple[T, ...]:
        """Return the values that were read for a member, refusing repeats."""
        if len(set(values)) != len(values):
            raise self.refuse(name, "names the same thing twice")
        return tuple(values)

    def _take(self, name: str) -> Any:
        try:
            return self._left.pop(name)
        except KeyError as error:
            raise self.refuse(name, "is missing") from error

    def _matching(self, value: Any, name: str, pattern: re.Pattern[str]) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self.refuse(name, f"must be a string that matches {pattern.pattern}")
        return value

    def _hexadecimal(self, value: Any, name: str, octets: int) -> str:
        if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * octets}}}", value):
            raise self.refuse(name, f"must be {2 * octets} lower-case hexadecimal digits")
        return value

    def _list(self, value: Any, name: str) -> list[Any]:
        if not isinstance(value, list):
            raise self.refuse(name, "must be a list")
        return value

    def _set_of(self, strings: tuple[str, ...], name: str, *, may_be_empty: bool) -> tuple[str, ...]:
        if not strings and not may_be_empty:
            raise self.refuse(name, "must not be empty")
        return self.distinct(list(strings), name)
