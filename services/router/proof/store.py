"""Responsible for the router's own durable copy of each receipt and of what proves it in the ledger.

A restart loses none that was put. A receipt is found by its id first, then by the response's own id, newest first, and
only by the tenant whose request made it: to everybody else it does not exist. Only hashes are stored, never a prompt.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from libs.policy.vault_orders import VaultPart
from services.router.errors import NotFound
from services.router.proof.file import ReceiptStoreFailed, connect

MAX_IDENTIFIER = 256
MOST_USAGE = 100_000
"""So many copies of usage entries, of all tenants together."""
USAGE_PAGE = 50
"""An entry has at most some 200 KB, and mostly less than one."""

T = TypeVar("T")

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
    """Serialised `teemesh.ledger.v1.Acknowledgement`, verified; None while the ledger has not answered."""
    attested: bytes | None = None
    """Whose evidence stands behind entry and acknowledgement: see `commitments.Attested`."""
    vault_id: bytes | None = None
    """Where the ledger has the entry, by which an erasure names it; None in what an earlier version kept."""
    vault_epoch: int | None = None


@dataclass(frozen=True, slots=True)
class StoredUsage:
    """What this router logged of a tenant's use, once."""

    tenant_id: str
    vault_id: bytes
    vault_epoch: int
    entry_id: bytes
    body: bytes
    """Canonical JSON."""


@dataclass(frozen=True, slots=True)
class PendingReceipt:
    """A signed receipt that the ledger has yet to be given: nobody waits for it, and nobody may lose it."""

    receipt_id: str
    chat_id: str | None
    tenant_id: str
    receipt: bytes


