"""It is responsible for a log's files as a command is given them: a ledger's folder, read and never written."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from services.cli.mesh.layout import add_state_option, layout_of
from services.cli.terminal.inputs import InputUnreadable

SEGMENTS = "seg"
BARE = "bare"
DESCRIPTION = "log.json"


@dataclass(frozen=True, slots=True)
class LogFolder:
    """The folder in which a ledger keeps its log, or a copy of one. Raises `InputUnreadable`."""

    path: Path

    def segments(self) -> Sequence[str]:
        bare = self._names(BARE) if (self.path / BARE).is_dir() else ()
        return sorted({*self._names(SEGMENTS), *bare})

    def is_bare(self, name: str) -> bool:
        return not (self.path / SEGMENTS / name).exists()

    def open_segment(self, name: str) -> BinaryIO:
        path = self.path / (BARE if self.is_bare(name) else SEGMENTS) / name
        with _readable(path):
            return path.open("rb")

    def _names(self, folder: str) -> Sequence[str]:
        path = self.path / folder
        with _readable(path):
            return [entry.name for entry in os.scandir(path)]

    def read(self, name: str) -> bytes | None:
        path = self.path / name
        with _readable(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def open_beside(self, name: str) -> BinaryIO | None:
        """Open a file that a ledger may append to, or empty, meanwhile."""
        path = self.path / name
        with _readable(path):
            try:
                return path.open("rb")
            except FileNotFoundError:
                return None


def add_log_argument(parser: argparse.ArgumentParser) -> None:
    """Add the log that a command is about: a folder, by default the local mesh's."""
    parser.add_argument("log", type=Path, nargs="?", metavar="PATH", help="the log's folder; default: the local mesh's")
    add_state_option(parser)


def log_folder(args: argparse.Namespace) -> Path:
    """Return the folder. Raises `InputUnreadable`."""
    path: Path = args.log or layout_of(args).state("ledger") / "log"
    if not is_log(path):
        raise InputUnreadable(f"{path} holds no log")
    return path


def is_log(path: Path) -> bool:
    """Whether a folder has a log in it, however damaged."""
    return (path / SEGMENTS).is_dir() or (path / DESCRIPTION).is_file()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputUnreadable(f"cannot read {path}: {error.strerror}") from error
