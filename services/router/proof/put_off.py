"""Responsible for signed receipts that the ledger has yet to be given: nobody waits for one, and nobody may lose it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from libs.errors import Code, MeshError
from services.router.proof.file import StoreFile

MOST_PUT_OFF = 100_000
"""Some 200 MB of refusals."""


class ReceiptsPutOffFull(MeshError):
    """As many receipts of refusals wait for the ledger as may."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "RECEIPTS_PUT_OFF_FULL"


@dataclass(frozen=True, slots=True)
class WaitingReceipt:
    """A signed receipt, and whose it is."""

    receipt_id: str
    chat_id: str | None
    tenant_id: str
    receipt: bytes


class PutOff:
    """The receipts that wait in the store's file."""

    def __init__(self, file: StoreFile, most: int) -> None:
        self._file = file
        self._most = most

    def put(self, waiting: WaitingReceipt) -> None:
        """Keep a receipt for the ledger, durably. It does not wait, so that no cancellation comes between.

        It blocks for one commit to disk: for the few requests whose client has left or whose vault is out of reach.
        Raises `ReceiptStoreFailed`.
        """
        self._file.run_now(lambda connection: _put(connection, waiting))

    async def put_if_room(self, waiting: WaitingReceipt) -> None:
        """The same for those that anybody with a key can make many of: in a thread, and only so many of them. Raises
        `ReceiptStoreFailed` or `ReceiptsPutOffFull`.
        """
        await self._file.run(lambda connection: self._put_if_room(connection, waiting))

    async def oldest(self, limit: int) -> list[WaitingReceipt]:
        """Return the oldest that are not settled. Raises `ReceiptStoreFailed`."""
        rows = await self._file.run(lambda connection: _oldest(connection, limit))
        return [WaitingReceipt(*row) for row in rows]

    async def settle(self, receipt_id: str) -> None:
        """The ledger has it. Raises `ReceiptStoreFailed`."""
        await self._file.run(lambda connection: _settle(connection, receipt_id))

    def _put_if_room(self, connection: sqlite3.Connection, waiting: WaitingReceipt) -> None:
        # Numbers are never given twice, so this is at least how many there are.
        (span,) = connection.execute(
            "SELECT COALESCE((SELECT max(position) FROM pending) - (SELECT min(position) FROM pending) + 1, 0)"
        ).fetchone()
        if span >= self._most:
            raise ReceiptsPutOffFull("too many receipts wait for the ledger")
        _put(connection, waiting)


def _put(connection: sqlite3.Connection, waiting: WaitingReceipt) -> None:
    with connection as transaction:
        transaction.execute(
            "INSERT OR IGNORE INTO pending (receipt_id, chat_id, tenant_id, receipt) VALUES (?, ?, ?, ?)",
            (waiting.receipt_id, waiting.chat_id, waiting.tenant_id, waiting.receipt),
        )


def _oldest(connection: sqlite3.Connection, limit: int) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT receipt_id, chat_id, tenant_id, receipt FROM pending ORDER BY position LIMIT ?", (limit,)
    ).fetchall()


def _settle(connection: sqlite3.Connection, receipt_id: str) -> None:
    with connection as transaction:
        transaction.execute("DELETE FROM pending WHERE receipt_id = ?", (receipt_id,))
