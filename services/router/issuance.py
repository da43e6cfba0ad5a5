"""It is responsible for receipts: what happened to one request, signed, sealed for its tenant, committed, kept.

One receipt per authenticated request, refusals and failures included. Until the ledger's acknowledgement is here, the
response that a receipt is about MUST NOT be released.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
from teemesh.ledger.v1 import acknowledgement_pb2

from libs import jcs
from libs.aci import receipt as receipts
from libs.aci.receipt import Receipt
from libs.aci.receipt_events import KnownEvent
from libs.errors import MeshError
from libs.events.publish import Committed, Publisher
from libs.events.publish import LedgerUnavailable as NotAcknowledged
from libs.events.vault import VaultKey
from libs.transparency.acknowledgement import Acknowledgement
from libs.transparency.leaf import Kind
from services.router.commitments import Attested
from services.router.errors import LedgerUnavailable
from services.router.receipts import ReceiptStore, StoredReceipt
from services.router.tenants import Tenant
from services.router.vaults import Vaults
from services.router.workload import RECEIPT_KEY_ID, Workload

_RETRY_SECONDS = 2.0
_MAX_PENDING = 10_000
_LAST_SECONDS = 5.0
_NO_HURRY_SECONDS = 365 * 24 * 3600.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Draft:
    """What is known of an exchange when its receipt is written. Events are in the order of the document."""

    tenant: Tenant
    receipt_id: str
    endpoint: str
    model: str | None
    chat_id: str | None
    events: tuple[KnownEvent, ...]
    served_at: int = field(default_factory=lambda: int(time.time()))


class Issuance:
    """Signs and commits receipts."""

    def __init__(
        self, workload: Workload, publisher: Publisher, vaults: Vaults, store: ReceiptStore, attested: Attested
    ) -> None:
        self._workload = workload
        self._publisher = publisher
        self._vaults = vaults
        self._store = store
        self._attested = attested
        self._pending: asyncio.Queue[Draft] = asyncio.Queue(_MAX_PENDING)

    def require_room(self) -> None:
        """Raise `LedgerUnavailable` while the outbox takes nothing more."""
        try:
            self._publisher.require_room()
        except MeshError as error:
            raise LedgerUnavailable("receipts cannot be kept now: the outbox is full") from error

    async def vault(self, tenant: Tenant) -> VaultKey:
        """Return what seals this tenant's receipts now. Raises `LedgerUnavailable`."""
        return await self._vaults.key(tenant.tenant_id)

    async def commit(self, draft: Draft, vault: VaultKey, emitted_otherwise: str, timeout: float) -> Callable[[], None]:
        """Commit a receipt and keep it; return what to call when its response is out.

        `emitted_otherwise` is the hash of what goes out when the ledger does not answer: the amendment names it. Raises
        `LedgerUnavailable`; the receipt, and the amendment after it, are then logged as soon as the ledger is back.
        """
        signed = self._sign(draft)
        try:
            committed = await self._publisher.commit(
                Kind.RECEIPT,
                jcs.loads_object(signed),
                vault=vault,
                timeout=timeout,
                amendment={"emitted_hash": emitted_otherwise},
            )
        except NotAcknowledged as error:
            raise LedgerUnavailable("the ledger did not acknowledge the receipt in time") from error
        except MeshError as error:
            log.error("a receipt was not logged", receipt=draft.receipt_id, reason=error.reason)
            raise LedgerUnavailable(f"the receipt was not logged: {error.reason}") from error
        await self._keep(draft, signed, committed)
        return lambda: self._publisher.released(committed)

    def record_later(self, draft: Draft) -> None:
        """Commit a receipt for which nobody waits: the client has left, or the vault cannot be opened now."""
        try:
            self._pending.put_nowait(draft)
        except asyncio.QueueFull:
            log.error("a receipt is lost: too many wait for the ledger", receipt=draft.receipt_id)

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Commit what is put off while the body runs; what is left then is made durable in the outbox."""
        async with asyncio.TaskGroup() as tasks:
            committing = tasks.create_task(self.commit_pending())
            try:
                yield
            finally:
                committing.cancel()
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await self._record_pending()
        except TimeoutError:
            log.error("receipts are lost: their vaults cannot be opened", count=self._pending.qsize())

    async def commit_pending(self) -> None:
        """Commit what was put off, for ever; a tenant whose vault cannot be opened waits behind the others."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                draft = await self._pending.get()
                try:
                    vault = await self._vaults.key(draft.tenant.tenant_id)
                    self.require_room()
                except LedgerUnavailable as error:
                    log.warning("a receipt waits for the ledger", receipt=draft.receipt_id, detail=str(error))
                    self.record_later(draft)
                    await asyncio.sleep(_RETRY_SECONDS)
                except asyncio.CancelledError:
                    self.record_later(draft)
                    raise
                else:
                    tasks.create_task(self._commit_late(draft, vault))

    async def _record_pending(self) -> None:
        while not self._pending.empty():
            draft = self._pending.get_nowait()
            try:
                vault = await self._vaults.key(draft.tenant.tenant_id)
                await self._publisher.enqueue(Kind.RECEIPT, jcs.loads_object(self._sign(draft)), vault=vault)
            except MeshError as error:
                log.error("a receipt is lost: it cannot be sealed", receipt=draft.receipt_id, reason=error.reason)

    async def _commit_late(self, draft: Draft, vault: VaultKey) -> None:
        signed = self._sign(draft)
        try:
            committed = await self._publisher.commit(
                Kind.RECEIPT, jcs.loads_object(signed), vault=vault, timeout=_NO_HURRY_SECONDS
            )
        except MeshError as error:
            log.error("a receipt was not logged", receipt=draft.receipt_id, reason=error.reason)
            return
        await self._keep(draft, signed, committed)
        self._publisher.released(committed)

    def _sign(self, draft: Draft) -> bytes:
        unsigned = Receipt(
            receipt_id=draft.receipt_id,
            chat_id=draft.chat_id,
            model=draft.model,
            workload_keyset_digest=self._workload.keyset.digest,
            endpoint=draft.endpoint,
            method="POST",
            served_at=draft.served_at,
            events=draft.events,
            key_id=RECEIPT_KEY_ID,
        )
        return receipts.sign(unsigned, self._workload.receipt_key)

    async def _keep(self, draft: Draft, signed: bytes, committed: Committed) -> None:
        """Keep a copy. The ledger has the receipt already: when this disk fails, only the copy is missing."""
        try:
            await self._put(draft, signed, committed)
        except MeshError as error:
            log.error("a receipt is in the ledger alone", receipt=draft.receipt_id, reason=error.reason)

    async def _put(self, draft: Draft, signed: bytes, committed: Committed) -> None:
        await self._store.put(
            StoredReceipt(
                receipt_id=draft.receipt_id,
                chat_id=draft.chat_id,
                tenant_id=draft.tenant.tenant_id,
                receipt=signed,
                entry=committed.entry,
                salt=committed.salt,
                entry_id=committed.entry_id,
                issuer_seq=committed.issuer_seq,
                acknowledgement=to_wire(committed.acknowledgement).SerializeToString(),
                attested=await self._attested.now(),
            )
        )


def to_wire(acknowledgement: Acknowledgement) -> acknowledgement_pb2.Acknowledgement:
    return acknowledgement_pb2.Acknowledgement(
        statement=acknowledgement.statement,
        leaf_data=acknowledgement.leaf_data,
        first=acknowledgement.first,
        count=acknowledgement.count,
        path=acknowledgement.path,
        signer_epoch=acknowledgement.signer_epoch,
        signature=acknowledgement.signature,
    )
