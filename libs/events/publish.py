"""Responsible for getting entries into the log: seal, store, publish, and wait until the ledger says it has them.

An entry is on disk before it is sent, and stays there until the ledger's acknowledgement is verified and on disk too.
NATS's own acknowledgement frees nothing. Neither broker nor ledger need be there when a publisher opens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.errors import Code, MeshError
from libs.events.acknowledgements import AckSource, LedgerAcknowledgements, LedgerPeer
from libs.events.answers import Answers, Awaiting
from libs.events.connect import connect_nats
from libs.events.issuer import Issuer
from libs.events.keyset import Keyset
from libs.events.left_open import NOT_RELEASED, RELEASE_UNKNOWN, amend_left_open
from libs.events.outbox import DEFAULT_MAX_BYTES, DEFAULT_PART_BYTES, Outbox, open_outbox
from libs.events.outbox_items import Cut
from libs.events.publishing_member import PublishingMember
from libs.events.records import MAX_BODY_BYTES
from libs.events.sending import Outgoing, Sender, Timing
from libs.events.subjects import inbox_prefix
from libs.events.vault import VaultKey
from libs.events.vault_opening import OpenVault
from libs.transparency.acknowledgement import Acknowledgement
from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind

_LEAST_PARTS = 16

log = structlog.get_logger()


class LedgerUnavailable(MeshError):
    """The ledger did not acknowledge in time. The entry stays in the outbox and will still be logged."""

    code = Code.UNAVAILABLE
    reason = "LEDGER_UNAVAILABLE"

    def __init__(self, message: str, entry_id: bytes) -> None:
        super().__init__(message)
        self.entry_id = entry_id


class LogKeyNotAttested(MeshError):
    """This service's own evidence does not name the key that it would write with."""

    reason = "LOG_KEY_NOT_ATTESTED"


@dataclass(frozen=True, slots=True)
class EventSettings:
    """The TOML table [events]."""

    nats_url: str
    """tls://host:port of the broker's nats-server."""
    broker: str
    """host:port of the broker's mesh listener, which lets this service's key into nats-server."""
    outbox: Path
    """Folder of the outbox. One process at a time may use it, and it must survive a restart."""
    log_number: int = 1
    """Which of the mesh's logs to write to."""
    outbox_max_bytes: int = DEFAULT_MAX_BYTES
    """How much the outbox may hold before the service refuses work, bytes."""


@dataclass(frozen=True, slots=True)
class Enqueued:
    """An entry that is durable here and will be logged."""

    entry_id: bytes
    issuer: bytes
    issuer_seq: int


@dataclass(frozen=True, slots=True)
class Committed:
    """An entry that the ledger holds, with what proves it to whoever is given the salt."""

    entry_id: bytes
    issuer: bytes
    issuer_seq: int
    salt: bytes
    entry: bytes
    acknowledgement: Acknowledgement


