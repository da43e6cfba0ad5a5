"""What was proven on one connection, or at one time, used on another: leases, next keys, servers, statements."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from grpc_health.v1 import health_pb2, health_pb2_grpc
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc

from libs.identity.certificate import parse
from libs.identity.freshness import MAX_SILENCE_SECONDS, PolicyKeeper
from libs.identity.gate import MeshGate
from libs.identity.handover import name_successor
from libs.identity.lease import Leases
from libs.identity.renewal import Credential
from libs.policy.revocation import RevocationKind
from libs.policy.statement import Statement, sign_statement, verify_statement
from libs.rpc.channel import open_channel
from libs.rpc.errors import remote_errors
from libs.rpc.middleware import standard_middleware
from libs.rpc.policies import ANY_ROLE, MethodRule, ServiceBinding
from libs.rpc.server import serving
from tests.fakes.joined_mesh import Clock, KmsCore
from tests.fakes.small_mesh import RoleGate
from tests.faults.patience import until
from tests.unit.libs.identity.relays.ground import Ground, fetch_evidence, hand_over, present
from tests.unit.libs.identity.relays.row import Attack, Row
from tests.unit.libs.identity.test_handover import LIES, Bench
from tests.unit.libs.identity.test_peers import EVIDENCE, Impostor

ANOTHER_KIND = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def succeeding(lie: str) -> Attack:
    """Name a next certificate on a connection that is believed."""

    async def attack(ground: Ground) -> None:
        bench = Bench(ground.mesh, ground.kms, Clock(), ground.genuine(), ground.genuine())
        async with ground.connected(bench.shown.key, bench.shown.certificate.der) as channel:
            await present(channel, bench.shown.evidence.document)
            await hand_over(channel, LIES[lie][1](bench))

    return attack


async def moved(ground: Ground) -> None:
    """Overheard, and said again on the thief's own connection."""
    victim, following, thief = (ground.genuine() for _ in range(3))
    async with ground.connected(thief.key, thief.certificate.der) as channel:
        await present(channel, thief.evidence.document)
        await hand_over(channel, name_successor(victim, following))


async def without_a_lease(ground: Ground) -> None:
    shown, following = ground.genuine(), ground.genuine()
    async with ground.connected(shown.key, shown.certificate.der) as channel:
        await hand_over(channel, name_successor(shown, following))


async def watching_another_key(ground: Ground) -> None:
    shown = ground.genuine()
    async with ground.connected(shown.key, shown.certificate.der) as channel:
        await present(channel, shown.evidence.document)
        await _watch(channel, bytes(32))


def watching_as_a_revoked_person(kind: RevocationKind) -> Attack:
    """Nothing but the certificate holds the stream: people have no lease."""

    async def attack(ground: Ground) -> None:
        key, der = ground.person()
        person, member = parse(der), (await ground.listening()).member
        async with ground.connected(key, der) as channel:
            call = _watching(channel, member.identity.current.certificate.spki_sha256)
            with remote_errors():
                await call.read()
                value = person.spki_sha256.hex() if kind is RevocationKind.KEY else person.spiffe_id
                member.policy.accept_revocations([ground.mesh.revocation(kind, value)])
                await call.read()

    return attack


async def watching_what_needs_no_lease(ground: Ground) -> None:
    """It was let in on a lease that it did not need, which a policy then ended."""
    shown = ground.genuine()
    async with ground.connected(shown.key, shown.certificate.der) as channel:
        await present(channel, shown.evidence.document)
        stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        call = stub.Watch(health_pb2.HealthCheckRequest())
        keeper = (await ground.listening()).member.policy
        with remote_errors():
            await call.read()
            keeper.accept(ground.mesh.successor(keeper.current, roles=ground.mesh.without("router")))
            await call.read()


async def _watch(channel: grpc.aio.Channel, spki_sha256: bytes) -> None:
    with remote_errors():
        await _watching(channel, spki_sha256).read()


def _watching(channel: grpc.aio.Channel, spki_sha256: bytes) -> Any:
    request = evidence_pb2.WatchRenewalsRequest(spki_sha256=spki_sha256)
    return evidence_pb2_grpc.EvidenceServiceStub(channel).WatchRenewals(request)


async def a_revoked_key_that_had_a_successor(ground: Ground) -> None:
    """Whoever stole the old key holds the connection that it opened."""
    keeper = ground.keeper()
    leases = Leases(keeper, lambda: ground.kms.ca.spki)
    shown, following = ground.genuine(), ground.genuine()
    key = shown.certificate.spki_sha256
    leases.open(shown.certificate, shown.evidence.document)
    # It ends later than the first, so that the lease is the successor's.
    later = Leases(keeper, lambda: ground.kms.ca.spki).open(following.certificate, following.evidence.document)
    leases._held[key].lease = replace(later, until=later.until + 1)
    keeper.accept_revocations([ground.mesh.revocation(RevocationKind.KEY, key.hex())])
    leases.of(key)


