"""Responsible for copies of what this router logged of tenants' use: each tenant's, page by page, the newest first."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from services.router.proof.erased import is_erased
from services.router.proof.file import StoreFile, taken

MOST_USAGE = 100_000
"""So many copies, of all tenants together."""
MOST_USAGE_BYTES = 1 << 30
"""So much room for them."""
USAGE_PAGE = 50
"""An entry has at most some 200 KB, and mostly less than one."""


@dataclass(frozen=True, slots=True)
class StoredUsage:
    """What this router logged of a tenant's use, once."""

    tenant_id: str
    vault_id: bytes
    vault_epoch: int
    entry_id: bytes
    body: bytes
    """Canonical JSON."""


class KeptUsage:
    """The copies in the store's file."""

    def __init__(self, file: StoreFile, most_bytes: int = MOST_USAGE_BYTES) -> None:
        self._file = file
        self._most_bytes = most_bytes

    async def put(self, usage: StoredUsage) -> None:
        """Keep a copy durably, then drop the oldest beyond what is retained. Raises `ReceiptStoreFailed`."""
        await self._file.run(lambda connection: _put(connection, usage, self._most_bytes))

    async def page(self, tenant_id: str, before: int | None = None) -> tuple[list[StoredUsage], int | None]:
        """Return a tenant's newest copies, those of a page before a place, and the next page's place, if there is one.
        Raises `ReceiptStoreFailed`.
        """
        rows = await self._file.run(lambda connection: _find(connection, tenant_id, before))
        following = rows[USAGE_PAGE - 1][0] if len(rows) > USAGE_PAGE else None
        return [StoredUsage(tenant_id, *row[1:]) for row in rows[:USAGE_PAGE]], following


def _put(connection: sqlite3.Connection, usage: StoredUsage, most_bytes: int) -> None:
    with connection as transaction:
        if is_erased(transaction, usage.vault_id, usage.vault_epoch):
            return
        position = transaction.execute(
            "INSERT INTO usage (tenant_id, vault_id, vault_epoch, entry_id, body) VALUES (?, ?, ?, ?, ?)",
            (usage.tenant_id, usage.vault_id, usage.vault_epoch, usage.entry_id, usage.body),
        ).lastrowid
        if position is not None:
            transaction.execute("DELETE FROM usage WHERE position <= ?", (position - MOST_USAGE,))
        while taken(transaction, "usage") > most_bytes:
            transaction.execute("DELETE FROM usage WHERE position = (SELECT min(position) FROM usage)")


def _find(connection: sqlite3.Connection, tenant_id: str, before: int | None) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT position, vault_id, vault_epoch, entry_id, body FROM usage "
        "WHERE tenant_id = ? AND (? IS NULL OR position < ?) ORDER BY position DESC LIMIT ?",
        (tenant_id, before, before, USAGE_PAGE + 1),
    ).fetchall()
