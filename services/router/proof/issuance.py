"""It is responsible for receipts: what happened to one request, signed, sealed for its tenant, committed.

One receipt per authenticated request, refusals and failures included. Until the ledger's acknowledgement is here, the
response that a receipt is about MUST NOT be released.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import structlog

from libs import jcs
from libs.aci import receipt as receipts
from libs.aci.receipt import Receipt
from libs.aci.receipt_events import KnownEvent
from libs.errors import MeshError
from libs.events.answers import EntryRejected, PublisherClosed
from libs.events.outbox import OutboxFailed
from libs.events.publish import Committed, Publisher
from libs.events.publish import LedgerUnavailable as NotAcknowledged
from libs.events.vault import VaultKey
from libs.events.vault_opening import OPENING_SECONDS
from libs.policy.vault_orders import VaultPart
from libs.transparency.leaf import Kind
from services.router.admission.tenants import Tenant
from services.router.errors import LedgerUnavailable
from services.router.proof.commitments import Attested
from services.router.proof.late_receipts import LateReceipts
from services.router.proof.put_off import WaitingReceipt
from services.router.proof.receipt_copies import FindSession, ReceiptCopies, sessions_of
from services.router.proof.store import ReceiptStore
from services.router.proof.vaults import Vaults
from services.router.workload.generation import Generation

_STOPPING_SECONDS = 5.0

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
    served_at: int
    """Unix seconds."""
    generation: Generation
    """The keyset under which its client was served."""


@dataclass(frozen=True, slots=True)
class Logged:
    """A receipt that the ledger holds. What became of its response MUST be said, once, by one of three."""

    publisher: Publisher
    committed: Committed
    vault: VaultKey
    so_far: str
    """Hash of what of the response was out before the receipt was committed."""

    def released(self) -> None:
        """All of it is written."""
        self.publisher.released(self.committed)

    def withdrawn(self) -> None:
        """The rest was handed to nobody. Amended."""
        self.publisher.withdrawn(self.committed, vault=self.vault, amendment={"emitted_hash": self.so_far})

    def uncertain(self) -> None:
        """The rest was being written and did not come to its end. Amended."""
        self.publisher.uncertain(self.committed, vault=self.vault)


class Issuance:
    """Signs and commits receipts."""

    def __init__(
        self,
        publisher: Publisher,
        vaults: Vaults,
        store: ReceiptStore,
        attested: Attested,
        session: FindSession,
        *,
        opening_seconds: float = OPENING_SECONDS,
        stopping_seconds: float = _STOPPING_SECONDS,
    ) -> None:
        """For the receipts that wait for the ledger: how long one vault may take to open, and how long one of them that
        is on its way when this stops is waited for.
        """
        self._publisher = publisher
        self._vaults = vaults
        self._put_off = store.put_off
        self._copies = ReceiptCopies(store.receipts, attested, session)
        self._late = LateReceipts(publisher, vaults, store.put_off, self._copies, opening_seconds, stopping_seconds)

    def require_room(self, tenant: Tenant) -> None:
        """Raise `LedgerUnavailable` while the outbox takes nothing more, or nothing more of this tenant's."""
        try:
            self._publisher.require_room(tenant=tenant.tenant_id)
        except MeshError as error:
            raise LedgerUnavailable("receipts cannot be kept now: the outbox has no room for them") from error

    def require_room_to_wait(self, tenant: Tenant) -> None:
        """Raise `LedgerUnavailable` while no more of a tenant's receipts may wait: one of its requests, once begun,
        always leaves one.
        """
        try:
            self._put_off.require_room(tenant.tenant_id)
        except MeshError as error:
            raise LedgerUnavailable("too many receipts of this tenant's wait for the ledger") from error

    async def vault(self, tenant: Tenant) -> VaultKey:
        """Return what seals this tenant's receipts now. Raises `LedgerUnavailable`."""
        return await self._vaults.key(tenant.tenant_id)

    async def commit(self, draft: Draft, vault: VaultKey, *, otherwise: str, so_far: str, timeout: float) -> Logged:
        """Commit a receipt and keep it; return what is to be told of its response.

        `otherwise` is the hash of what goes out when the ledger does not answer, `so_far` of what is out already: the
        amendment names the one or, when this is cancelled because the client left, the other. Raises
        `LedgerUnavailable`; the receipt, and the amendment after it, are then logged as soon as the ledger is back. Any
        other `MeshError` means that the log does not take this receipt: the caller MUST see to another in its place.
        """
        receipt = _receipt(draft)
        signed = receipts.signed_members(receipt, draft.generation.receipt_key)
        try:
            committed = await self._publisher.commit(
                Kind.RECEIPT,
                signed,
                vault=vault,
                timeout=timeout,
                amendment={"emitted_hash": otherwise},
                abandoned={"emitted_hash": so_far},
                meanwhile=lambda committed: self._copies.keep_to_the_end(
                    _waiting(draft, jcs.dumps(signed)), sessions_of(receipt), committed, vault
                ),
            )
        except (NotAcknowledged, PublisherClosed, OutboxFailed) as error:
            raise LedgerUnavailable("the ledger did not acknowledge the receipt in time") from error
        except EntryRejected:
            self._vaults.drop(VaultPart(vault.vault_id, vault.epoch))
            raise
        return Logged(self._publisher, committed, vault, so_far)

    def record_later(self, draft: Draft) -> None:
        """Commit a receipt for which nobody waits: the client has left, or the vault cannot be opened now.

        It is on disk when this returns; a disk that fails is the one way to lose it.
        """
        try:
            self._put_off.put(_waiting(draft, _sign(draft)))
        except MeshError as error:
            log.error("a receipt is lost", receipt=draft.receipt_id, reason=error.reason)
        self._late.more()

    async def put_off(self, draft: Draft) -> None:
        """Keep a receipt of a refusal for the ledger, durably, before the refusal goes out.

        Raises `ReceiptStoreFailed` or `ReceiptsPutOffFull`.
        """
        await asyncio.shield(self._put_off.put_if_room(_waiting(draft, _sign(draft))))
        self._late.more()

    def recording(self) -> AbstractAsyncContextManager[None]:
        """Give the ledger what was put off while the body runs: see `LateReceipts`."""
        return self._late.recording()


def _sign(draft: Draft) -> bytes:
    return receipts.sign(_receipt(draft), draft.generation.receipt_key)


def _receipt(draft: Draft) -> Receipt:
    generation = draft.generation
    return Receipt(
        receipt_id=draft.receipt_id,
        chat_id=draft.chat_id,
        model=draft.model,
        workload_keyset_digest=generation.digest,
        endpoint=draft.endpoint,
        method="POST",
        served_at=draft.served_at,
        events=draft.events,
        key_id=generation.receipt_key_id,
    )


def _waiting(draft: Draft, signed: bytes) -> WaitingReceipt:
    return WaitingReceipt(draft.receipt_id, draft.chat_id, draft.tenant.tenant_id, signed)
