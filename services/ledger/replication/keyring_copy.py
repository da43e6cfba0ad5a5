"""It is responsible for this member's copy of the keyring: what a writer gave it, encrypted, and from which writer.

The newest is the one of the latest writer and, of one writer, that of the highest generation. Before a keyring counts,
a majority has it; a new writer takes the newest that a majority knows of, and gives it to a majority as its own.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from libs.errors import Code, MeshError
from libs.files import fsync_dir, remove_drafts, write_durably
from services.ledger.replication.promise import FOLDER
from services.ledger.storage import keyring
from services.ledger.storage.damage import LogBroken, LogDamaged

NAME = "keyring"
MAX_BYTES = 64 << 20
_HEAD = struct.Struct(">8sQQ")
_MAGIC = b"TMKC0001"
_HASH_SIZE = 32


class KeyringMalformed(MeshError):
    """What came is no keyring: too large, or of several writers."""

    code = Code.INVALID_ARGUMENT
    reason = "KEYRING_MALFORMED"


@dataclass(frozen=True, slots=True)
class KeyringCopy:
    """A keyring as a writer gave it. Epoch 0 is that of a log before it had several members."""

    epoch: int
    generation: int
    content: bytes = field(repr=False)
    """The bytes of the keyring's file; empty where the log has no vault yet."""

    @property
    def version(self) -> tuple[int, int]:
        return self.epoch, self.generation


NO_KEYRING = KeyringCopy(0, 0, b"")


def read_keyring_copy(directory: Path) -> KeyringCopy | None:
    """Return the copy of the member whose log this is, and change nothing. Raises `LogDamaged`."""
    return _read(directory / FOLDER / NAME)


class KeyringCopyFile:
    """The copy, and the file that the writer among the members works with."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FOLDER / NAME
        self._writers = directory / keyring.NAME
        remove_drafts(directory / FOLDER, re.compile(re.escape(NAME)))

    def load(self) -> KeyringCopy:
        """Return the copy; before there is one, what this machine alone had.

        Where there is one, what a writer on this machine worked with is gone after this. Raises `LogDamaged` or
        `LogBroken`.
        """
        copy = _read(self._path)
        if copy is None:
            return KeyringCopy(0, 0, self.writers_own())
        self.forget_writers_own()
        return copy

    def store(self, copy: KeyringCopy) -> None:
        """Replace the copy. It IS durable when this returns. Raises `LogBroken`."""
        body = _HEAD.pack(_MAGIC, copy.epoch, copy.generation) + copy.content
        try:
            write_durably(self._path, body + sha256(body).digest())
        except OSError as error:
            raise LogBroken(f"the copy of the keyring could not be written: {error.strerror}") from error

    def writers_own(self) -> bytes:
        """Return the file that a writer on this machine works with, empty where there is none."""
        try:
            return self._writers.read_bytes()
        except FileNotFoundError:
            return b""

    def install(self, copy: KeyringCopy) -> None:
        """Let the writer begin with this copy. Raises `LogBroken`."""
        if not copy.content:
            self.forget_writers_own()
            return
        try:
            write_durably(self._writers, copy.content)
        except OSError as error:
            raise LogBroken(f"the keyring could not be written: {error.strerror}") from error

    def forget_writers_own(self) -> None:
        """Remove what an earlier writer on this machine worked with: it may hold shares that are erased since."""
        try:
            if self._writers.exists():
                os.unlink(self._writers)
                fsync_dir(self._writers.parent)
        except OSError as error:
            raise LogBroken(f"the keyring could not be removed: {error.strerror}") from error


def _read(path: Path) -> KeyringCopy | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < _HEAD.size + _HASH_SIZE or sha256(data[:-_HASH_SIZE]).digest() != data[-_HASH_SIZE:]:
        raise LogDamaged(f"{FOLDER}/{NAME}", 0, "it does not match its own hash")
    magic, epoch, generation = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise LogDamaged(f"{FOLDER}/{NAME}", 0, "it is no copy of version 1")
    return KeyringCopy(epoch, generation, data[_HEAD.size : -_HASH_SIZE])
