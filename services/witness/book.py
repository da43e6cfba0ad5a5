"""It is responsible for what a witness remembers: of each log the newest checkpoint that it cosigned, durably.

Judging a request and remembering its outcome is one transaction, so that no two requests are judged by the same memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from libs.errors import Code, MeshError
from libs.files import fsync_dir
from libs.transparency import checkpoint as checkpoints
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.cosignature import CosignerKey, verify_cosignature
from libs.transparency.note import VerifierKey

NAME = "book.sqlite"
_FORMAT = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS logs (
    origin TEXT PRIMARY KEY,
    note BLOB NOT NULL,
    attested TEXT
) STRICT
"""


class BookDamaged(MeshError):
    """What the witness remembered cannot be read, or was not written by it."""

    code = Code.DATA_LOSS
    reason = "BOOK_DAMAGED"
    exit_status = 3


class BookBroken(MeshError):
    """A write failed. The process MUST end: what is on disk is unknown."""

    code = Code.DATA_LOSS
    reason = "BOOK_BROKEN"
    exit_status = 70


@dataclass(frozen=True, slots=True)
class Remembered:
    """The newest checkpoint of one log."""

    note: bytes
    """As the log signed it, with this witness's own lines."""
    attested: VerifierKey | None
    """The key that evidence brought, where it was brought so."""

    @property
    def tree(self) -> Checkpoint:
        return checkpoints.parse(self.note)


class Book:
    """One file, one process. For one thread."""

    def __init__(self, folder: Path, own: Sequence[CosignerKey]) -> None:
        """Open the book and verify every line of it by the witness's own signatures. Raises `BookDamaged`."""
        path = folder / NAME
        try:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # With the journal ahead of the file, FULL syncs at every commit.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version not in (0, _FORMAT):
                raise BookDamaged(f"{path} is of another version")
            self._database.execute(_TABLE)
            self._database.execute(f"PRAGMA user_version={_FORMAT}")
            fsync_dir(folder)
            for (origin,) in self._database.execute("SELECT origin FROM logs").fetchall():
                _verify(origin, self._find(origin), own)
        except (sqlite3.Error, OSError) as error:
            raise BookDamaged(f"{path} cannot be read: {error}") from error

    def close(self) -> None:
        self._database.close()

    def newest(self, origin: str) -> Remembered | None:
        return self._find(origin)

    @contextmanager
    def page(self, origin: str) -> Iterator[Page]:
        """Judge in the body what may be remembered; when it ends well, that IS durable. Raises `BookBroken`."""
        with _writing():
            self._database.execute("BEGIN IMMEDIATE")
        try:
            page = Page(self._find(origin))
            yield page
            if page.following is not None:
                with _writing():
                    self._write(origin, page.following)
                    self._database.execute("COMMIT")
        finally:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")

    def _write(self, origin: str, remembered: Remembered) -> None:
        attested = None if remembered.attested is None else remembered.attested.text()
        self._database.execute(
            "INSERT INTO logs VALUES (?, ?, ?) "
            "ON CONFLICT (origin) DO UPDATE SET note = excluded.note, attested = excluded.attested",
            (origin, remembered.note, attested),
        )

    def _find(self, origin: str) -> Remembered | None:
        row = self._database.execute("SELECT note, attested FROM logs WHERE origin = ?", (origin,)).fetchone()
        if row is None:
            return None
        try:
            return Remembered(row[0], None if row[1] is None else VerifierKey.parse(row[1]))
        except MeshError as error:
            raise BookDamaged(f"what is remembered of {origin} is damaged: {error}") from error


class Page:
    """What is remembered of one log, and what is to be."""

    __slots__ = ("following", "remembered")

    def __init__(self, remembered: Remembered | None) -> None:
        self.remembered = remembered
        self.following: Remembered | None = None


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise BookBroken(f"the book could not be written: {error}") from error


def _verify(origin: str, remembered: Remembered | None, own: Sequence[CosignerKey]) -> None:
    try:
        if remembered is None or remembered.tree.origin != origin:
            raise BookDamaged(f"what is remembered of {origin} is of another log")
        for key in own:
            verify_cosignature(remembered.note, key)
    except MeshError as error:
        raise BookDamaged(f"what is remembered of {origin} is damaged: {error}") from error