class Publisher:
    """One issuer's way into the log."""

    def __init__(self, issuer: Issuer, outbox: Outbox, sender: Sender, answers: Answers) -> None:
        self._issuer = issuer
        self._outbox = outbox
        self._sender = sender
        self._answers = answers

    @property
    def issuer(self) -> bytes:
        return self._issuer.id

    @property
    def boot(self) -> bytes:
        """The random number of this start: with the log key it gives the issuer's id."""
        return self._issuer.boot

    @property
    def is_connected(self) -> bool:
        """Whether a broker is there now."""
        return self._sender.is_connected

    @property
    def is_admitted(self) -> bool:
        """Whether the ledger has this start's keyset: until then it may refuse it, and with it all that follows."""
        return self._outbox.state.awaited(self._issuer.id, 1) is None

    def require_room(self, *, essential: bool = False, tenant: str | None = None) -> None:
        """Raise `OutboxFull` when the outbox takes no more entries, or no more of a tenant's: then the service must not
        be serving, or not that tenant.

        What is essential has the reserve besides.
        """
        size = self._sender.queued_bytes + MAX_BODY_BYTES
        self._outbox.require_room(size, essential=essential)
        if tenant is not None:
            self._outbox.require_share(tenant, size, self._sender.queued_of(tenant))

    async def commit(
        self,
        kind: Kind,
        body: Mapping[str, Any],
        *,
        vault: VaultKey | None,
        timeout: float,
        amendment: Mapping[str, Any] | None = None,
        abandoned: Mapping[str, Any] | None = None,
        withheld: bool = True,
        essential: bool = False,
        meanwhile: Callable[[Committed], Awaitable[None]] | None = None,
    ) -> Committed:
        """Log an entry and return once the ledger's acknowledgement is verified and durable here.

        Raises `LedgerUnavailable`, `EntryRejected`, `OutboxFull`, `EntryTooLarge` or `JsonMalformed`. A receipt's
        response may go out only after this returned, and the caller MUST then call `released`, `withdrawn` or
        `uncertain`, once. When it does not return, an amendment that says `not_released` follows by itself, with the
        members of `amendment` when the ledger was too late, of `abandoned` when this was cancelled: what is emitted
        instead. `withheld=False` is for a receipt that no response waits for: nothing of it is amended. `essential`
        entries may use the outbox's reserve. `timeout`, in seconds, is the ledger's: this disk is waited for.

        `meanwhile` is called while the acknowledgement becomes durable, and waited for: what else is to be durable
        before a response goes out need not come after it. It MUST NOT raise.
        """
        withheld = withheld and kind is Kind.RECEIPT
        outgoing = self._submit(kind, body, vault, withheld=withheld, essential=essential)
        sealed = outgoing.sealed
        awaiting = Awaiting(sealed.issuer_seq)
        self._answers.expect(awaiting)
        try:
            async with asyncio.timeout(timeout):
                answer = await awaiting.answer
            committed = Committed(
                sealed.entry_id,
                self._issuer.id,
                sealed.issuer_seq,
                sealed.salt,
                sealed.canonical,
                answer.acknowledgement,
            )
            others = () if meanwhile is None else (meanwhile(committed),)
            await asyncio.gather(asyncio.shield(answer.durable), *others)
            return committed
        except TimeoutError as error:
            self._withdraw(outgoing, vault, amendment or {}, withheld=withheld)
            raise LedgerUnavailable(f"no acknowledgement within {timeout:.1f} s", sealed.entry_id) from error
        except asyncio.CancelledError:
            self._withdraw(outgoing, vault, abandoned or {}, withheld=withheld)
            raise
        finally:
            self._answers.forget(awaiting)

    async def enqueue(
        self, kind: Kind, body: Mapping[str, Any], *, vault: VaultKey | None, essential: bool = False
    ) -> Enqueued:
        """Make an entry durable here and return; it is sent until the ledger has it. Nothing is withheld for it.

        `essential` entries may use the outbox's reserve. Raises `OutboxFull`, `EntryTooLarge` or `JsonMalformed`.
        """
        outgoing = self._submit(kind, body, vault, withheld=False, essential=essential)
        await asyncio.shield(outgoing.durable)
        return Enqueued(outgoing.sealed.entry_id, self._issuer.id, outgoing.sealed.issuer_seq)

    def released(self, committed: Committed) -> None:
        """The response that was withheld for this receipt is out."""
        self._outbox.append(Cut(committed.issuer, committed.issuer_seq))

    def withdrawn(self, committed: Committed, *, vault: VaultKey | None, amendment: Mapping[str, Any]) -> None:
        """The response that was withheld for this receipt will not go out: amend it, as `commit` does by itself."""
        self._amend_now(committed.entry_id, committed.issuer_seq, vault, amendment, NOT_RELEASED)

    def uncertain(self, committed: Committed, *, vault: VaultKey | None) -> None:
        """The response was going out when its reader went: nobody here knows how much of the rest came. Amend it so."""
        self._amend_now(committed.entry_id, committed.issuer_seq, vault, {}, RELEASE_UNKNOWN)

    def introduce(self, keyset: Keyset) -> asyncio.Future[None]:
        """Begin the sequence. MUST come before any other entry. The future resolves once it IS durable.

        Even a full outbox takes it: without it nothing could be sent that would empty the outbox.
        """
        return self._hand_over(Kind.KEYSET, keyset.body(), None, withheld=False, cuts=()).durable

    async def introduce_again(
        self, certificate: bytes, evidence: bytes, report: Mapping[str, Any], *, timeout: float
    ) -> Committed:
        """Log under which evidence and report this issuer writes on; return once the ledger has it.

        `certificate` is DER, `evidence` the document that it names, whose claims MUST name the same log key. Raises
        what `commit` raises; where that is `LedgerUnavailable`, the entry is still logged later.
        """
        keyset = Keyset(self._issuer.spki, self._issuer.boot, certificate, evidence, report, None)
        return await self.commit(Kind.KEYSET, keyset.body(), vault=None, timeout=timeout, essential=True)

    async def amend_earlier(self, open_vault: OpenVault | None) -> None:
        """Say of every response that an earlier start left open what is known of it; try until all is said."""

        def amend(cut: Cut, effect: str, vault: VaultKey) -> None:
            body = {"entry_id": entry_id(cut.issuer, cut.issuer_seq).hex(), "effect": effect}
            self._submit(Kind.AMENDMENT, body, vault, withheld=False, cuts=(cut,))

        await amend_left_open(self._outbox, amend, open_vault)

    def _withdraw(
        self, outgoing: Outgoing, vault: VaultKey | None, members: Mapping[str, Any], *, withheld: bool
    ) -> None:
        if withheld:
            self._amend_now(outgoing.sealed.entry_id, outgoing.sealed.issuer_seq, vault, members, NOT_RELEASED)

    def _amend_now(
        self, entry_id: bytes, issuer_seq: int, vault: VaultKey | None, members: Mapping[str, Any], effect: str
    ) -> None:
        try:
            self._submit(
                Kind.AMENDMENT,
                {**members, "entry_id": entry_id.hex(), "effect": effect},
                vault,
                withheld=False,
                cuts=(Cut(self._issuer.id, issuer_seq),),
            )
        except MeshError as error:
            # The receipt stays open in the outbox; the next start amends it.
            log.error("a receipt cannot be amended now", entry_id=entry_id.hex(), reason=error.reason)

    def _submit(
        self,
        kind: Kind,
        body: Mapping[str, Any],
        vault: VaultKey | None,
        *,
        withheld: bool,
        essential: bool = False,
        cuts: tuple[Cut, ...] = (),
    ) -> Outgoing:
        # An amendment has no share to keep to: each is of a receipt that had.
        tenant = None if vault is None or kind is Kind.AMENDMENT else vault.tenant
        self.require_room(essential=essential, tenant=tenant)
        return self._hand_over(kind, body, vault, withheld=withheld, cuts=cuts)

    def _hand_over(
        self, kind: Kind, body: Mapping[str, Any], vault: VaultKey | None, *, withheld: bool, cuts: tuple[Cut, ...]
    ) -> Outgoing:
        """Seal and send. Once the number is taken nothing may stop the record."""
        sealed = self._issuer.seal(kind, body, vault)
        if not withheld:
            cuts = (*cuts, Cut(self._issuer.id, sealed.issuer_seq))
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        outgoing = Outgoing(sealed, cuts, durable)
        self._sender.take(outgoing)
        return outgoing