async def a_lease_that_policy_has_overtaken(ground: Ground) -> None:
    """It calls before its turn to be judged again comes."""
    keeper = ground.keeper()
    leases = Leases(keeper, lambda: ground.kms.ca.spki)
    shown = ground.genuine()
    leases.open(shown.certificate, shown.evidence.document)
    keeper.accept(ground.mesh.successor(keeper.current, roles=ground.mesh.without("router")))
    leases.of(shown.certificate.spki_sha256)


async def a_server_that_policy_has_overtaken(ground: Ground) -> None:
    listening = await ground.listening()
    router = await ground.member("router")
    peer = router.peer("ledger", listening.target)
    await peer.channel(10)
    router.policy.accept(ground.mesh.successor(router.policy.current, roles=ground.mesh.without("ledger")))
    await peer.channel(10)


async def a_revoked_server_key_that_had_a_successor(ground: Ground) -> None:
    # The first certificate ends before the second, so that the connection rests on the second.
    ground.kms = ground.mesh.kms(service_seconds=600)
    listening = await ground.listening()
    router = await ground.member("router")
    link = await router.peer("ledger", listening.target).link(10)
    ground.kms.issuance._service_seconds = 3600
    await listening.member.identity.obtain()

    async def superseded() -> bool:
        return link.is_superseded

    await until(superseded)
    shown = link.lease.certificate.spki_sha256.hex()
    router.policy.accept_revocations([ground.mesh.revocation(RevocationKind.KEY, shown)])
    link.judge_again()


@asynccontextmanager
async def impostor(ground: Ground, shown: Credential, document: bytes) -> AsyncIterator[str]:
    """A listener with a certificate of the mesh CA, that gives out a document and accepts everybody's."""
    pair = (shown.key_pem, shown.certificate.pem)
    ca = (await ground.listening()).member.ca_pem
    credentials = grpc.ssl_server_credentials([pair], ca, require_client_auth=True)
    rule = MethodRule(roles=ANY_ROLE, lease=False)
    calls = ("GetEvidence", "PresentEvidence", "WatchRenewals")
    binding = ServiceBinding(
        EVIDENCE,
        lambda server: evidence_pb2_grpc.add_EvidenceServiceServicer_to_server(Impostor(document), server),
        {f"/{EVIDENCE}/{call}": rule for call in calls},
    )
    middleware = standard_middleware(RoleGate(), binding.methods)
    async with serving("127.0.0.1:0", credentials, [binding], middleware, drain_seconds=0) as running:
        yield f"127.0.0.1:{running.port}"


def answering(make: Callable[[Ground], tuple[Credential, bytes]]) -> Attack:
    """A server that a client appraises before it calls."""

    async def attack(ground: Ground) -> None:
        router = await ground.member("router")
        async with impostor(ground, *make(ground)) as target:
            await router.peer("ledger", target).channel(10)

    return attack


def with_the_real_ones_evidence(ground: Ground) -> tuple[Credential, bytes]:
    real = ground.genuine("ledger")
    thief = ground.certified(ec.generate_private_key(ec.SECP256R1()), real.evidence, "ledger")
    return thief, real.evidence.document


def with_another_ledgers_document(ground: Ground) -> tuple[Credential, bytes]:
    return ground.genuine("ledger"), ground.genuine("ledger", "2").evidence.document


def with_a_routers_code(ground: Ground) -> tuple[Credential, bytes]:
    shown = ground.genuine("ledger", td=ground.mesh.tds["router"])
    return shown, shown.evidence.document


async def behind_another_pin(ground: Ground) -> None:
    """The mesh CA certified who answers, but it is not the key that the client has appraised."""
    listening = await ground.listening()
    appraised, own = ground.genuine("ledger"), ground.genuine()
    async with open_channel(
        listening.target,
        root_pem=appraised.certificate.pem,
        server_name="ledger.mesh.test",
        key_pem=own.key_pem,
        certificate_pem=own.certificate.pem,
    ) as channel:
        await fetch_evidence(channel)


def stated(change: Callable[[PolicyKeeper, Statement], Statement]) -> Attack:
    """A statement that a service takes from the KMS."""

    async def attack(ground: Ground) -> None:
        keeper = ground.keeper()
        now, known = keeper.current, keeper.revocations
        genuine = Statement(now.version, now.digest, known.number, int(time.time() * 1000), known.digest)
        keeper.note(change(keeper, genuine))

    return attack


async def in_another_form(ground: Ground) -> None:
    await _stated_by_the_ca(ground, Statement(1, bytes(32), 0, 1).document.replace(b":", b": ", 1))


async def of_no_form(ground: Ground) -> None:
    await _stated_by_the_ca(ground, b"statement")


async def _stated_by_the_ca(ground: Ground, document: bytes) -> None:
    signature = ground.kms.ca.key.sign(b"teemesh/statement/v1\0" + document, ec.ECDSA(hashes.SHA256()))
    verify_statement(document, signature, ground.kms.ca.spki)


def under(ca_spki: bytes) -> Attack:
    async def attack(ground: Ground) -> None:
        genuine = Statement(1, bytes(32), 0, 1)
        verify_statement(genuine.document, sign_statement(genuine, ground.kms.ca.key), ca_spki)

    return attack