class ReceiptStore:
    """Receipts in SQLite. Calls run in threads, one at a time."""

    def __init__(self, connection: sqlite3.Connection, retained: int) -> None:
        self._connection = connection
        self._retained = retained
        # Not an asyncio lock: a cancelled caller leaves its thread at work, and the next must still wait for it.
        self._lock = threading.Lock()

    async def put(self, stored: StoredReceipt) -> None:
        """Store a receipt durably, then drop the oldest beyond what is retained. Raises `ReceiptStoreFailed`."""
        await asyncio.to_thread(self._locked, lambda: self._put(stored))

    async def acknowledge(self, entry_id: bytes, acknowledgement: bytes) -> None:
        """Add the ledger's acknowledgement, which MUST be verified. No effect when the receipt is no longer kept."""
        await asyncio.to_thread(self._locked, lambda: self._acknowledge(entry_id, acknowledgement))

    def put_off(self, pending: PendingReceipt) -> None:
        """Keep a receipt for the ledger, durably. It does not wait, so that no cancellation comes between.

        It blocks for one commit to disk: for the few requests whose client has left or whose vault is out of reach.
        """
        self._locked(lambda: self._put_off(pending))

    async def pending(self, limit: int) -> list[PendingReceipt]:
        """Return the oldest receipts that were put off and not settled."""
        rows = await asyncio.to_thread(self._locked, lambda: self._pending(limit))
        return [PendingReceipt(*row) for row in rows]

    async def settle(self, receipt_id: str) -> None:
        """The ledger has it."""
        await asyncio.to_thread(self._locked, lambda: self._settle(receipt_id))

    async def keep_usage(self, usage: StoredUsage) -> None:
        """Keep a copy durably, then drop the oldest beyond what is retained. Raises `ReceiptStoreFailed`."""
        await asyncio.to_thread(self._locked, lambda: self._keep_usage(usage))

    async def usage(self, tenant_id: str, before: int | None = None) -> tuple[list[StoredUsage], int | None]:
        """Return a tenant's newest copies, those of a page before a place, and the next page's place, if there is one.
        Raises `ReceiptStoreFailed`.
        """
        rows = await asyncio.to_thread(self._locked, lambda: self._find_usage(tenant_id, before))
        following = rows[USAGE_PAGE - 1][0] if len(rows) > USAGE_PAGE else None
        return [StoredUsage(tenant_id, *row[1:]) for row in rows[:USAGE_PAGE]], following

    async def erase(self, part: VaultPart) -> None:
        """Delete what lies in an erased part of a vault, and whatever is not known to lie elsewhere. Raises
        `ReceiptStoreFailed`.

        The bytes are overwritten in the file, and the log of writes beside it is emptied.
        """
        await asyncio.to_thread(self._locked, lambda: self._erase(part))

    async def erasures_read(self) -> bytes:
        """Return how far the ledger's erasures were read: a resume token, empty at first."""
        row = await asyncio.to_thread(self._locked, self._find_place)
        return b"" if row is None else bytes(row[0])

    async def keep_place(self, token: bytes) -> None:
        """Keep how far the ledger's erasures were read."""
        await asyncio.to_thread(self._locked, lambda: self._keep_place(token))

    async def keep_evidence(self, digest: bytes, document: bytes) -> None:
        """Keep an evidence document for as long as this store lives: receipts outlive the processes they speak of."""
        await asyncio.to_thread(self._locked, lambda: self._keep_evidence(digest, document))

    async def evidence(self, digest: bytes) -> bytes:
        """Return an evidence document that was kept. Raises `NotFound`."""
        row = await asyncio.to_thread(self._locked, lambda: self._find_evidence(digest))
        if row is None:
            raise NotFound("no evidence document of that digest here")
        return bytes(row[0])

    async def find(self, identifier: str, tenant_id: str) -> StoredReceipt:
        """Return this tenant's receipt of that id, or else its newest for that response id. Raises
        `ReceiptNotFound`.
        """
        row = (
            None
            if len(identifier) > MAX_IDENTIFIER or not identifier.isascii()
            else await asyncio.to_thread(self._locked, lambda: self._find(identifier, tenant_id))
        )
        if row is None:
            raise ReceiptNotFound
        return StoredReceipt(*row)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _locked(self, work: Callable[[], T]) -> T:
        with self._lock:
            try:
                return work()
            except sqlite3.Error as error:
                raise ReceiptStoreFailed(f"the receipt store failed: {type(error).__name__}") from error

    def _put(self, stored: StoredReceipt) -> None:
        with self._connection as transaction:
            if self._is_erased(stored):
                return  # The erasure overtook it: a copy would be there for ever.
            position = transaction.execute(
                f"INSERT INTO receipts ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constant names
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
                ),
            ).lastrowid
            if position is not None:
                transaction.execute("DELETE FROM receipts WHERE position <= ?", (position - self._retained,))

    def _keep_usage(self, usage: StoredUsage) -> None:
        with self._connection as transaction:
            if self._is_erased(usage):
                return
            position = transaction.execute(
                "INSERT INTO usage (tenant_id, vault_id, vault_epoch, entry_id, body) VALUES (?, ?, ?, ?, ?)",
                (usage.tenant_id, usage.vault_id, usage.vault_epoch, usage.entry_id, usage.body),
            ).lastrowid
            if position is not None:
                transaction.execute("DELETE FROM usage WHERE position <= ?", (position - MOST_USAGE,))

    def _find_usage(self, tenant_id: str, before: int | None) -> list[tuple[Any, ...]]:
        return self._connection.execute(
            "SELECT position, vault_id, vault_epoch, entry_id, body FROM usage "
            "WHERE tenant_id = ? AND (? IS NULL OR position < ?) ORDER BY position DESC LIMIT ?",
            (tenant_id, before, before, USAGE_PAGE + 1),
        ).fetchall()

    def _put_off(self, pending: PendingReceipt) -> None:
        with self._connection as transaction:
            transaction.execute(
                "INSERT OR IGNORE INTO pending (receipt_id, chat_id, tenant_id, receipt) VALUES (?, ?, ?, ?)",
                (pending.receipt_id, pending.chat_id, pending.tenant_id, pending.receipt),
            )

    def _pending(self, limit: int) -> list[tuple[Any, ...]]:
        return self._connection.execute(
            "SELECT receipt_id, chat_id, tenant_id, receipt FROM pending ORDER BY position LIMIT ?", (limit,)
        ).fetchall()

    def _settle(self, receipt_id: str) -> None:
        with self._connection as transaction:
            transaction.execute("DELETE FROM pending WHERE receipt_id = ?", (receipt_id,))

    def _is_erased(self, stored: StoredReceipt | StoredUsage) -> bool:
        query = "SELECT 1 FROM erased WHERE vault_id = ? AND (vault_epoch IS NULL OR vault_epoch = ?)"
        return self._connection.execute(query, (stored.vault_id, stored.vault_epoch)).fetchone() is not None

    def _erase(self, part: VaultPart) -> None:
        with self._connection as transaction:
            transaction.execute("INSERT INTO erased (vault_id, vault_epoch) VALUES (?, ?)", (part.vault_id, part.epoch))
            transaction.execute(
                "DELETE FROM receipts WHERE vault_id IS NULL OR vault_id = ? AND (? IS NULL OR vault_epoch = ?)",
                (part.vault_id, part.epoch, part.epoch),
            )
            transaction.execute(
                "DELETE FROM usage WHERE vault_id = ? AND (? IS NULL OR vault_epoch = ?)",
                (part.vault_id, part.epoch, part.epoch),
            )
        (busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise ReceiptStoreFailed("what was erased is still in the store's log of writes: something else reads it")

    def _find_place(self) -> tuple[bytes] | None:
        row: tuple[bytes] | None = self._connection.execute("SELECT token FROM erasures_read").fetchone()
        return row

    def _keep_place(self, token: bytes) -> None:
        with self._connection as transaction:
            transaction.execute("INSERT OR REPLACE INTO erasures_read (id, token) VALUES (1, ?)", (token,))

    def _keep_evidence(self, digest: bytes, document: bytes) -> None:
        with self._connection as transaction:
            transaction.execute("INSERT OR IGNORE INTO evidence (digest, document) VALUES (?, ?)", (digest, document))

    def _find_evidence(self, digest: bytes) -> tuple[bytes] | None:
        row: tuple[bytes] | None = self._connection.execute(
            "SELECT document FROM evidence WHERE digest = ?", (digest,)
        ).fetchone()
        return row

    def _acknowledge(self, entry_id: bytes, acknowledgement: bytes) -> None:
        with self._connection as transaction:
            transaction.execute(
                "UPDATE receipts SET acknowledgement = ? WHERE entry_id = ?", (acknowledgement, entry_id)
            )

    def _find(self, identifier: str, tenant_id: str) -> tuple[Any, ...] | None:
        query = f"SELECT {_COLUMNS} FROM receipts WHERE tenant_id = ? AND "  # noqa: S608 - constant names
        for condition in ("receipt_id = ?", "chat_id = ? ORDER BY position DESC LIMIT 1"):
            row: tuple[Any, ...] | None = self._connection.execute(
                query + condition, (tenant_id, identifier)
            ).fetchone()
            if row is not None:
                return row
        return None


@asynccontextmanager
async def open_receipt_store(path: Path, *, retained: int = 1_000_000) -> AsyncIterator[ReceiptStore]:
    """Open or create the store, readable by this user only. Raises `ReceiptStoreUnusable` or `ReceiptStoreFailed`."""
    store = ReceiptStore(await asyncio.to_thread(connect, path), retained)
    try:
        yield store
    finally:
        await asyncio.to_thread(store.close)
