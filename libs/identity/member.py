"""It is responsible for joining the mesh: from a guest agent and a seed policy to an identity, peers and a listener.

Every service does it the same way; the KMS and the attestation service differ only in where certificates and
collateral come from, and pass those in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from libs.errors import MeshError
from libs.gpus.collector import collecting
from libs.identity.admission import BrokerAdmission
from libs.identity.any_peer import AnyPeer
from libs.identity.authority import Authority, KmsAuthority
from libs.identity.certificate import pem_of, spki_of_certificate
from libs.identity.collateral import AttestationCollateral, CollateralSource
from libs.identity.exchange import EvidenceServicer, evidence_binding
from libs.identity.freshness import PolicyKeeper, load_keeper
from libs.identity.gate import MeshGate
from libs.identity.gpu import Gpus, GuestDevices
from libs.identity.gpu_watch import GpuSettings, GpuStanding, GpuWatch
from libs.identity.lease import Leases
from libs.identity.ledger_writer import LedgerWriter
from libs.identity.listener import listener_credentials
from libs.identity.peers import Peer
from libs.identity.policy_sources import RegistryPolicies
from libs.identity.reappraisal import reappraise
from libs.identity.renewal import Identity, Prover
from libs.identity.statements import KmsStatements, follow_statements
from libs.identity.streams import Streams
from libs.policy.compose import Anchors, read_anchors
from libs.rpc.calls import Middleware
from libs.rpc.channel import MESSAGE_BYTES
from libs.rpc.middleware import standard_middleware
from libs.rpc.policies import ServiceBinding
from libs.rpc.server import Serving, serving
from libs.tee.dstack import Guest
from libs.tee.evidence import Evidence

_SWEEP_SECONDS = 1.0
_GPUS = GpuSettings()

log = structlog.get_logger()


class MeasuredConfigurationMismatch(MeshError):
    """What the service was told to be is not what its measured app-compose says."""

    reason = "MEASURED_CONFIGURATION_MISMATCH"


@dataclass(frozen=True, slots=True)
class MemberSettings:
    """The TOML table [member] of every service."""

    instance: str
    """Name of this instance within its role: lower-case letters, digits, hyphens."""
    trust_domain: str
    """The mesh's SPIFFE trust domain; must be the measured one."""
    listen: str
    """host:port of the mutual-TLS gRPC listener."""
    state_dir: Path
    """Folder for what must survive a restart."""
    guest_socket: Path
    """Unix socket of the dstack guest agent."""
    seed_policy: Path
    """The signed policy to begin with."""
    kms: tuple[str, ...]
    """host:port of the mesh listener of each instance of the KMS, in order of preference."""
    kms_bootstrap: tuple[str, ...]
    """host:port of their bootstrap listeners."""
    attestation_bootstrap: str
    """host:port of the attestation service's bootstrap listener."""
    statement_poll_seconds: float = 1.0
    """How soon the KMS's policy statements are watched again after the watch broke off, seconds."""
    drain_seconds: float = 5.0
    """How long running calls may go on after SIGTERM, seconds."""

    def __post_init__(self) -> None:
        if not self.kms or not self.kms_bootstrap:
            raise ValueError("kms and kms_bootstrap must name at least one instance")


class Member:
    """A service that has an identity. Everything that it does with others starts here."""

    def __init__(
        self,
        settings: MemberSettings,
        role: str,
        anchors: Anchors,
        guest: Guest,
        policy: PolicyKeeper,
        identity: Identity,
    ) -> None:
        self.settings = settings
        self.role = role
        self.anchors = anchors
        self.guest = guest
        self.policy = policy
        self.identity = identity
        self.leases = Leases(policy, self.ca_spki)
        self.streams = Streams(policy)
        self.gpus = GpuStanding()
        self._peers: dict[tuple[str, str], Peer] = {}
        self._kms: AnyPeer | None = None

    @property
    def instance(self) -> str:
        return self.settings.instance

    @property
    def trust_domain(self) -> str:
        return self.settings.trust_domain

    @property
    def spiffe_id(self) -> str:
        return self.identity.current.certificate.spiffe_id

    @property
    def ca_pem(self) -> bytes:
        return pem_of(self.identity.ca_certificate)

    def peer(self, role: str, target: str, *, answer_bytes: int = MESSAGE_BYTES) -> Peer:
        """Return the one `Peer` for this role and address; it connects when first used.

        Whoever is the first to ask for it says how large one message of its answers may be.
        """
        key = (role, target)
        if key not in self._peers:
            self._peers[key] = Peer(role, target, self.identity, self.policy, self.ca_spki, answer_bytes=answer_bytes)
        return self._peers[key]

    def any_peer(self, role: str, targets: Sequence[str]) -> AnyPeer:
        """Return whichever instance of a role is there, of those at these addresses. There MUST be one."""
        return AnyPeer([self.peer(role, target) for target in targets])

    def ledger(self, targets: Sequence[str]) -> Peer | LedgerWriter:
        """Return the writer of the log whose members are at these addresses. There MUST be one.

        Whoever reads the writer's `lease` beside what it said MUST ask for one of these of its own.
        """
        if len(targets) == 1:
            return self.peer("ledger", targets[0])
        return LedgerWriter([self.peer("ledger", target) for target in targets])

    def forget(self, role: str, target: str) -> bool:
        """Forget an address that nobody in this service uses any more, unless there is a connection; say whether.

        Nobody MUST hold its `Peer` to use it later: that one is not judged again when policy changes.
        """
        peer = self._peers.get((role, target))
        if peer is not None and not peer.is_idle:
            return False
        self._peers.pop((role, target), None)
        return True

    @property
    def kms(self) -> AnyPeer:
        """Whichever instance of the KMS is there."""
        if self._kms is None:
            self._kms = self.any_peer("kms", self.settings.kms)
        return self._kms

    def broker(self, target: str) -> BrokerAdmission:
        """One NATS client's way into the broker whose mesh listener is at this address."""
        return BrokerAdmission(self.peer("broker", target), self.identity)

    def known_evidence(self) -> Iterator[Evidence]:
        """This service's own evidence and that of every peer it has a connection to."""
        yield self.identity.current.evidence
        for peer in self._peers.values():
            if (lease := peer.live_lease()) is not None:
                yield lease.evidence

    def serve(
        self, bindings: Sequence[ServiceBinding], observers: Sequence[Middleware] = ()
    ) -> AbstractAsyncContextManager[Serving]:
        """Serve on the mesh listener: mutual TLS, the standard middleware, and the exchange of evidence."""
        gate = MeshGate(self.trust_domain, self.identity, self.policy, self.leases, self.streams)
        everything = [*bindings, evidence_binding(EvidenceServicer(self.identity, self.leases))]
        methods = {name: rule for binding in everything for name, rule in binding.methods.items()}
        return serving(
            self.settings.listen,
            listener_credentials(self.identity),
            everything,
            standard_middleware(gate, methods, observers),
            drain_seconds=self.settings.drain_seconds,
        )

    async def reappraise(self) -> None:
        """Judge everyone again, on both sides of every connection."""
        await reappraise(self.policy, lambda: (self.leases, *self._peers.values()))

    def sweep(self) -> None:
        """End what has run out, on both sides of every connection."""
        self.leases.sweep()
        self.streams.sweep()
        for peer in self._peers.values():
            peer.sweep()

    async def close(self) -> None:
        for peer in self._peers.values():
            await peer.close()

    def ca_spki(self) -> bytes:
        return spki_of_certificate(self.identity.ca_certificate)