def signed_by(make: Callable[[Ground], tuple[KmsCore, Callable[[bytes], bytes]]]) -> Attack:
    async def attack(ground: Ground) -> None:
        kms, change = make(ground)
        genuine = Statement(1, bytes(32), 0, 1)
        verify_statement(change(genuine.document), sign_statement(genuine, kms.ca.key), ground.kms.ca.spki)

    return attack


async def after_silence(ground: Ground) -> None:
    """What was true five minutes ago, shown to who has heard nothing since."""
    clock = Clock()
    keeper = ground.mesh.keeper("silent", clock=clock)
    clock.now += MAX_SILENCE_SECONDS + 1
    keeper.require_fresh()


async def without_a_statement(ground: Ground) -> None:
    """A router calls who has never heard from the KMS."""
    member = (await ground.listening()).member
    deaf = ground.mesh.keeper("deaf", fresh=False)
    gate = MeshGate(member.trust_domain, member.identity, deaf, member.leases, member.streams)
    genuine = ground.genuine()
    member.leases.open(genuine.certificate, genuine.evidence.document)
    gate.admit(genuine.certificate.pem, MethodRule(roles=frozenset({"router"})))


async def under_an_expired_policy(ground: Ground) -> None:
    clock = Clock()
    keeper = ground.mesh.keeper("late", clock=clock)
    clock.now = ground.mesh.draft["not_after"]
    keeper.require_fresh()


async def for_a_role_that_it_has_not(ground: Ground) -> None:
    listening = await ground.listening()
    router = await ground.member("router")
    await router.peer("node", listening.target).channel(10)


ROWS = [
    *[Row(f"a next certificate {lie}", reason, succeeding(lie)) for lie, (reason, _) in LIES.items()],
    Row("a next certificate moved to another connection", "SUCCESSOR_NOT_SIGNED", moved),
    Row("a next certificate on a connection without a lease", "EVIDENCE_REQUIRED", without_a_lease),
    Row("a question for the successors of a key that was not shown", "KEY_NOT_HELD", watching_another_key),
    Row("a stream of a person whose key was revoked", "KEY_REVOKED", watching_as_a_revoked_person(RevocationKind.KEY)),
    Row(
        "a stream of a person whose name was revoked", "NODE_REVOKED", watching_as_a_revoked_person(RevocationKind.NODE)
    ),
    Row("a stream on a lease that policy ended", "EVIDENCE_REQUIRED", watching_what_needs_no_lease),
    Row("a lease on the successor of a revoked key", "EVIDENCE_REQUIRED", a_revoked_key_that_had_a_successor),
    Row("a server whose revoked key has a successor", "KEY_REVOKED", a_revoked_server_key_that_had_a_successor),
    Row("a lease that policy has overtaken", "EVIDENCE_REQUIRED", a_lease_that_policy_has_overtaken),
    Row("a server that policy has overtaken", "MEASUREMENT_NOT_ALLOWED", a_server_that_policy_has_overtaken),
    Row("a server with the evidence of the real one's key", "SPKI_MISMATCH", answering(with_the_real_ones_evidence)),
    Row("a server with another server's document", "EVIDENCE_MISMATCH", answering(with_another_ledgers_document)),
    Row("a server with a router's code", "MEASUREMENT_NOT_ALLOWED", answering(with_a_routers_code)),
    Row("a server that shows another key than the pinned one", "UNAVAILABLE", behind_another_pin),
    Row("a server of another role", "PEER_UNREACHABLE", for_a_role_that_it_has_not),
    Row(
        "a statement from two minutes ahead",
        "POLICY_STALE",
        stated(lambda keeper, genuine: replace(genuine, time_ms=genuine.time_ms + 120_000)),
    ),
    Row(
        "a statement of a policy that this service does not hold",
        "POLICY_STALE",
        stated(lambda keeper, genuine: replace(genuine, digest=bytes(32))),
    ),
    Row(
        "a statement of revocations that this service does not hold",
        "REVOCATIONS_DIVERGED",
        stated(lambda keeper, genuine: replace(genuine, revocation=1)),
    ),
    Row(
        "a statement of another CA",
        "STATEMENT_SIGNATURE_INVALID",
        signed_by(lambda ground: (ground.mesh.kms("other", root=bytes(32)), bytes)),
    ),
    Row(
        "a statement under the signature of another",
        "STATEMENT_SIGNATURE_INVALID",
        signed_by(lambda ground: (ground.kms, lambda document: document.replace(b'"version":1', b'"version":2'))),
    ),
    Row("a statement in another form of its words", "STATEMENT_MALFORMED", in_another_form),
    Row("a statement that is none", "STATEMENT_MALFORMED", of_no_form),
    Row("a statement under a CA key of another kind", "STATEMENT_SIGNATURE_INVALID", under(ANOTHER_KIND)),
    Row("a statement under what is no key", "STATEMENT_SIGNATURE_INVALID", under(b"key")),
    Row("a lease without a word of the KMS for five minutes", "POLICY_STALE", after_silence),
    Row("a lease without any word of the KMS", "POLICY_STALE", without_a_statement),
    Row("a lease under an expired policy", "POLICY_NOT_VALID_NOW", under_an_expired_policy),
]
