"""Responsible for signed receipts that the ledger has yet to be given: nobody waits for one, and nobody may lose it.

They share what room there is: a tenant may have as many waiting as there is room left for. So one that floods it has
half of it at most, and several leave something to whoever has fewer.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from libs.errors import Code, MeshError
from services.router.proof.file import StoreFile

MOST_PUT_OFF = 100_000
"""Of all tenants together: some 200 MB of refusals."""


class ReceiptsPutOffFull(MeshError):
    """As many receipts wait for the ledger as may, or as many of this tenant's."""

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

    def __init__(self, file: StoreFile, most: int, waiting: Counter[str]) -> None:
        self._file = file
        self._most = most
        self._waiting = waiting
        """How many, by whose they are. Like their sum it is changed where the file is, one at a time."""
        self._sum = waiting.total()
        self._first = 0
        """Whose turn comes first, among all of them."""

    @classmethod
    async def open(cls, file: StoreFile, most: int) -> PutOff:
        """Return what waits there, of which there may be so many. Raises `ReceiptStoreFailed`."""
        return cls(file, most, await file.run(_count))

    def require_room(self, tenant_id: str) -> None:
        """Raise `ReceiptsPutOffFull` where no more of this tenant's may wait."""
        if self._waiting[tenant_id] >= self._most - self._sum:
            raise ReceiptsPutOffFull("too many receipts wait for the ledger, or too many of this tenant's")

    def put(self, waiting: WaitingReceipt) -> None:
        """Keep a receipt for the ledger, durably. It does not wait, so that no cancellation comes between.

        It blocks for one commit to disk: for the few requests whose client has left or whose vault is out of reach.
        There is room for it if there was when its request began. Raises `ReceiptStoreFailed`.
        """
        self._file.run_now(lambda connection: self._put(connection, waiting))

    async def put_if_room(self, waiting: WaitingReceipt) -> None:
        """The same for those that anybody with a key can make many of: in a thread, and only so many of them. Raises
        `ReceiptStoreFailed` or `ReceiptsPutOffFull`.
        """
        await self._file.run(lambda connection: self._put_if_room(connection, waiting))

    async def oldest(self, limit: int) -> list[WaitingReceipt]:
        """Return some that are not settled: of all tenants alike, in turn where there are more of them, and of each its
        oldest, in rows of one of each. So nobody's that cannot be logged now keep others waiting. Raises
        `ReceiptStoreFailed`.
        """
        rows = await self._file.run(lambda connection: self._oldest(connection, limit))
        return [WaitingReceipt(*row) for row in rows]

    async def settle(self, waiting: WaitingReceipt) -> None:
        """The ledger has it. Raises `ReceiptStoreFailed`."""
        await self._file.run(lambda connection: self._settle(connection, waiting))

    def _put_if_room(self, connection: sqlite3.Connection, waiting: WaitingReceipt) -> None:
        self.require_room(waiting.tenant_id)
        self._put(connection, waiting)

    def _oldest(self, connection: sqlite3.Connection, limit: int) -> list[tuple[Any, ...]]:
        tenants = list(self._waiting)
        if len(tenants) > limit:
            tenants = [tenants[(self._first + turn) % len(tenants)] for turn in range(limit)]
            self._first += limit
        query = (
            "SELECT receipt_id, chat_id, tenant_id, receipt FROM pending WHERE tenant_id = ? ORDER BY position LIMIT ?"
        )
        each = [connection.execute(query, (tenant, limit // len(tenants))).fetchall() for tenant in tenants]
        return [row for turn in zip_longest(*each) for row in turn if row is not None]

    def _put(self, connection: sqlite3.Connection, waiting: WaitingReceipt) -> None:
        with connection as transaction:
            put = transaction.execute(
                "INSERT OR IGNORE INTO pending (receipt_id, chat_id, tenant_id, receipt) VALUES (?, ?, ?, ?)",
                (waiting.receipt_id, waiting.chat_id, waiting.tenant_id, waiting.receipt),
            ).rowcount
        self._add(waiting.tenant_id, put)

    def _settle(self, connection: sqlite3.Connection, waiting: WaitingReceipt) -> None:
        with connection as transaction:
            gone = transaction.execute("DELETE FROM pending WHERE receipt_id = ?", (waiting.receipt_id,)).rowcount
        self._add(waiting.tenant_id, -gone)

    def _add(self, tenant_id: str, number: int) -> None:
        self._sum += number
        self._waiting[tenant_id] += number
        if not self._waiting[tenant_id]:
            del self._waiting[tenant_id]


def _count(connection: sqlite3.Connection) -> Counter[str]:
    return Counter(dict(connection.execute("SELECT tenant_id, count(*) FROM pending GROUP BY tenant_id")))
