"""It is responsible for giving the ledger the receipts that wait for it, put off by this process or an earlier one.

Nobody waits for them. They go by tenants: one whose vault does not open, or whose share of the outbox is full, holds up
nobody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto

import structlog

from libs import jcs
from libs.aci import receipt as receipts
from libs.errors import MeshError
from libs.events.answers import EntryRejected
from libs.events.publish import LedgerUnavailable, Publisher
from libs.events.records import EntryTooLarge
from libs.events.vault import VaultKey
from libs.events.vault_opening import open_each
from libs.jcs import JsonMalformed
from libs.policy.vault_orders import VaultPart
from libs.transparency.leaf import Kind
from services.router.proof.put_off import PutOff, WaitingReceipt
from services.router.proof.receipt_copies import ReceiptCopies, sessions_of
from services.router.proof.vaults import Vaults

_RETRY_SECONDS = 2.0
_LATE_SECONDS = 30.0
_WAITING_AT_ONCE = 100
_VAULT_GONE = "VAULT_ERASED"

log = structlog.get_logger()


class _Outcome(Enum):
    """What came of one attempt to give the ledger a receipt that waits."""

    SETTLED = auto()
    WAITS = auto()
    VAULT_SHUT = auto()
    """Its tenant's vault does not open: neither would it for the next of that tenant's."""


class LateReceipts:
    """Receipts that wait, on their way to the ledger."""

    def __init__(
        self,
        publisher: Publisher,
        vaults: Vaults,
        put_off: PutOff,
        copies: ReceiptCopies,
        opening_seconds: float,
        stopping_seconds: float,
    ) -> None:
        """`opening_seconds` is how long one vault may take to open, `stopping_seconds` how long the ledger may take to
        acknowledge what it has been given when this stops.
        """
        self._publisher = publisher
        self._vaults = vaults
        self._waiting = put_off
        self._copies = copies
        self._opening_seconds = opening_seconds
        self._stopping_seconds = stopping_seconds
        self._unsettled: set[str] = set()
        """Receipts that wait no longer for the ledger, while the store still says so: they are not logged again."""
        self._more = asyncio.Event()
        self._patience: asyncio.Timeout | None = None
        """How long the receipt that is given to the ledger now may take, once this stops."""

    def more(self) -> None:
        """Another one waits."""
        self._more.set()

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Give the ledger what waits while the body runs. One that it has been given by the end is waited for a little,
        so that a copy of it is kept; where the ledger does not answer, the outbox alone has it then.
        """
        async with asyncio.TaskGroup() as tasks:
            committing = tasks.create_task(self._commit_waiting(tasks))
            try:
                yield
            finally:
                committing.cancel()
                if self._patience is not None:
                    self._patience.reschedule(asyncio.get_running_loop().time() + self._stopping_seconds)

    async def _commit_waiting(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            self._more.clear()
            settled = 0
            try:
                # What it is given before that may be refused with its keyset once this process is gone.
                if self._has_room() and self._publisher.is_admitted:
                    settled = await self._commit_some(tasks)
            except MeshError as error:
                log.error("receipts that wait cannot be read", reason=error.reason)
            if settled == 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_SECONDS):
                        await self._more.wait()

    async def _commit_some(self, tasks: asyncio.TaskGroup) -> int:
        """Return how many were settled. Raises `ReceiptStoreFailed`."""
        settled = 0
        oldest = await self._waiting.oldest(_WAITING_AT_ONCE)
        shut = await self._shut({waiting.tenant_id for waiting in oldest if waiting.receipt_id not in self._unsettled})
        for waiting in oldest:
            if waiting.tenant_id in shut:
                continue
            outcome = await asyncio.shield(tasks.create_task(self._commit_in_time(waiting)))
            settled += outcome is _Outcome.SETTLED
            if outcome is _Outcome.VAULT_SHUT:
                shut.add(waiting.tenant_id)
        return settled

    async def _shut(self, tenants: Set[str]) -> set[str]:
        """Return whose receipts cannot be logged now: their share of the outbox is full, or their vaults do not open.
        Vaults are tried together: each may take seconds, for which others' receipts would wait.
        """
        shut: set[str] = set()

        full = {tenant_id for tenant_id in tenants if not self._has_room(tenant_id)}

        async def opened(tenant_id: str, vault: VaultKey | MeshError) -> None:
            if isinstance(vault, MeshError) and vault.reason != _VAULT_GONE:
                log.warning("receipts wait for a vault", tenant=tenant_id, reason=vault.reason)
                shut.add(tenant_id)

        await open_each(sorted(tenants - full), self._vaults.key, opened, seconds=self._opening_seconds)
        return shut | full

    def _has_room(self, tenant_id: str | None = None) -> bool:
        try:
            self._publisher.require_room(tenant=tenant_id)
        except MeshError:
            return False
        return True

    async def _commit_in_time(self, waiting: WaitingReceipt) -> _Outcome:
        try:
            return await self._commit_or_leave(waiting)
        except MeshError as error:
            # A disk that fails for a moment must not end the router.
            log.error("a receipt that waits cannot be settled", receipt=waiting.receipt_id, reason=error.reason)
            return _Outcome.WAITS

    async def _commit_or_leave(self, waiting: WaitingReceipt) -> _Outcome:
        """Where the time to stop is over, leave to the outbox what it has, durably by then: the next start sends that
        from there. Raises `ReceiptStoreFailed`.
        """
        try:
            async with asyncio.timeout(None) as self._patience:
                return await self._commit_late(waiting)
        except TimeoutError:
            if waiting.receipt_id not in self._unsettled:
                return _Outcome.WAITS
            log.warning("a receipt is left to the outbox", receipt=waiting.receipt_id)
            await self._settle(waiting)
            return _Outcome.SETTLED
        finally:
            self._patience = None

    async def _commit_late(self, waiting: WaitingReceipt) -> _Outcome:
        """Give one receipt to the ledger.

        A crash between the acknowledgement and `settle` logs it a second time, with the same id and bytes. Raises
        `ReceiptStoreFailed`; the next call then only settles it.
        """
        if waiting.receipt_id not in self._unsettled:
            try:
                vault = await self._vaults.key(waiting.tenant_id)
            except MeshError as error:
                log.warning("a receipt waits for its vault", receipt=waiting.receipt_id, reason=error.reason)
                if error.reason != _VAULT_GONE:
                    return _Outcome.VAULT_SHUT
            else:
                try:
                    if not await self._log_late(waiting, vault):
                        return _Outcome.WAITS
                except asyncio.CancelledError:
                    self._unsettled.add(waiting.receipt_id)  # Before it awaited anything, the outbox had it.
                    raise
            self._unsettled.add(waiting.receipt_id)
        await self._settle(waiting)
        return _Outcome.SETTLED

    async def _settle(self, waiting: WaitingReceipt) -> None:
        await self._waiting.settle(waiting)
        self._unsettled.discard(waiting.receipt_id)

    async def _log_late(self, waiting: WaitingReceipt, vault: VaultKey) -> bool:
        """Say whether there is nothing more to be done for it at the ledger."""
        try:
            committed = await self._publisher.commit(
                Kind.RECEIPT,
                jcs.loads_object(waiting.receipt),
                vault=vault,
                timeout=_LATE_SECONDS,
                withheld=False,
            )
        except LedgerUnavailable:
            pass  # It is in the outbox now, which will see to it.
        except EntryRejected as error:
            log.warning("a receipt is sealed anew", receipt=waiting.receipt_id, detail=str(error))
            self._vaults.drop(VaultPart(vault.vault_id, vault.epoch))
            return False
        except (EntryTooLarge, JsonMalformed) as error:
            # No attempt will be better than this one, and others of its tenant's wait for its place.
            log.error("a receipt is lost", receipt=waiting.receipt_id, reason=error.reason)
        except MeshError as error:
            log.warning("a receipt waits for the ledger", receipt=waiting.receipt_id, reason=error.reason)
            return error.reason == _VAULT_GONE
        else:
            await self._copies.keep(waiting, sessions_of(receipts.parse(waiting.receipt)), committed, vault)
        return True