@asynccontextmanager
async def join(
    settings: MemberSettings,
    role: str,
    claims: Mapping[str, Any],
    *,
    collateral: CollateralSource | None = None,
    registry: Sequence[str] = (),
    gpus: GpuSettings = _GPUS,
) -> AsyncIterator[Member]:
    """Join the mesh under a role, with these claims in the evidence (the role is added), until the body ends.

    Policy versions that the KMS states are taken from an instance of the registry, where addresses of it are known.
    Raises whatever refuses this service, or the KMS, under the policy. A KMS or attestation service that is away is
    waited for.
    """
    async with open_guest(settings, role) as (guest, anchors), collecting() as collector:
        devices = collector if gpus.source == "nvidia" else GuestDevices(guest)
        shown = Gpus(devices, settings.attestation_bootstrap, settings.trust_domain)
        prover = Prover(
            guest,
            collateral or AttestationCollateral(settings.attestation_bootstrap, settings.trust_domain),
            {"role": role, **claims},
            shown,
        )
        policy = load_keeper(settings.state_dir, settings.seed_policy, anchors)
        authority = KmsAuthority(settings.kms_bootstrap, settings.trust_domain)
        async with membership(settings, role, anchors, prover, policy, authority) as member:
            statements = KmsStatements(member.kms, member.identity)
            watch = GpuWatch(member.identity, policy, role, shown, member.gpus)
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(watch.keep(gpus.look_seconds))
                following = tasks.create_task(
                    follow_statements(
                        statements,
                        policy,
                        settings.statement_poll_seconds,
                        RegistryPolicies(member.any_peer("registry", registry)) if registry else None,
                    )
                )
                yield member
                following.cancel()
                watching.cancel()


@asynccontextmanager
async def membership(
    settings: MemberSettings,
    role: str,
    anchors: Anchors,
    prover: Prover,
    policy: PolicyKeeper,
    authority: Authority,
) -> AsyncIterator[Member]:
    """The part of joining that the KMS shares: obtain a certificate, renew it, follow policy, end with the body."""
    identity = Identity(prover, authority, policy, role, settings.instance)
    await identity.obtain()
    member = Member(settings, role, anchors, prover.guest, policy, identity)
    async with asyncio.TaskGroup() as tasks:
        upkeep = [
            tasks.create_task(identity.keep()),
            tasks.create_task(_follow_policy(member)),
            tasks.create_task(_sweep(member)),
        ]
        try:
            yield member
        finally:
            for task in upkeep:
                task.cancel()
            await member.close()


@asynccontextmanager
async def open_guest(settings: MemberSettings, role: str) -> AsyncIterator[tuple[Guest, Anchors]]:
    """Reach the guest agent and read what was measured. Raises `MeasuredConfigurationMismatch`."""
    async with Guest(settings.guest_socket) as guest:
        anchors = read_anchors(await guest.measured_compose())
        if (anchors.role, anchors.trust_domain) != (role, settings.trust_domain):
            raise MeasuredConfigurationMismatch(
                f"configured as {role} of {settings.trust_domain}, measured as {anchors.role} of {anchors.trust_domain}"
            )
        yield guest, anchors


async def _follow_policy(member: Member) -> None:
    while True:
        await member.policy.advanced()
        await member.reappraise()


async def _sweep(member: Member) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        member.sweep()
