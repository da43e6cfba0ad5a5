"""It is responsible for the files that a command reads and writes, so that a bad path is one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libs import jcs
from libs.errors import Code, MeshError
from libs.files import write_durably


class InputUnreadable(MeshError):
    """A file or a value that the command was given cannot be used."""

    code = Code.INVALID_ARGUMENT
    reason = "INPUT_UNREADABLE"


class OutputUnwritable(MeshError):
    """The file cannot be written."""

    reason = "OUTPUT_UNWRITABLE"


class OutputExists(MeshError):
    """The file to be written exists."""

    code = Code.ALREADY_EXISTS
    reason = "OUTPUT_EXISTS"


def read_input(path: Path) -> bytes:
    """Return a file's bytes. Raises `InputUnreadable`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputUnreadable(f"cannot read {path}: {error.strerror}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object. Raises `InputUnreadable`."""
    try:
        return jcs.loads_object(read_input(path))
    except jcs.JsonMalformed as error:
        raise InputUnreadable(f"{path} is {error}") from error


def write_output(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file, by default one that anyone may read, whole or not at all. Raises `OutputUnwritable`."""
    try:
        write_durably(path, data, mode)
    except OSError as error:
        raise OutputUnwritable(f"cannot write {path}: {error.strerror}") from error


def refuse_existing(path: Path) -> None:
    """Raise `OutputExists` when the file is there: commands do not overwrite what someone may have signed."""
    if path.exists():
        raise OutputExists(f"{path} exists: choose another name, or remove it first")
