"""Responsible for the file of the receipt store: its tables, its versions, and that what is deleted is overwritten.

Whoever keeps something in it works through `StoreFile`: in threads, one at a time.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from libs.errors import Code, MeshError

T = TypeVar("T")

SCHEMA_VERSION = 4
BUSY_SECONDS = 5.0
_OVERWRITES = 2
"""Since this version, what is deleted is overwritten."""

VERSION_1 = """
CREATE TABLE receipts (
  position INTEGER PRIMARY KEY AUTOINCREMENT,
  receipt_id TEXT NOT NULL UNIQUE,
  chat_id TEXT,
  tenant_id TEXT NOT NULL,
  receipt BLOB NOT NULL,
  entry BLOB NOT NULL,
  salt BLOB NOT NULL,
  entry_id BLOB NOT NULL,
  issuer_seq INTEGER NOT NULL,
  acknowledgement BLOB,
  attested BLOB
) STRICT;
CREATE TABLE pending (
  position INTEGER PRIMARY KEY AUTOINCREMENT,
  receipt_id TEXT NOT NULL UNIQUE,
  chat_id TEXT,
  tenant_id TEXT NOT NULL,
  receipt BLOB NOT NULL
) STRICT;
CREATE TABLE evidence (digest BLOB PRIMARY KEY, document BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX receipts_by_chat ON receipts (tenant_id, chat_id, position);
CREATE INDEX receipts_by_entry ON receipts (entry_id);
"""
SINCE_VERSION_1 = """
ALTER TABLE receipts ADD COLUMN vault_id BLOB;
ALTER TABLE receipts ADD COLUMN vault_epoch INTEGER;
CREATE INDEX receipts_by_vault ON receipts (vault_id, vault_epoch);
CREATE TABLE erased (vault_id BLOB NOT NULL, vault_epoch INTEGER) STRICT;
CREATE TABLE erasures_read (id INTEGER PRIMARY KEY CHECK (id = 1), token BLOB NOT NULL) STRICT;
"""
SINCE_VERSION_2 = """
CREATE TABLE usage (
  position INTEGER PRIMARY KEY AUTOINCREMENT,
  tenant_id TEXT NOT NULL,
  vault_id BLOB NOT NULL,
  vault_epoch INTEGER NOT NULL,
  entry_id BLOB NOT NULL,
  body BLOB NOT NULL
) STRICT;
CREATE INDEX usage_by_tenant ON usage (tenant_id, position);
CREATE INDEX usage_by_vault ON usage (vault_id, vault_epoch);
ALTER TABLE receipts ADD COLUMN kept_at INTEGER NOT NULL DEFAULT 0;
UPDATE receipts SET kept_at = CAST(strftime('%s', 'now') AS INTEGER);
CREATE TABLE cited (digest BLOB PRIMARY KEY, position INTEGER NOT NULL, kept_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX cited_by_position ON cited (position);
INSERT INTO cited SELECT digest, (SELECT COALESCE(max(position), 0) FROM receipts),
  CAST(strftime('%s', 'now') AS INTEGER) FROM evidence;
"""
"""What an earlier version kept was kept just now, as far as anybody knows, and each of its receipts may cite all of its
documents."""

_PAGE, _ROW = 4096, 256
"""SQLite's page, and what a row takes beside what is counted of it, indexes and all."""


def _room(octets: str) -> str:
    """What a row with so many bytes takes of the file, as near as that can be told: whole pages, or its part of one."""
    row = f"({octets} + {_ROW})"
    pages, part = f"({row} + {_PAGE - 1}) / {_PAGE} * {_PAGE}", f"{_PAGE} / ({_PAGE} / {row})"
    return f"CASE WHEN {row} > {_PAGE} THEN {pages} ELSE {part} END"


def _measured(table: str, column: str) -> str:
    """Keep the sum of what a table takes, whoever writes to it."""
    more = "UPDATE beside SET octets = octets"
    return f"""
INSERT INTO beside SELECT '{table}', COALESCE(sum({_room(f"length({column})")}), 0) FROM {table};
CREATE TRIGGER {table}_in AFTER INSERT ON {table}
  BEGIN {more} + {_room(f"length(NEW.{column})")} WHERE name = '{table}'; END;
CREATE TRIGGER {table}_out AFTER DELETE ON {table}
  BEGIN {more} - {_room(f"length(OLD.{column})")} WHERE name = '{table}'; END;
"""  # noqa: S608 - constant names


_SINCE_VERSION_3 = f"""
CREATE TABLE beside (name TEXT PRIMARY KEY, octets INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX pending_by_tenant ON pending (tenant_id, position);
{_measured("usage", "body")}
{_measured("pending", "receipt")}
"""
"""What lies beside the receipts, measured, so that receipts do not go because of it."""


class ReceiptStoreFailed(MeshError):
    """The store cannot be read or written: the disk, or another process's lock."""

    code = Code.UNAVAILABLE
    reason = "RECEIPT_STORE_FAILED"

    @classmethod
    def by(cls, error: Exception) -> ReceiptStoreFailed:
        return cls(f"the receipt store failed: {type(error).__name__}")


class ReceiptStoreUnusable(MeshError):
    """The file is not a receipt store of this version."""

    reason = "RECEIPT_STORE_UNUSABLE"


class StoreFile:
    """The open file. Work is given the connection, and MUST leave no transaction open: `with connection` ends one."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        # Not an asyncio lock: a cancelled caller leaves its thread at work, and the next must still wait for it.
        self._lock = threading.Lock()

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do some work in a thread, and return what it does. Raises `ReceiptStoreFailed`."""
        return await asyncio.to_thread(self.run_now, work)

    def run_now(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The same in this thread, which it blocks. Raises `ReceiptStoreFailed`."""
        with self._lock:
            try:
                return work(self._connection)
            except sqlite3.Error as error:
                raise ReceiptStoreFailed.by(error) from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def taken(connection: sqlite3.Connection, table: str) -> int:
    """Return how much room one of the tables beside the receipts takes, bytes."""
    (octets,) = connection.execute("SELECT octets FROM beside WHERE name = ?", (table,)).fetchone()
    return int(octets)


def connect(path: Path) -> sqlite3.Connection:
    """Open or create the file, readable by this user only. Raises `ReceiptStoreUnusable` or `ReceiptStoreFailed`."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise ReceiptStoreFailed(f"cannot open the receipt store {path}") from error
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL, so that what `put` returned from survives a power cut and not only a crash.
        connection.execute("PRAGMA synchronous = FULL")
        # A deleted receipt must not stay in a free page: its tenant may have been erased.
        connection.execute("PRAGMA secure_delete = ON")
        _migrate(connection, path)
    except sqlite3.OperationalError as error:
        connection.close()
        raise ReceiptStoreFailed(f"cannot use the receipt store {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        connection.close()
        raise ReceiptStoreUnusable(f"{path} is not a receipt store") from error
    except MeshError:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    with closing(connection.execute("PRAGMA user_version")) as cursor:
        version = cursor.fetchone()[0]
    if version not in range(SCHEMA_VERSION + 1):
        raise ReceiptStoreUnusable(f"{path} has version {version}, this router knows {SCHEMA_VERSION}")
    if version == SCHEMA_VERSION:
        return
    made = "".join((VERSION_1, SINCE_VERSION_1, SINCE_VERSION_2, _SINCE_VERSION_3)[version:])
    connection.executescript(f"BEGIN; {made} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    if version < _OVERWRITES:
        # What that version deleted is still in free pages.
        connection.execute("VACUUM")
