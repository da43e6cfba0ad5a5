"""Responsible for the router's one file of proofs, and for whoever keeps something in it: each has its own table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.router.proof.erased import Erased
from services.router.proof.file import StoreFile, connect
from services.router.proof.kept_documents import KeptDocuments
from services.router.proof.kept_receipts import KeptReceipts
from services.router.proof.kept_usage import KeptUsage
from services.router.proof.put_off import MOST_PUT_OFF, PutOff


@dataclass(frozen=True, slots=True)
class ReceiptStore:
    """Everything that the file holds."""

    file: StoreFile
    receipts: KeptReceipts
    documents: KeptDocuments
    put_off: PutOff
    usage: KeptUsage
    erased: Erased


@asynccontextmanager
async def open_receipt_store(
    path: Path, *, clock: Callable[[], float] = time.time, most_put_off: int = MOST_PUT_OFF
) -> AsyncIterator[ReceiptStore]:
    """Open or create the store, readable by this user only. `clock` is in Unix seconds.

    Raises `ReceiptStoreUnusable` or `ReceiptStoreFailed`.
    """
    file = StoreFile(await asyncio.to_thread(connect, path))
    try:
        yield ReceiptStore(
            file,
            KeptReceipts(file, clock),
            KeptDocuments(file, clock),
            await PutOff.open(file, most_put_off),
            KeptUsage(file),
            Erased(file),
        )
    finally:
        await asyncio.to_thread(file.close)
