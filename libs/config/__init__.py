"""It is responsible for reading a service's TOML file into frozen dataclasses, strictly.

A key that is unknown, missing or of another type refuses to start, in one line that names the file and the key.
Relative paths are relative to the file's folder, so a service may be started from anywhere.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from libs.errors import Code, MeshError

T = TypeVar("T")


class ConfigInvalid(MeshError):
    """The configuration cannot be used."""

    code = Code.INVALID_ARGUMENT
    reason = "CONFIG_INVALID"


class _Wrong(Exception):
    """What is wrong with one key; `load` adds the file's name."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(f"{key or 'the file'}: {what}")


def load(path: Path, kind: type[T]) -> T:
    """Read `path` as the dataclass `kind`. Raises `ConfigInvalid`.

    Fields may be str, int, float, bool, Path, Literal, optional, a nested dataclass, tuple[X, ...], frozenset[X] or
    Mapping[str, X]. A `ValueError` from a `__post_init__` is reported against its table.

    A dataclass may have a class variable `MOVED`: where keys of earlier versions are now, each in a table beside them
    ("old": "table.name"). They are read as if they were there.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigInvalid(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigInvalid(f"{path}: not TOML: {error}") from error
    try:
        return cast(T, _Reader(path.absolute().parent).value(kind, table, ""))
    except _Wrong as error:
        raise ConfigInvalid(f"{path}: {error}") from error


class _Reader:
    """Turns TOML values into typed ones; `key` is the dotted key of the value at hand."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def value(self, kind: Any, value: Any, key: str) -> Any:
        if dataclasses.is_dataclass(kind):
            return self._dataclass(cast(type[Any], kind), value, key)
        origin = typing.get_origin(kind)
        if origin in (typing.Union, types.UnionType):
            return self._optional(kind, value, key)
        if origin is typing.Literal:
            if value not in typing.get_args(kind):
                raise _Wrong(key, f"must be one of {', '.join(map(repr, typing.get_args(kind)))}")
            return value
        if origin in (tuple, frozenset):
            items = _expect(list, value, key)
            inner = typing.get_args(kind)[0]
            return origin(self.value(inner, item, f"{key}[{place}]") for place, item in enumerate(items))
        if origin is not None and issubclass(origin, Mapping):
            inner = typing.get_args(kind)[1]
            return {name: self.value(inner, item, _join(key, name)) for name, item in _expect(dict, value, key).items()}
        return self._plain(kind, value, key)

    def _plain(self, kind: Any, value: Any, key: str) -> Any:
        if kind is Path:
            return self._folder / _expect(str, value, key)  # An absolute path stays what it is.
        if kind is float and type(value) is int:
            return float(value)
        if kind in (str, int, float, bool):
            return _expect(kind, value, key)
        raise TypeError(f"{key}: a configuration field cannot be a {kind}")

    def _optional(self, kind: Any, value: Any, key: str) -> Any:
        """TOML has no null: what is written is meant, and absence is the field's default."""
        inner = [each for each in typing.get_args(kind) if each is not type(None)]
        if len(inner) != 1:
            raise TypeError(f"{key}: a configuration field cannot be a {kind}")
        return self.value(inner[0], value, key)

    def _dataclass(self, kind: type[Any], value: Any, key: str) -> Any:
        table = _moved(getattr(kind, "MOVED", {}), _expect(dict, value, key), key)
        hints = typing.get_type_hints(kind)
        fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
        for name in table:
            if name not in fields:
                raise _Wrong(_join(key, name), "unknown key")
        for name, field in fields.items():
            no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if no_default and name not in table:
                raise _Wrong(_join(key, name), "missing")
        values = {name: self.value(hints[name], item, _join(key, name)) for name, item in table.items()}
        try:
            return kind(**values)
        except ValueError as error:
            raise _Wrong(key, str(error)) from error


_NAMES = {dict: "a table", list: "an array", str: "a string", int: "an integer", float: "a number", bool: "a boolean"}


def _moved(moves: Mapping[str, str], table: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the table with keys of earlier versions where they are now. One that is in both places is refused."""
    result = dict(table)
    for old in moves.keys() & table.keys():
        place, _, name = moves[old].partition(".")
        inner = _expect(dict, result.get(place, {}), _join(key, place))
        if name in inner:
            raise _Wrong(_join(key, old), f"is {_join(key, moves[old])} now, which is there, too")
        result[place] = {**inner, name: result.pop(old)}
    return result


def _expect(kind: type[T], value: Any, key: str) -> T:
    # Exactly the type: a boolean is an int in Python, not in TOML.
    if type(value) is not kind:
        raise _Wrong(key, f"must be {_NAMES[kind]}")
    return value


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
