"""Responsible for what of a router's copies is erased: what lies in a part of a vault goes, and nothing more comes in.

It is kept with the copies how far the ledger's word on erasures was read.
"""

from __future__ import annotations

import sqlite3

from libs.policy.vault_orders import VaultPart
from services.router.proof.file import ReceiptStoreFailed, StoreFile

_AT_ONCE = 200


def is_erased(connection: sqlite3.Connection, vault_id: bytes | None, epoch: int | None) -> bool:
    """Say whether an erasure overtook what lies there: a copy would be there for ever."""
    query = "SELECT 1 FROM erased WHERE vault_id = ? AND (vault_epoch IS NULL OR vault_epoch = ?)"
    return connection.execute(query, (vault_id, epoch)).fetchone() is not None


class Erased:
    """The erased parts of vaults, and the place in the log up to which they are known."""

    def __init__(self, file: StoreFile) -> None:
        self._file = file

    async def erase(self, part: VaultPart) -> None:
        """Delete what lies in an erased part of a vault, and whatever is not known to lie elsewhere. Raises
        `ReceiptStoreFailed`.

        The bytes are overwritten in the file, and the log of writes beside it is emptied.
        """
        await self._file.run(lambda connection: _close(connection, part))
        # In steps, between which other receipts are kept.
        while await self._file.run(lambda connection: _erase_some(connection, part)):
            pass
        await self._file.run(_empty_log)

    async def place(self) -> bytes:
        """Return how far the ledger's erasures were read: a resume token, empty at first."""
        return await self._file.run(_find_place)

    async def keep_place(self, token: bytes) -> None:
        """Keep how far the ledger's erasures were read."""
        await self._file.run(lambda connection: _keep_place(connection, token))


def _close(connection: sqlite3.Connection, part: VaultPart) -> None:
    """Let nothing more in."""
    with connection as transaction:
        transaction.execute("INSERT INTO erased (vault_id, vault_epoch) VALUES (?, ?)", (part.vault_id, part.epoch))


def _erase_some(connection: sqlite3.Connection, part: VaultPart) -> int:
    lies_in = "vault_id = ? AND (? IS NULL OR vault_epoch = ?)"
    with connection as transaction:
        # Each by its index: a scan of everything would hold up what is to be kept.
        return sum(
            transaction.execute(
                f"DELETE FROM {table} WHERE position IN (SELECT position FROM {table} WHERE {where} LIMIT ?)",  # noqa: S608 - constant text
                (*values, _AT_ONCE),
            ).rowcount
            for table, where, values in (
                ("receipts", "vault_id IS NULL", ()),
                ("receipts", lies_in, (part.vault_id, part.epoch, part.epoch)),
                ("usage", lies_in, (part.vault_id, part.epoch, part.epoch)),
            )
        )


def _empty_log(connection: sqlite3.Connection) -> None:
    (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise ReceiptStoreFailed("what was erased is still in the store's log of writes: something else reads it")


def _find_place(connection: sqlite3.Connection) -> bytes:
    row = connection.execute("SELECT token FROM erasures_read").fetchone()
    return b"" if row is None else bytes(row[0])


def _keep_place(connection: sqlite3.Connection, token: bytes) -> None:
    with connection as transaction:
        transaction.execute("INSERT OR REPLACE INTO erasures_read (id, token) VALUES (1, ?)", (token,))
