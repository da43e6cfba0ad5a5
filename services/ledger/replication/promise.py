"""It is responsible for what this member has promised: in which epoch, and to whom. Durable before anyone is told.

A member that forgot could vote twice in one epoch, and two could write. So a promise that cannot be read keeps the
member down, and one that never was is told from one that was lost: such a member is not settled. One that is older than
what was promised looks like any other: what the others say that it may have forgotten is kept here, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from libs import jcs
from libs.errors import MeshError
from libs.files import fsync_dir, remove_drafts, write_durably
from services.ledger.storage.damage import LogBroken, LogDamaged

FOLDER = "replication"
NAME = "promise"
_FORMAT = 1
_TYPES = {"format": int, "epoch": int, "to": str, "settled": bool}


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """How far a log goes, as votes compare it."""

    last_epoch: int
    """Of the last frame."""
    size: int
    """How many leaves it has."""


NOTHING = Extent(0, 0)


@dataclass(frozen=True, slots=True)
class Promise:
    """What a member stands by."""

    epoch: int
    to: str = ""
    """The instance that has this member's vote in the epoch, or that it follows; empty: nobody yet."""
    settled: bool = False
    """Whether it holds all that it ever answered for. A new member does not, nor does one whose disk was emptied."""
    forgotten: Extent = NOTHING
    """How far the log went, at most, that it answered for and may have forgotten."""

    def document(self) -> bytes:
        members: dict[str, Any] = {"format": _FORMAT, "epoch": self.epoch, "to": self.to, "settled": self.settled}
        if self.forgotten != NOTHING:
            members["forgotten"] = [self.forgotten.last_epoch, self.forgotten.size]
        members["sha256"] = sha256(jcs.dumps(members)).hexdigest()
        return jcs.dumps(members) + b"\n"


class MembersMissing(MeshError):
    """The log was kept with other members: configure them, or it would go on without what they hold."""

    reason = "MEMBERS_MISSING"


def require_no_promise(directory: Path) -> None:
    """Raise `MembersMissing` where a log that is to be kept alone was kept with others."""
    if (directory / FOLDER / NAME).exists():
        raise MembersMissing(f"{directory} holds a log with other members: name them in [replication]")


def read_promise(directory: Path) -> Promise | None:
    """Return what the member whose log this is has promised; None where it never did. Raises `LogDamaged`."""
    return _read(directory / FOLDER / NAME)


class PromiseFile:
    """The file of one member's promise. Owned by one process."""

    def __init__(self, directory: Path) -> None:
        """`directory` is the log's. Raises `LogBroken`."""
        folder = directory / FOLDER
        self._path = folder / NAME
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            fsync_dir(directory)
            remove_drafts(folder, re.compile(re.escape(NAME)))
        except OSError as error:
            raise LogBroken(f"{FOLDER} could not be made: {error.strerror}") from error

    def load(self) -> Promise | None:
        """Return the promise, or None where none was ever made. Raises `LogDamaged`."""
        return _read(self._path)

    def store(self, promise: Promise) -> None:
        """Replace the promise. It IS durable when this returns. Raises `LogBroken`."""
        try:
            write_durably(self._path, promise.document())
        except OSError as error:
            raise LogBroken(f"the promise could not be written: {error.strerror}") from error


def _read(path: Path) -> Promise | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        members = jcs.loads_object(data)
        if any(type(members.get(name)) is not kind for name, kind in _TYPES.items()):
            raise ValueError("a member is missing or has the wrong type")
        promise = Promise(members["epoch"], members["to"], members["settled"], _extent(members.get("forgotten")))
    except (jcs.JsonMalformed, ValueError) as error:
        raise LogDamaged(f"{FOLDER}/{NAME}", 0, f"it is no promise: {error}") from error
    if promise.document() != data:
        raise LogDamaged(f"{FOLDER}/{NAME}", 0, "it does not match its own hash")
    return promise


def _extent(value: Any) -> Extent:
    """Return what a document says was forgotten; absent where nothing was. Raises `ValueError`."""
    if value is None:
        return NOTHING
    if not isinstance(value, list) or [type(each) for each in value] != [int, int]:
        raise ValueError("what was forgotten is an epoch and a size")
    return Extent(*value)
