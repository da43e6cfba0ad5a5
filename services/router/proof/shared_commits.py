"""Responsible for writes that share a commit: what is asked for while one is on its way becomes durable with the next.

A commit costs a sync and a change of threads, however much it holds. A write that fails, with whatever, does not take
others with it: each is then tried alone.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from libs.errors import MeshError
from services.router.proof.file import ReceiptStoreFailed, StoreFile

_MOST_TOGETHER = 256

Write = Callable[[sqlite3.Connection], object]
"""Writes inside a transaction, which it MUST NOT end."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Asked:
    write: Write
    durable: asyncio.Future[None]


class SharedCommits:
    """Writes to the store's file, in the order in which they are asked for."""

    def __init__(self, file: StoreFile) -> None:
        self._file = file
        self._asked: list[_Asked] = []
        self._busy = False

    async def write(self, write: Write) -> None:
        """Return once it is durable. A caller that is cancelled does not stop it. Raises `ReceiptStoreFailed`."""
        loop = asyncio.get_running_loop()
        asked = _Asked(write, loop.create_future())
        self._asked.append(asked)
        if not self._busy:
            self._busy = True
            loop.call_soon(self._commit)  # Whoever else is woken by the same news asks before it.
        await asked.durable

    def _commit(self) -> None:
        taken, self._asked = self._asked[:_MOST_TOGETHER], self._asked[_MOST_TOGETHER:]
        together = partial(_together, [asked.write for asked in taken])
        committing = asyncio.get_running_loop().run_in_executor(None, self._file.run_now, together)
        committing.add_done_callback(partial(self._settle, taken))

    def _settle(self, taken: Sequence[_Asked], committed: asyncio.Future[list[MeshError | None]]) -> None:
        if self._asked:
            self._commit()
        else:
            self._busy = False
        failure = committed.exception()
        refusals = committed.result() if failure is None else [failure] * len(taken)
        for asked, refusal in zip(taken, refusals, strict=True):
            if asked.durable.done():
                continue  # Whoever waited for it was cancelled.
            if refusal is None:
                asked.durable.set_result(None)
            else:
                asked.durable.set_exception(refusal)


def _together(writes: Sequence[Write], connection: sqlite3.Connection) -> list[MeshError | None]:
    """Commit all writes, or else each that can be; return what each was refused with."""
    try:
        _commit(connection, writes)
    except Exception:  # noqa: BLE001 - a write that is broken may raise anything, and the others are not to blame
        return [_alone(connection, write) for write in writes]
    return [None] * len(writes)


def _alone(connection: sqlite3.Connection, write: Write) -> MeshError | None:
    try:
        _commit(connection, [write])
    except Exception as error:  # noqa: BLE001 - as above
        if not isinstance(error, sqlite3.Error):
            log.error("a write is broken", error=type(error).__name__)
        refusal = ReceiptStoreFailed.by(error)
        refusal.__cause__ = error
        return refusal
    return None


def _commit(connection: sqlite3.Connection, writes: Sequence[Write]) -> None:
    with connection as transaction:
        for write in writes:
            write(transaction)
