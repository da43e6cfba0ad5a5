"""Responsible for the conventions that all ACI documents share (Appendix A): digests, hex, member readers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from libs.errors import MeshError

API_VERSION = "aci/1"

_HEX = re.compile(r"[0-9a-f]*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

T = TypeVar("T")


def digest(data: bytes) -> str:
    """Return the form of a digest field: `sha256:` and lower-case hex."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def is_hex(text: str, size: int) -> bool:
    """Say whether the text is lower-case hex, without a prefix, of exactly `size` bytes."""
    return len(text) == 2 * size and _HEX.fullmatch(text) is not None


class Members:
    """Reads one JSON object's members by name and type, refusing with the document's own error."""

    __slots__ = ("_members", "_refusal", "_where")

    def __init__(self, value: object, where: str, refusal: type[MeshError]) -> None:
        if not isinstance(value, dict):
            raise refusal(f"{where} must be an object")
        self._members: Mapping[str, Any] = value
        self._where = where
        self._refusal = refusal

    def only(self, *names: str) -> None:
        """Refuse any member not named here."""
        unknown = sorted(self._members.keys() - set(names))
        if unknown:
            raise self._refusal(f"{self._where} has a member that this version does not define: {unknown[0][:40]!r}")

    def api_version(self) -> None:
        """Refuse every protocol version but this one (Appendix B)."""
        if self.text("api_version") != API_VERSION:
            raise self.refuse("api_version", f'must be "{API_VERSION}"')

    def text(self, name: str) -> str:
        value = self._required(name)
        if not isinstance(value, str) or not value:
            raise self.refuse(name, "must be a non-empty string")
        return value

    def text_or_null(self, name: str) -> str | None:
        """Return a member that must be there and may be null."""
        return None if self._required(name) is None else self.text(name)

    def optional_text(self, name: str) -> str | None:
        """Return a member that may be left out, but not null."""
        return self.text(name) if name in self._members else None

    def digest(self, name: str) -> str:
        value = self.text(name)
        if not is_digest(value):
            raise self.refuse(name, "must be sha256: and 64 lower-case hex digits")
        return value

    def hex(self, name: str, size: int) -> str:
        value = self.text(name)
        if not is_hex(value, size):
            raise self.refuse(name, f"must be {2 * size} lower-case hex digits")
        return value

    def optional_hex(self, name: str, size: int) -> str | None:
        """Return bare lower-case hex of this many bytes, or None when the member is absent."""
        return self.hex(name, size) if self.has(name) else None

    def integer(self, name: str) -> int:
        value = self._required(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.refuse(name, "must be a non-negative integer")
        return value

    def optional_integer(self, name: str) -> int | None:
        """Return a member that may be left out, but not null."""
        return self.integer(name) if self.has(name) else None

    def flag(self, name: str) -> bool:
        value = self._required(name)
        if not isinstance(value, bool):
            raise self.refuse(name, "must be true or false")
        return value

    def object(self, name: str) -> Members:
        return Members(self._required(name), f"{self._where}.{name}", self._refusal)

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object whose members this specification leaves open."""
        value = self._required(name)
        if not isinstance(value, dict):
            raise self.refuse(name, "must be an object")
        return value

    def items(self, name: str, read: Callable[[Members], T]) -> tuple[T, ...]:
        """Return a list of objects, each read by `read`."""
        value = self._required(name)
        if not isinstance(value, list):
            raise self.refuse(name, "must be an array")
        where = f"{self._where}.{name}"
        return tuple(read(Members(item, f"{where}[{index}]", self._refusal)) for index, item in enumerate(value))

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._required(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.refuse(name, "must be an array of strings")
        return tuple(value)

    def has(self, name: str) -> bool:
        return name in self._members

    def raw(self) -> dict[str, Any]:
        return dict(self._members)

    def refuse(self, name: str, problem: str) -> MeshError:
        """Return the error to raise about one member."""
        return self._refusal(f"{self._where}.{name} {problem}")

    def _required(self, name: str) -> Any:
        if name not in self._members:
            raise self.refuse(name, "is missing")
        return self._members[name]
