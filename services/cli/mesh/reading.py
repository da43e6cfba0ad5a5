"""It is responsible for reading mesh.json: members by name and type, files relative to its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from services.cli.terminal.inputs import InputUnreadable, read_input, read_json


class MeshReader:
    """What mesh.json says. Every method raises `InputUnreadable`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members: dict[str, Any] = read_json(path)

    def text(self, name: str) -> str:
        value = self._members.get(name)
        if not isinstance(value, str) or not value:
            raise self._lacks(name)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts; one that stands alone, as older files have it, is a list of one."""
        value = self._members.get(name)
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise self._lacks(name)
        return tuple(texts)

    def any_texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts, which may be empty; older files lack it."""
        return self.texts(name) if self._members.get(name) else ()

    def number(self, name: str) -> int:
        value = self._members.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._lacks(name)
        return value

    def file(self, name: str) -> bytes:
        """Return the bytes of the file that a member names."""
        return read_input(self._path.parent / self.text(name))

    def keys(self, name: str) -> tuple[bytes, ...]:
        """Return a list of hexadecimal keys."""
        value = self._members.get(name)
        try:
            if not isinstance(value, list) or not value:
                raise ValueError("no list")
            return tuple(bytes.fromhex(key) for key in value)
        except (TypeError, ValueError) as error:
            raise self._lacks(name) from error

    def _lacks(self, name: str) -> InputUnreadable:
        return InputUnreadable(f"{self._path} has no usable {name}: is the mesh up?")
