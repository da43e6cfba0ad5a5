"""One key names the next: what a receiver refuses, each with its reason, and what goes on once it believes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.certificate import Subject, issue, parse
from libs.identity.freshness import PolicyKeeper
from libs.identity.handover import Successor, name_successor
from libs.identity.judge import Judge
from libs.identity.lease import Leases
from libs.identity.link import Link
from libs.identity.member import Member
from libs.identity.reappraisal import reappraise
from libs.identity.renewal import Credential
from libs.policy.revocation import RevocationKind
from libs.rpc.channel import open_channel
from libs.rpc.errors import reason_of, remote_errors
from tests.fakes.certified_router import CertifiedRouter
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore
from tests.faults.patience import until
from tests.unit.libs.identity.test_peers import Ticker, ended, ledger_at, moved, tail_on

LIFE_SECONDS = 10


@dataclass(slots=True)
class Bench:
    """A router that has renewed, and all that it takes to lie about it."""

    mesh: JoinedMesh
    kms: KmsCore
    clock: Clock
    shown: Credential
    following: Credential

    def another(self, **changes: Any) -> Credential:
        return credential(CertifiedRouter(self.mesh, self.kms, self.clock), **changes)

    def certified_as(self, subject: Subject, kms: KmsCore | None = None, now: float | None = None) -> bytes:
        """The next key and its evidence in another certificate."""
        by = kms or self.kms
        key = self.following.key.public_key()
        return issue(subject, key, by.ca.key, by.ca.certificate, now=self.clock() if now is None else now)

    @property
    def subject(self) -> Subject:
        return Subject(TRUST_DOMAIN, "router", "1", self.following.evidence.digest)

    def signed(self, der: bytes, **changes: Any) -> Successor:
        """What the old key says of a certificate."""
        return replace(name_successor(self.shown, with_certificate(self.following, der)), **changes)


def credential(router: CertifiedRouter) -> Credential:
    return Credential(router.key, router.certificate, router.evidence)


def with_certificate(held: Credential, der: bytes) -> Credential:
    return replace(held, certificate=parse(der))


@pytest.fixture
def bench(mesh: JoinedMesh) -> Bench:
    clock = Clock()
    kms = mesh.kms(clock=clock)
    first, second = (CertifiedRouter(mesh, kms, clock) for _ in range(2))
    return Bench(mesh, kms, clock, credential(first), credential(second))


@pytest.fixture
def keeper(mesh: JoinedMesh, bench: Bench) -> PolicyKeeper:
    return mesh.keeper("receiver", clock=bench.clock)


@pytest.fixture
def judge(bench: Bench, keeper: PolicyKeeper) -> Judge:
    class Holder:
        ca_certificate = bench.kms.ca.certificate

    return Judge(Holder(), keeper, lambda: bench.kms.ca.spki, bench.clock)  # type: ignore[arg-type]  # The CA is asked for.


def bare_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    return key.sign(message, ec.ECDSA(hashes.SHA256()))


Lie = Callable[[Bench], Successor]
LIES: dict[str, tuple[str, Lie]] = {
    "from another mesh's CA": (
        "SUCCESSOR_NOT_ISSUED",
        lambda b: b.signed(b.certified_as(b.subject, kms=b.mesh.kms("other", root=bytes(32)))),
    ),
    "that has ended": (
        "SUCCESSOR_NOT_ISSUED",
        lambda b: b.signed(b.certified_as(b.subject, now=b.clock() - 7200)),
    ),
    "that is no certificate": (
        "SUCCESSOR_NOT_ISSUED",
        lambda b: replace(name_successor(b.shown, b.following), certificate=b"certificate"),
    ),
    "of another instance": (
        "SUCCESSOR_OF_ANOTHER_NAME",
        lambda b: b.signed(b.certified_as(replace(b.subject, instance="2"))),
    ),
    "of another role": (
        "SUCCESSOR_OF_ANOTHER_NAME",
        lambda b: b.signed(b.certified_as(replace(b.subject, role="ledger"))),
    ),
    "of another trust domain": (
        "SUCCESSOR_OF_ANOTHER_NAME",
        lambda b: b.signed(b.certified_as(replace(b.subject, trust_domain="other.test"))),
    ),
    "that only its own key vouches for": (
        "SUCCESSOR_NOT_SIGNED",
        lambda b: name_successor(b.following, b.following),
    ),
    "that another router of the name vouches for": (
        "SUCCESSOR_NOT_SIGNED",
        lambda b: name_successor(b.another(), b.following),
    ),
    "that the old key vouched for as another": (
        "SUCCESSOR_NOT_SIGNED",
        lambda b: b.signed(b.following.certificate.der, signature=name_successor(b.shown, b.another()).signature),
    ),
    "whose digest was signed for some other end": (
        "SUCCESSOR_NOT_SIGNED",
        lambda b: replace(
            name_successor(b.shown, b.following),
            signature=bare_signature(b.shown.key, sha256(b.following.certificate.der).digest()),
        ),
    ),
    "without a signature": (
        "SUCCESSOR_NOT_SIGNED",
        lambda b: replace(name_successor(b.shown, b.following), signature=b""),
    ),
    "with the old evidence": (
        "EVIDENCE_MISMATCH",
        lambda b: replace(name_successor(b.shown, b.following), document=b.shown.evidence.document),
    ),
    "of a key that its evidence does not speak for": (
        "SPKI_MISMATCH",
        lambda b: b.signed(
            b.certified_as(replace(b.subject, evidence_digest=b.shown.evidence.digest)),
            document=b.shown.evidence.document,
        ),
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_successor_is_refused(bench: Bench, judge: Judge, lie: str) -> None:
    reason, tell = LIES[lie]
    with pytest.raises(MeshError) as error:
        judge.successor(tell(bench), bench.shown.certificate)
    assert error.value.reason == reason


def test_a_successor_earns_what_its_own_evidence_does(bench: Bench, judge: Judge) -> None:
    successor = name_successor(bench.shown, bench.following)
    lease = judge.successor(successor, bench.shown.certificate)
    assert lease == judge.lease(bench.following.certificate, bench.following.evidence.document)


def test_a_successor_that_policy_refuses_earns_nothing(bench: Bench, judge: Judge, keeper: PolicyKeeper) -> None:
    keeper.accept(bench.mesh.successor(keeper.current, roles=bench.mesh.without("router")))
    with pytest.raises(MeshError) as error:
        judge.successor(name_successor(bench.shown, bench.following), bench.shown.certificate)
    assert error.value.reason == "MEASUREMENT_NOT_ALLOWED"


@pytest.fixture
def leases(bench: Bench, keeper: PolicyKeeper) -> Leases:
    return Leases(keeper, lambda: bench.kms.ca.spki, bench.clock)


def opened(leases: Leases, held: Credential) -> bytes:
    leases.open(held.certificate, held.evidence.document)
    return held.certificate.spki_sha256


def test_without_a_live_lease_there_is_nothing_to_hand_over(bench: Bench, leases: Leases) -> None:
    key = bench.shown.certificate.spki_sha256
    for _ in range(2):
        with pytest.raises(MeshError) as error:
            leases.extend(key, bench.following.certificate, bench.following.evidence.document)
        assert error.value.reason == "EVIDENCE_REQUIRED"
        opened(leases, bench.shown)
        bench.clock.now = bench.shown.certificate.not_after


def test_a_lease_that_was_handed_over_ends_with_the_successors(bench: Bench, leases: Leases) -> None:
    key = opened(leases, bench.shown)
    bench.clock.now += 1800
    later = bench.another()
    assert later.certificate.not_after > bench.shown.certificate.not_after
    leases.extend(key, later.certificate, later.evidence.document)
    bench.clock.now = later.certificate.not_after - 1
    leases.sweep()
    assert leases.of(key).until == later.certificate.not_after
    bench.clock.now += 1
    with pytest.raises(MeshError):
        leases.of(key)
    leases.sweep()
    assert leases.ends_at(key) == 0


def test_a_successor_never_shortens_a_lease(bench: Bench, leases: Leases) -> None:
    key = opened(leases, bench.shown)
    short = with_certificate(
        bench.following,
        issue(
            bench.subject,
            bench.following.key.public_key(),
            bench.kms.ca.key,
            bench.kms.ca.certificate,
            now=bench.clock(),
            lifetime_seconds=60,
        ),
    )
    leases.extend(key, short.certificate, short.evidence.document)
    assert leases.of(key).until == bench.shown.certificate.not_after
    # Nor does whoever presents the first evidence again once a later one counts.
    bench.clock.now += 1800
    later = bench.another()
    leases.extend(key, later.certificate, later.evidence.document)
    opened(leases, bench.shown)
    assert leases.of(key).until == later.certificate.not_after


async def test_a_policy_that_refuses_the_successor_ends_the_whole_chain_at_once(
    bench: Bench, leases: Leases, keeper: PolicyKeeper
) -> None:
    keys = [opened(leases, bench.shown)]
    leases.extend(keys[0], bench.following.certificate, bench.following.evidence.document)
    keys.append(opened(leases, bench.following))
    keeper.accept(bench.mesh.successor(keeper.current, roles=bench.mesh.without("router")))
    await reappraise(keeper, lambda: (leases,))
    assert [leases.ends_at(key) for key in keys] == [0, 0]


async def test_the_successors_evidence_is_what_a_new_policy_judges(
    bench: Bench, leases: Leases, keeper: PolicyKeeper
) -> None:
    key = opened(leases, bench.shown)
    bench.clock.now += 1800
    later = bench.another()
    leases.extend(key, later.certificate, later.evidence.document)
    # By now the first evidence is too old for the policy, and the successor's is not.
    keeper.accept(bench.mesh.successor(keeper.current, evidence_max_age_seconds=600))
    await reappraise(keeper, lambda: (leases,))
    assert leases.of(key).evidence.digest == later.evidence.digest


async def test_a_revoked_key_takes_along_what_rests_on_its_successor(
    bench: Bench, leases: Leases, keeper: PolicyKeeper
) -> None:
    """Whoever stole the old key holds the connection that it opened, whatever key it named before."""
    key = opened(leases, bench.shown)
    bench.clock.now += 1800
    later = bench.another()
    leases.extend(key, later.certificate, later.evidence.document)
    assert leases.of(key).certificate == later.certificate
    keeper.accept_revocations([bench.mesh.revocation(RevocationKind.KEY, key.hex())])
    await reappraise(keeper, lambda: (leases,))
    assert leases.ends_at(key) == 0


async def test_a_revoked_server_key_takes_along_what_rests_on_its_successor(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with (
        ledger_at(mesh, kms, Ticker()) as (ledger, target),
        mesh.member("router", kms) as router,
        asyncio.timeout(20),
    ):
        link = await router.peer("ledger", target).link(10)
        stream = tail_on(link.channel)
        assert await stream.read() == ledger_pb2.TailResponse()
        shown = link.lease.certificate.spki_sha256
        await ledger.identity.obtain()
        await until(_superseded(link))
        router.policy.accept_revocations([mesh.revocation(RevocationKind.KEY, shown.hex())])
        assert (await ended(stream)).code is Code.UNAVAILABLE


def _superseded(link: Link) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return link.is_superseded

    return holds


def channel_of(held: Credential, ledger: Member, target: str) -> grpc.aio.Channel:
    return open_channel(
        target,
        root_pem=ledger.ca_pem,
        server_name=f"ledger.{TRUST_DOMAIN}",
        key_pem=held.key_pem,
        certificate_pem=held.certificate.pem,
    )


async def present(channel: grpc.aio.Channel, successor: Successor) -> str | None:
    """Present a next certificate; return why it is refused, if it is."""
    request = evidence_pb2.PresentEvidenceRequest(
        document=successor.document, next_certificate=successor.certificate, signature=successor.signature
    )
    try:
        await evidence_pb2_grpc.EvidenceServiceStub(channel).PresentEvidence(request, timeout=10)
    except grpc.aio.AioRpcError as error:
        return reason_of(error)
    return None


@pytest.mark.parametrize("lie", LIES)
async def test_a_server_refuses_a_clients_successor(mesh: JoinedMesh, kms: KmsCore, bench: Bench, lie: str) -> None:
    reason, tell = LIES[lie]
    async with ledger_at(mesh, kms, Ticker()) as (ledger, target), channel_of(bench.shown, ledger, target) as channel:
        own = evidence_pb2.PresentEvidenceRequest(document=bench.shown.evidence.document)
        await evidence_pb2_grpc.EvidenceServiceStub(channel).PresentEvidence(own, timeout=10)
        until = ledger.leases.ends_at(bench.shown.certificate.spki_sha256)
        assert await present(channel, tell(bench)) == reason
        assert ledger.leases.ends_at(bench.shown.certificate.spki_sha256) == until


async def test_a_genuine_successor_is_refused_on_another_connection(
    mesh: JoinedMesh, kms: KmsCore, bench: Bench
) -> None:
    """Who overheard it cannot have its own connection rest on it."""
    thief = bench.another()
    async with ledger_at(mesh, kms, Ticker()) as (ledger, target), channel_of(thief, ledger, target) as channel:
        own = evidence_pb2.PresentEvidenceRequest(document=thief.evidence.document)
        await evidence_pb2_grpc.EvidenceServiceStub(channel).PresentEvidence(own, timeout=10)
        assert await present(channel, name_successor(bench.shown, bench.following)) == "SUCCESSOR_NOT_SIGNED"


async def test_a_successor_opens_no_lease_where_there_is_none(mesh: JoinedMesh, kms: KmsCore, bench: Bench) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (ledger, target), channel_of(bench.shown, ledger, target) as channel:
        assert await present(channel, name_successor(bench.shown, bench.following)) == "EVIDENCE_REQUIRED"


async def test_renewals_are_announced_for_keys_that_the_server_holds_only(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (_, target), mesh.member("router", kms) as router:
        link = await router.peer("ledger", target).link(10)
        stub = evidence_pb2_grpc.EvidenceServiceStub(link.channel)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.WatchRenewals(evidence_pb2.WatchRenewalsRequest(spki_sha256=bytes(32))).read()
    assert reason_of(error.value) == "KEY_NOT_HELD"


async def test_who_connected_just_before_a_renewal_hears_of_it_at_once(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (ledger, target), mesh.member("router", kms) as router:
        link = await router.peer("ledger", target).link(10)
        shown = ledger.identity.current
        await ledger.identity.obtain()
        call = evidence_pb2_grpc.EvidenceServiceStub(link.channel).WatchRenewals(
            evidence_pb2.WatchRenewalsRequest(spki_sha256=shown.certificate.spki_sha256)
        )
        first = await call.read()
        assert isinstance(first, evidence_pb2.WatchRenewalsResponse)
        assert first.successor.certificate == ledger.identity.current.certificate.der


@asynccontextmanager
async def ticking(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[tuple[Member, Member, Ticker, str]]:
    """A router and a ledger whose certificates are short-lived."""
    ticker = Ticker()
    async with ledger_at(mesh, kms, ticker) as (ledger, target), mesh.member("router", kms) as router:
        yield router, ledger, ticker, target


async def test_a_stream_goes_on_when_the_certificates_that_it_began_with_have_ended(mesh: JoinedMesh) -> None:
    kms = mesh.kms(service_seconds=LIFE_SECONDS)
    async with asyncio.timeout(60), ticking(mesh, kms) as (router, ledger, ticker, target):
        peer = router.peer("ledger", target)
        link = await peer.link(10)
        call = tail_on(link.channel)
        assert await call.read() == ledger_pb2.TailResponse()
        first = max(member.identity.current.certificate.not_after for member in (router, ledger))
        while time.time() <= first + LIFE_SECONDS:
            with remote_errors():
                ticker.ticks.put_nowait(None)
                assert await call.read() == ledger_pb2.TailResponse()
            await asyncio.sleep(0.1)
        assert not peer.is_live(link)  # What runs goes on, and nothing starts there any more.
        # A policy ends it all the same, however often it was handed over.
        ledger.policy.accept(mesh.successor(ledger.policy.current, roles=mesh.without("router")))
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()


async def test_what_asks_for_no_lease_rests_on_one_all_the_same(mesh: JoinedMesh) -> None:
    """Health may be watched without; whoever has a lease that was handed over watches on, and is told of its end."""
    kms = mesh.kms(service_seconds=LIFE_SECONDS)
    async with (
        asyncio.timeout(60),
        mesh.member("ledger", kms) as ledger,
        ledger.serve([]) as running,
        mesh.member("router", kms) as router,
    ):
        link = await router.peer("ledger", f"127.0.0.1:{running.port}").link(10)
        first = link.credential
        watch = health_pb2_grpc.HealthStub(link.channel).Watch(health_pb2.HealthCheckRequest())  # type: ignore[no-untyped-call]
        await watch.read()
        await until(lambda: _has_ended(first))
        running.ready()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        ledger.policy.accept(mesh.successor(ledger.policy.current, roles=mesh.without("router")))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await watch.read()
    assert reason_of(error.value) == "EVIDENCE_REQUIRED"


async def _has_ended(held: Credential) -> bool:
    return time.time() >= held.certificate.not_after


async def test_no_work_starts_on_a_certificate_that_has_ended(mesh: JoinedMesh, bench: Bench) -> None:
    """Though what runs on it goes on: the exchange of evidence alone does."""
    short = mesh.kms(service_seconds=2)
    async with ledger_at(mesh, short, Ticker()) as (ledger, target):
        first, second = (credential(CertifiedRouter(mesh, short, time.time)) for _ in range(2))
        brief = with_certificate(
            first,
            issue(
                Subject(TRUST_DOMAIN, "router", "1", first.evidence.digest),
                first.key.public_key(),
                short.ca.key,
                short.ca.certificate,
                now=time.time(),
                lifetime_seconds=2,
            ),
        )
        async with channel_of(brief, ledger, target) as channel:
            stub = evidence_pb2_grpc.EvidenceServiceStub(channel)
            await stub.PresentEvidence(
                evidence_pb2.PresentEvidenceRequest(document=brief.evidence.document), timeout=10
            )
            assert await present(channel, name_successor(brief, second)) is None
            await until(lambda: _has_ended(brief))
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await ledger_pb2_grpc.LedgerServiceStub(channel).Tail(ledger_pb2.TailRequest()).read()
            assert reason_of(error.value) == "CERTIFICATE_NOT_ACCEPTED"
            assert await present(channel, name_successor(brief, second)) is None


async def test_new_calls_move_to_the_peers_new_key_and_none_waits(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with ticking(mesh, kms) as (router, ledger, _, target):
        peer = router.peer("ledger", target)
        before = await peer.channel(10)
        await ledger.identity.obtain()
        await moved(peer, before)
        assert peer.lease.certificate == ledger.identity.current.certificate
