"""It is responsible for what this router forgets once a vault is erased: its key, and the copies of its receipts.

The ledger's log says what was erased. It is followed for as long as the router runs, and from where it was left: an
erasure that happened while this router was away is made up for at its next start.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import NoReturn, Protocol

import structlog
from teemesh.ledger.v1 import ledger_pb2

from libs.errors import MeshError
from libs.events.erasure import ErasureDone, ErasureOrdered, parse_erasure
from libs.events.records import SALT_SIZE, parse_entry
from libs.events.tailing import LedgerChannels, tail
from libs.policy.vault_orders import VaultPart
from libs.transparency.leaf import Kind
from services.router.proof.erased import Erased

_RETRY_SECONDS = 1.0
_KEEP_PLACE_EVERY = 64
"""Messages of a stream, heartbeats included, after which the place in the log is written down."""
_ANOTHER_LOG = frozenset({"RESUME_TOKEN_INVALID", "LOG_DIVERGED"})

log = structlog.get_logger()


class KeptKeys(Protocol):
    """The vault keys that this router holds."""

    def drop(self, part: VaultPart) -> None: ...


class ErasureReading:
    """Reads what the log says of vaults, and forgets accordingly."""

    def __init__(self, ledger: LedgerChannels, keys: KeptKeys, erased: Erased) -> None:
        self._ledger = ledger
        self._keys = keys
        self._erased = erased

    async def follow(self) -> NoReturn:
        """Follow the log for ever."""
        while True:
            try:
                await self._read()
            except MeshError as error:
                log.warning("erasures are not read", reason=error.reason, detail=str(error))
                if error.reason in _ANOTHER_LOG:
                    await self._begin_again()
            except TimeoutError:
                log.warning("the log fell silent")
            await asyncio.sleep(_RETRY_SECONDS)

    async def _begin_again(self) -> None:
        try:
            await self._erased.keep_place(b"")
        except MeshError as error:
            log.error("the place in the log cannot be kept", reason=error.reason)

    async def _read(self) -> None:
        heard = 0
        token = await self._erased.place()
        async with aclosing(tail(self._ledger, token, (Kind.ERASURE,), follow=True)) as messages:
            async for message in messages:
                for logged in message.entries:
                    await self._take(logged)
                if message.entries or heard % _KEEP_PLACE_EVERY == 0:
                    await self._erased.keep_place(message.token)
                heard += 1

    async def _take(self, logged: ledger_pb2.LoggedEntry) -> None:
        match parse_erasure(parse_entry(logged.body[SALT_SIZE:]).body):
            case ErasureOrdered(part=part):
                self._keys.drop(part)
            case ErasureDone(part=part):
                # Not at the order: one that a hold overtook is never done, and nothing may be gone then.
                self._keys.drop(part)
                await self._erased.erase(part)
                log.info("erased", vault=part.subject, index=logged.index)
