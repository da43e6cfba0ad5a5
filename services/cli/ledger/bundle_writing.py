"""It is responsible for writing a log's files anew: into a folder, or as an archive, each only as its hash says."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from libs.errors import Code, MeshError
from libs.files import fsync_dir
from services.cli.ledger.bundle import copied
from services.cli.terminal.inputs import OutputUnwritable

Add = Callable[[str, BinaryIO, int | None, str], None]
"""Adds a file: its name, where it is read from, how much of it (None: all), and its SHA-256."""


class FileChanged(MeshError):
    """A file is another than its hash says: it was damaged, or changed while it was copied."""

    code = Code.DATA_LOSS
    reason = "FILE_CHANGED"


@contextmanager
def writing_folder(to: Path) -> Iterator[Add]:
    """Give a function that adds files to a new folder; each is on disk when it returns. Raises `OutputUnwritable`.

    The function raises `FileChanged`.
    """

    def add(name: str, content: BinaryIO, length: int | None, digest: str) -> None:
        path = to / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            return  # Two names of one content.
        with path.open("xb") as file:
            found = copied(content, file, length)
            file.flush()
            os.fsync(file.fileno())
        fsync_dir(path.parent)
        if found != digest:
            path.unlink()
            raise FileChanged(f"{name} is not what its hash says")

    with _writable(to):
        to.mkdir(mode=0o700)
        yield add
        fsync_dir(to)


@contextmanager
def writing_archive(to: Path) -> Iterator[Add]:
    """Give a function that adds files to a new archive, which needs to know how long each is."""

    def add(name: str, content: BinaryIO, length: int | None, digest: str) -> None:
        if length is None:
            raise ValueError("an archive states a file's length before its content")
        member = tarfile.TarInfo(name)
        member.size, member.mode = length, 0o600
        hashed = _Hashed(content)
        archive.addfile(member, hashed)
        if hashed.content.hexdigest() != digest:
            raise FileChanged(f"{name} is not what its hash says")

    with _writable(to), tarfile.open(to, "x:") as archive:
        yield add


class _Hashed:
    """What was read of a file, hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.content = sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.content.update(data)
        return data


@contextmanager
def _writable(to: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, tarfile.TarError) as error:
        raise OutputUnwritable(f"cannot write {to}: {error}") from error