@asynccontextmanager
async def open_publisher(
    member: PublishingMember,
    settings: EventSettings,
    ledger_peer: LedgerPeer,
    *,
    log_key: Ed25519PrivateKey,
    open_vault: OpenVault | None = None,
    report: Mapping[str, Any] | None = None,
    acknowledgements: AckSource | None = None,
    timing: Timing | None = None,
    reserve_bytes: int = 0,
) -> AsyncIterator[Publisher]:
    """Open at once, as a new issuer whose keyset IS durable then; broker and ledger are sought in the background until
    the body ends.

    `log_key` MUST be fresh for this process start, and the evidence's claims must name it as `log_key` (hex of its 32
    bytes). `reserve_bytes` of the outbox are for entries that are `essential`. Raises `LogKeyNotAttested`,
    `OutboxDamaged`, `OutboxInUse`; inside a group `OutboxFailed`, which ends it.
    """
    issuer = Issuer(log_key)
    credential = member.identity.current
    if credential.evidence.claims.get("log_key") != issuer.log_key.hex():
        raise LogKeyNotAttested("put the log key into the evidence's claims before joining")
    source = acknowledgements or LedgerAcknowledgements(
        ledger_peer, f"{member.trust_domain}/ledger/{settings.log_number}"
    )
    async with (
        open_outbox(
            settings.outbox,
            issuer.id,
            max_bytes=settings.outbox_max_bytes,
            # Room is made file by file: in one that holds all there is room for, none would ever be.
            part_bytes=min(DEFAULT_PART_BYTES, settings.outbox_max_bytes // _LEAST_PARTS),
            reserve_bytes=reserve_bytes,
        ) as outbox,
        connect_nats(
            settings.nats_url,
            member.broker(settings.broker),
            server_name=f"broker.{member.trust_domain}",
            name=f"{member.role}/{member.instance}",
            inbox_prefix=inbox_prefix(member.role),
        ) as link,
        asyncio.TaskGroup() as tasks,
    ):
        sender = Sender(issuer, outbox, link, settings.log_number, timing or Timing(), tasks)
        answers = Answers(outbox, issuer.id)
        publisher = Publisher(issuer, outbox, sender, answers)
        introduced = publisher.introduce(
            Keyset(
                issuer.spki,
                issuer.boot,
                credential.certificate.der,
                credential.evidence.document,
                report,
                outbox.previous,
            )
        )
        upkeep = [
            tasks.create_task(sender.collect()),
            tasks.create_task(sender.resend()),
            tasks.create_task(publisher.amend_earlier(open_vault)),
            *(tasks.create_task(answers.follow(source, one)) for one in (*outbox.earlier, issuer.id)),
        ]
        try:
            await asyncio.shield(introduced)
            yield publisher
            await sender.flush()
        finally:
            for task in upkeep:
                task.cancel()
            answers.abandon()
