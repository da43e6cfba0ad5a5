"""Responsible for evidence and sessions by their digests, as they are handed out: kept while a receipt cites one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from services.router.errors import NotFound
from services.router.proof import citations
from services.router.proof.file import StoreFile


class KeptDocuments:
    """The documents in the store's file. `clock` is in Unix seconds."""

    def __init__(self, file: StoreFile, clock: Callable[[], float]) -> None:
        self._file = file
        self._clock = clock

    async def put(self, digest: bytes, document: bytes) -> None:
        """Keep a document by its digest for a day, and for as long as a receipt here cites it. Raises
        `ReceiptStoreFailed`.
        """
        await self._file.run(lambda connection: _put(connection, digest, document, int(self._clock())))

    async def find(self, digest: bytes) -> bytes:
        """Return a document that was kept. Raises `NotFound` or `ReceiptStoreFailed`."""
        found = await self._file.run(lambda connection: _find(connection, digest))
        if found is None:
            raise NotFound("no evidence document of that digest here")
        return found


def _put(connection: sqlite3.Connection, digest: bytes, document: bytes, now: int) -> None:
    with connection as transaction:
        citations.keep(transaction, digest, document, now)


def _find(connection: sqlite3.Connection, digest: bytes) -> bytes | None:
    row = connection.execute("SELECT document FROM evidence WHERE digest = ?", (digest,)).fetchone()
    return None if row is None else bytes(row[0])
