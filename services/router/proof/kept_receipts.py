"""Responsible for the router's own durable copy of each receipt and of what proves it in the ledger.

A restart loses none that was put. A receipt is found by its id first, then by the response's own id, newest first, and
only by the tenant whose request made it: to everybody else it does not exist. Only hashes are stored, never a prompt.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from services.router.errors import NotFound
from services.router.proof import citations
from services.router.proof.erased import is_erased
from services.router.proof.file import StoreFile, taken
from services.router.proof.shared_commits import SharedCommits

MAX_IDENTIFIER = 256
_AT_ONCE = 200
_DOCUMENTS_AT_ONCE = 20

_COLUMNS = (
    "receipt_id, chat_id, tenant_id, receipt, entry, salt, entry_id, issuer_seq, acknowledgement, attested, "
    "vault_id, vault_epoch"
)


class ReceiptNotFound(NotFound):
    """There is no such receipt, or not for this tenant. The same for all, so that nothing is learned by asking."""

    def __init__(self) -> None:
        super().__init__("no such receipt; it may have expired")


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """A receipt, the ledger entry that carries it, and what opens and proves that entry."""

    receipt_id: str
    chat_id: str | None
    tenant_id: str
    receipt: bytes
    """The signed ACI document, canonical JSON."""
    entry: bytes = field(repr=False)
    """The canonical ledger entry, as published."""
    salt: bytes = field(repr=False)
    """Opens the entry's commitment."""
    entry_id: bytes
    issuer_seq: int
    acknowledgement: bytes | None = None
    """Serialised `teemesh.ledger.v1.Acknowledgement`, verified; None where an earlier version had none yet."""
    attested: bytes | None = None
    """Whose evidence stands behind entry and acknowledgement: see `commitments.Attested`."""
    vault_id: bytes | None = None
    """Where the ledger has the entry, by which an erasure names it; None in what an earlier version kept."""
    vault_epoch: int | None = None


@dataclass(frozen=True, slots=True)
class LetGo:
    """What one step of letting go did, in numbers."""

    aged: int
    """Receipts that had been kept for their time."""
    crowded: int
    """Receipts that went before it."""
    documents: int

    @property
    def is_some(self) -> bool:
        return bool(self.aged or self.crowded or self.documents)


class KeptReceipts:
    """The receipts in the store's file. `clock` is in Unix seconds."""

    def __init__(self, file: StoreFile, clock: Callable[[], float]) -> None:
        self._file = file
        self._commits = SharedCommits(file)
        self._clock = clock

    async def put(self, stored: StoredReceipt, cited: Mapping[bytes, bytes | None] | None = None) -> bool:
        """Store a receipt durably, and by their digests the documents that it rests on: they stay as long as it does.
        None stands for one that is kept already. Return False where an erasure overtook it, and nothing is kept. Raises
        `ReceiptStoreFailed`.
        """
        kept = False

        def write(transaction: sqlite3.Connection) -> None:
            nonlocal kept
            kept = _put(transaction, stored, cited or {}, int(self._clock()))

        await self._commits.write(write)
        return kept

    async def let_go(self, before: int, most_bytes: int) -> LetGo:
        """Delete some receipts that were kept before this time, Unix seconds, or, where none was, some of the oldest if
        they take more than so many bytes with what they rest on; and some documents that none cites any more. Raises
        `ReceiptStoreFailed`.

        The bytes are overwritten, and the room is for what comes next: the file does not become smaller, as moving what
        is left would leave copies of it in blocks that are nobody's.
        """
        return await self._file.run(lambda connection: _let_go(connection, before, most_bytes, int(self._clock())))

    async def find(self, identifier: str, tenant_id: str) -> StoredReceipt:
        """Return this tenant's receipt of that id, or else its newest for that response id. Raises `ReceiptNotFound` or
        `ReceiptStoreFailed`.
        """
        if len(identifier) > MAX_IDENTIFIER or not identifier.isascii():
            raise ReceiptNotFound
        row = await self._file.run(lambda connection: _find(connection, identifier, tenant_id))
        if row is None:
            raise ReceiptNotFound
        return StoredReceipt(*row)


def _put(transaction: sqlite3.Connection, stored: StoredReceipt, cited: Mapping[bytes, bytes | None], now: int) -> bool:
    if is_erased(transaction, stored.vault_id, stored.vault_epoch):
        return False
    position = transaction.execute(
        f"INSERT INTO receipts ({_COLUMNS}, kept_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constant names
        (
            stored.receipt_id,
            stored.chat_id,
            stored.tenant_id,
            stored.receipt,
            stored.entry,
            stored.salt,
            stored.entry_id,
            stored.issuer_seq,
            stored.acknowledgement,
            stored.attested,
            stored.vault_id,
            stored.vault_epoch,
            now,
        ),
    ).lastrowid
    if position is not None:
        citations.cite(transaction, position, cited, now)
    return True


def _let_go(connection: sqlite3.Connection, before: int, most_bytes: int, now: int) -> LetGo:
    with connection as transaction:
        oldest = transaction.execute(
            "SELECT position, kept_at FROM receipts ORDER BY position LIMIT ?", (_AT_ONCE,)
        ).fetchall()
        due = [position for position, _ in takewhile(lambda row: row[1] < before, oldest)]
        aged, crowded = len(due), 0
        if not due and _size(transaction) > most_bytes:
            due = [position for position, _ in oldest]
            crowded = len(due)
        if due:
            transaction.execute("DELETE FROM receipts WHERE position <= ?", (due[-1],))
        documents = citations.let_go(transaction, now, _DOCUMENTS_AT_ONCE)
    return LetGo(aged, crowded, documents)


def _size(connection: sqlite3.Connection) -> int:
    """How much is in use for receipts and what they rest on, bytes: what was deleted is room, and what lies beside them
    has bounds of its own.
    """
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size) - taken(connection, "usage") - taken(connection, "pending")


def _find(connection: sqlite3.Connection, identifier: str, tenant_id: str) -> tuple[Any, ...] | None:
    query = f"SELECT {_COLUMNS} FROM receipts WHERE tenant_id = ? AND "  # noqa: S608 - constant names
    for condition in ("receipt_id = ?", "chat_id = ? ORDER BY position DESC LIMIT 1"):
        row: tuple[Any, ...] | None = connection.execute(query + condition, (tenant_id, identifier)).fetchone()
        if row is not None:
            return row
    return None
