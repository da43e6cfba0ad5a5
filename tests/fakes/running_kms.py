"""A KMS wired as in production, but for its log, which is in memory and can be away.

The minutes by which certificates are counted do not pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from libs.events.outbox import OutboxFull
from libs.events.publish import LedgerUnavailable
from libs.events.vault import VaultKey
from libs.identity.bootstrap_leaf import make_bootstrap_leaf
from libs.identity.member import Member
from libs.identity.renewal import Prover
from libs.rpc.bounds import BOOTSTRAP
from libs.rpc.middleware import public_middleware
from libs.rpc.server import serving
from libs.tee.dstack import Guest
from libs.transparency.leaf import Kind
from services.devtee.machine import VirtualTd
from services.kms.bootstrap import KmsBootstrapServicer, bootstrap_binding
from services.kms.currency import Currency
from services.kms.decisions import Decisions
from services.kms.keys import KeyService, open_keys
from services.kms.publication import Publication
from services.kms.replication import Replication, ReplicationServicer, replication_binding
from services.kms.revocation import Revocations
from services.kms.root import Root
from services.kms.servicer import KmsServicer, kms_binding
from services.kms.statements import StatementSource
from tests.fakes.entry_schema import require_documented
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore

ALONE = "127.0.0.1:0"


@dataclass(slots=True)
class DecisionLog:
    """A publisher whose ledger acknowledges at once, or is away."""

    away: bool = False
    full: bool = False
    """Whether nothing more can be made durable here."""
    crowded: bool = False
    """Whether only what is essential can."""
    broken: Exception | None = None
    """The bug that whoever waits for the ledger runs into."""
    meanwhile: Callable[[], Awaitable[None]] | None = None
    """What happens while somebody waits for the ledger."""
    entries: list[tuple[Kind, Mapping[str, Any]]] = field(default_factory=list)
    """What the ledger has."""
    outbox: list[tuple[Kind, Mapping[str, Any]]] = field(default_factory=list)
    """What is durable here and waits for it."""

    async def commit(
        self, kind: Kind, body: Mapping[str, Any], *, vault: VaultKey | None, timeout: float, essential: bool = False
    ) -> None:
        if self.broken is not None:
            raise self.broken
        require_documented(kind, body)
        self._require_room(essential=essential)
        if self.away:
            raise LedgerUnavailable("the ledger did not acknowledge in time", bytes(32))
        self.entries.append((kind, body))
        if (meanwhile := self.meanwhile) is not None:
            self.meanwhile = None
            await meanwhile()

    async def enqueue(
        self, kind: Kind, body: Mapping[str, Any], *, vault: VaultKey | None, essential: bool = False
    ) -> None:
        require_documented(kind, body)
        self._require_room(essential=essential)
        self.outbox.append((kind, body))

    @property
    def decisions(self) -> list[str]:
        """Every key decision: "released ledger-keyring"."""
        everything = [*self.entries, *self.outbox]
        return [f"{body['decision']} {body['name']}" for kind, body in everything if kind is Kind.KEY_DECISION]

    def _require_room(self, *, essential: bool) -> None:
        if self.full or (self.crowded and not essential):
            raise OutboxFull("the outbox is full")


@dataclass(frozen=True, slots=True)
class RunningKms:
    core: KmsCore
    member: Member
    log: DecisionLog
    keys: KeyService
    currency: Currency
    """It has just read its log to the end."""
    currency_clock: Clock
    """By which that grows old."""
    target: str
    """host:port of the mesh listener."""
    bootstrap: str
    """host:port of the bootstrap listener."""


@asynccontextmanager
async def bootstrap_listener(
    mesh: JoinedMesh,
    kms: KmsCore,
    *,
    td: VirtualTd | None = None,
    claims: Mapping[str, Any] | None = None,
    leaf_spki: bytes | None = None,
    log: DecisionLog | None = None,
    clock: Callable[[], float] | None = None,
) -> AsyncIterator[str]:
    """The KMS's listener without client certificates; it can be bent by what its evidence says.

    `clock` is what certificates a minute are counted by; without one it is always the same minute.
    """
    async with mesh.guest(td or mesh.tds["kms"]) as socket, Guest(socket) as guest:
        said = {"role": "kms", "ca_spki_sha256": kms.ca.spki_sha256.hex(), **(claims or {})}
        leaf = make_bootstrap_leaf("kms", TRUST_DOMAIN)
        prover = Prover(guest, mesh.collateral, said)
        decisions = Decisions(log or DecisionLog(), clock or Clock(0.0))
        servicer = KmsBootstrapServicer(prover, leaf_spki or leaf.spki, kms.ca, kms.challenges, kms.issuance, decisions)
        binding = bootstrap_binding(servicer)
        async with serving(
            ALONE, leaf.credentials, [binding], public_middleware(binding.methods), drain_seconds=0, bounds=BOOTSTRAP
        ) as running:
            yield f"127.0.0.1:{running.port}"


@asynccontextmanager
async def running_kms(
    mesh: JoinedMesh,
    kms: KmsCore,
    make_servicer: Callable[..., KmsServicer] = KmsServicer,
    *,
    clock: Callable[[], float] | None = None,
) -> AsyncIterator[RunningKms]:
    """Another servicer is a KMS that lies to those who have appraised it. `clock` as in `bootstrap_listener`."""
    log = DecisionLog()
    decisions = Decisions(log, clock or Clock(0.0))
    statements = StatementSource(kms.ca, kms.policy)
    publication = Publication(kms.policy, decisions)
    currency_clock = Clock(0.0)
    currency = Currency(currency_clock)
    currency.heard()
    spiffe_id = f"spiffe://{TRUST_DOMAIN}/kms/1"
    keys = open_keys(mesh.folder, spiffe_id, kms.keyring, kms.ca, kms.policy, decisions, currency)
    revocations = Revocations(kms.policy, decisions)
    servicer = make_servicer(kms.ca, kms.policy, statements, publication, revocations, keys, decisions)
    claims = {"ca_spki_sha256": kms.ca.spki_sha256.hex()}
    async with (
        bootstrap_listener(mesh, kms, log=log, clock=clock) as bootstrap,
        mesh.member("kms", kms, claims=claims, keeper=kms.policy) as member,
        asyncio.TaskGroup() as tasks,
        AsyncExitStack() as stack,
    ):
        prover = Prover(member.guest, mesh.collateral, {"role": "kms", **claims})
        root = Root(mesh.root)
        replication = Replication(root, prover, member.identity, kms.challenges, kms.policy, decisions, currency)
        bindings = [kms_binding(servicer), replication_binding(ReplicationServicer(replication))]
        inner = await stack.enter_async_context(member.serve(bindings))
        stating = tasks.create_task(statements.keep(60))
        yield RunningKms(kms, member, log, keys, currency, currency_clock, f"127.0.0.1:{inner.port}", bootstrap)
        stating.cancel()
