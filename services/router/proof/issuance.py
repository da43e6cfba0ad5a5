"""It is responsible for receipts: what happened to one request, signed, sealed for its tenant, committed, kept.

One receipt per authenticated request, refusals and failures included. Until the ledger's acknowledgement is here, the
response that a receipt is about MUST NOT be released.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Set
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto

import structlog
from teemesh.ledger.v1 import acknowledgement_pb2

from libs import jcs
from libs.aci import receipt as receipts
from libs.aci.receipt import Receipt
from libs.aci.receipt_events import KnownEvent, UpstreamVerified
from libs.client.chain import cited_by, foreign_link
from libs.errors import MeshError
from libs.events.answers import EntryRejected
from libs.events.publish import Committed, Publisher
from libs.events.publish import LedgerUnavailable as NotAcknowledged
from libs.events.vault import VaultKey
from libs.policy.vault_orders import VaultPart
from libs.transparency.acknowledgement import Acknowledgement
from libs.transparency.leaf import Kind
from services.router.admission.tenants import Tenant
from services.router.admission.vault_opening import OPENING_SECONDS, open_each
from services.router.errors import LedgerUnavailable
from services.router.proof.commitments import Attested
from services.router.proof.kept_receipts import StoredReceipt
from services.router.proof.put_off import WaitingReceipt
from services.router.proof.store import ReceiptStore
from services.router.proof.vaults import Vaults
from services.router.workload.generation import Generation

_RETRY_SECONDS = 2.0
_LATE_SECONDS = 30.0
_STOPPING_SECONDS = 5.0
_WAITING_AT_ONCE = 100
_MAX_KEPT_SESSIONS = 10_000
_VAULT_GONE = "VAULT_ERASED"

FindSession = Callable[[str], Awaitable[bytes]]
"""Returns a session document by its id."""

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


class _Outcome(Enum):
    """What came of one attempt to give the ledger a receipt that waits."""

    SETTLED = auto()
    WAITS = auto()
    VAULT_SHUT = auto()
    """Its tenant's vault does not open: neither would it for the next of that tenant's."""


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
    ) -> None:
        """`opening_seconds` is how long the receipts that wait for the ledger give one vault to open."""
        self._publisher = publisher
        self._vaults = vaults
        self._store = store
        self._attested = attested
        self._session = session
        self._opening_seconds = opening_seconds
        self._kept_sessions: set[str] = set()
        """Lately kept by this process: they need not be looked for again."""
        self._unsettled: set[str] = set()
        """Receipts that wait no longer for the ledger, while the store still says so: they are not logged again."""
        self._put_off = asyncio.Event()
        self._patience: asyncio.Timeout | None = None
        """How long the receipt that is given to the ledger now may take, once this stops."""
        self._keeping: set[asyncio.Task[None]] = set()

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
            self._store.put_off.require_room(tenant.tenant_id)
        except MeshError as error:
            raise LedgerUnavailable("too many receipts of this tenant's wait for the ledger") from error

    async def vault(self, tenant: Tenant) -> VaultKey:
        """Return what seals this tenant's receipts now. Raises `LedgerUnavailable`."""
        return await self._vaults.key(tenant.tenant_id)

    async def commit(self, draft: Draft, vault: VaultKey, *, otherwise: str, so_far: str, timeout: float) -> Logged:
        """Commit a receipt and keep it; return what is to be told of its response.

        `otherwise` is the hash of what goes out when the ledger does not answer, `so_far` of what is out already: the
        amendment names the one or, when this is cancelled because the client left, the other. Raises
        `LedgerUnavailable`; the receipt, and the amendment after it, are then logged as soon as the ledger is back.
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
            )
        except NotAcknowledged as error:
            raise LedgerUnavailable("the ledger did not acknowledge the receipt in time") from error
        except MeshError as error:
            log.error("a receipt was not logged", receipt=draft.receipt_id, reason=error.reason)
            self._vaults.drop(VaultPart(vault.vault_id, vault.epoch))
            raise LedgerUnavailable(f"the receipt was not logged: {error.reason}") from error
        logged = Logged(self._publisher, committed, vault, so_far)
        try:
            await self._kept(_waiting(draft, jcs.dumps(signed)), _cited_by(receipt), committed, vault)
        except asyncio.CancelledError:
            logged.withdrawn()
            raise
        return logged

    def record_later(self, draft: Draft) -> None:
        """Commit a receipt for which nobody waits: the client has left, or the vault cannot be opened now.

        It is on disk when this returns; a disk that fails is the one way to lose it.
        """
        try:
            self._store.put_off.put(_waiting(draft, _sign(draft)))
        except MeshError as error:
            log.error("a receipt is lost", receipt=draft.receipt_id, reason=error.reason)
        self._put_off.set()

    async def put_off(self, draft: Draft) -> None:
        """Keep a receipt of a refusal for the ledger, durably, before the refusal goes out.

        Raises `ReceiptStoreFailed` or `ReceiptsPutOffFull`.
        """
        await asyncio.shield(self._store.put_off.put_if_room(_waiting(draft, _sign(draft))))
        self._put_off.set()

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Commit what was put off, by this process or an earlier one, while the body runs. One that the ledger has been
        given by the end is waited for: else it would be logged again by the next start.
        """
        async with asyncio.TaskGroup() as tasks:
            committing = tasks.create_task(self._commit_waiting(tasks))
            try:
                yield
            finally:
                committing.cancel()
                if self._patience is not None:
                    self._patience.reschedule(asyncio.get_running_loop().time() + _STOPPING_SECONDS)

    async def _commit_waiting(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            self._put_off.clear()
            settled = 0
            try:
                if self._has_room():
                    settled = await self._commit_some(tasks)
            except MeshError as error:
                log.error("receipts that wait cannot be read", reason=error.reason)
            if settled == 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_SECONDS):
                        await self._put_off.wait()

    async def _commit_some(self, tasks: asyncio.TaskGroup) -> int:
        """Return how many were settled. Raises `ReceiptStoreFailed`."""
        settled = 0
        oldest = await self._store.put_off.oldest(_WAITING_AT_ONCE)
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
            async with asyncio.timeout(None) as self._patience:
                return await self._commit_late(waiting)
        except TimeoutError:
            log.warning("a receipt may be logged again", receipt=waiting.receipt_id)
            return _Outcome.WAITS
        except MeshError as error:
            # A disk that fails for a moment must not end the router.
            log.error("a receipt that waits cannot be settled", receipt=waiting.receipt_id, reason=error.reason)
            return _Outcome.WAITS
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
                if not await self._log_late(waiting, vault):
                    return _Outcome.WAITS
            self._unsettled.add(waiting.receipt_id)
        await self._store.put_off.settle(waiting)
        self._unsettled.discard(waiting.receipt_id)
        return _Outcome.SETTLED

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
        except NotAcknowledged:
            pass  # It is in the outbox now, which will see to it.
        except EntryRejected as error:
            log.warning("a receipt is sealed anew", receipt=waiting.receipt_id, detail=str(error))
            self._vaults.drop(VaultPart(vault.vault_id, vault.epoch))
            return False
        except MeshError as error:
            log.warning("a receipt waits for the ledger", receipt=waiting.receipt_id, reason=error.reason)
            return error.reason == _VAULT_GONE
        else:
            await self._keep(waiting, _cited_by(receipts.parse(waiting.receipt)), committed, vault)
        return True

    async def _kept(self, receipt: WaitingReceipt, cited: Set[str], committed: Committed, vault: VaultKey) -> None:
        """Keep a copy, whatever becomes of the caller."""
        keeping = asyncio.get_running_loop().create_task(self._keep(receipt, cited, committed, vault))
        self._keeping.add(keeping)
        keeping.add_done_callback(self._keeping.discard)
        await asyncio.shield(keeping)

    async def _keep(self, receipt: WaitingReceipt, cited: Set[str], committed: Committed, vault: VaultKey) -> None:
        """Keep a copy, and the sessions that it cites, by their ids. The ledger has the receipt already: when this disk
        fails, only the copy is missing.
        """
        attested, documents = self._attested.now()
        sessions = await self._sessions(cited)
        try:
            stored = await self._store.receipts.put(
                StoredReceipt(
                    receipt_id=receipt.receipt_id,
                    chat_id=receipt.chat_id,
                    tenant_id=receipt.tenant_id,
                    receipt=receipt.receipt,
                    entry=committed.entry,
                    salt=committed.salt,
                    entry_id=committed.entry_id,
                    issuer_seq=committed.issuer_seq,
                    acknowledgement=to_wire(committed.acknowledgement).SerializeToString(),
                    attested=attested,
                    vault_id=vault.vault_id,
                    vault_epoch=vault.epoch,
                ),
                {**documents, **{bytes.fromhex(name): document for name, document in sessions.items()}},
            )
        except MeshError as error:
            log.error("a receipt is in the ledger alone", receipt=receipt.receipt_id, reason=error.reason)
            return
        if stored:
            self._remember_sessions(name for name, document in sessions.items() if document is not None)

    async def _sessions(self, cited: Set[str]) -> dict[str, bytes | None]:
        """Return the sessions that a receipt cites, which stay with it: the registry keeps them by its own bounds."""
        sessions: dict[str, bytes | None] = {}
        for name in cited:
            sessions[name] = None
            if name in self._kept_sessions:
                continue
            try:
                sessions[name] = await self._session(name)
            except MeshError as error:
                log.warning("a session is not kept with its receipt", session=name, reason=error.reason)
        return sessions

    def _remember_sessions(self, kept: Iterable[str]) -> None:
        """MUST come after they are on disk: the receipts that cite one which is remembered bring no document of it."""
        for name in kept:
            if len(self._kept_sessions) >= _MAX_KEPT_SESSIONS:
                self._kept_sessions.clear()
            self._kept_sessions.add(name)


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


def _cited_by(receipt: Receipt) -> set[str]:
    """Name the sessions behind an answer: this router's about who served, and a provider's own behind that."""
    cited = {event.session_id for event in receipt.events if isinstance(event, UpstreamVerified)}
    link = foreign_link(receipt)
    return cited | ({behind} if link is not None and (behind := cited_by(link)) is not None else set())


def _waiting(draft: Draft, signed: bytes) -> WaitingReceipt:
    return WaitingReceipt(draft.receipt_id, draft.chat_id, draft.tenant.tenant_id, signed)


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
