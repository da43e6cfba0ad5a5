"""Another instance of the KMS: who asks for the root, what it shows, and who gives it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import replication_pb2 as pb
from teemesh.kms.v1 import replication_pb2_grpc as pb_grpc

from libs.identity.certificate import spki_of
from libs.identity.renewal import Prover
from libs.policy.orders import RETIRE_KEY, SignedOrder
from libs.rpc.errors import remote_errors
from libs.tee.challenge import Challenge
from services.kms.issuance import ISSUANCE, OPERATOR_ISSUANCE
from services.kms.joining import own_subject, receive_root
from services.kms.replication import PURPOSE, Replication
from services.kms.root import Root
from tests.contract.test_kms_replication import SECOND, Newcomer, hostile, hpke, newcomer, order, other_part
from tests.fakes.joined_mesh import JoinedMesh
from tests.unit.libs.identity.relays.ground import Ground
from tests.unit.libs.identity.relays.row import Attack, Row


def ordered(change: Callable[[str], dict[str, Any]]) -> Attack:
    """A newcomer with an order that is not the one that it takes."""

    async def attack(ground: Ground) -> None:
        second = await _newcomer(ground)
        subject = own_subject(second.member)
        await second.receive(order(ground.mesh, **{"subject": subject, **change(subject)}))

    return attack


async def ordered_by_strangers(ground: Ground) -> None:
    stranger = JoinedMesh(ground.mesh.folder, ground.mesh.machine)
    second = await _newcomer(ground)
    await second.receive(order(stranger, own_subject(second.member)))


async def with_another_orders_signatures(ground: Ground) -> None:
    second = await _newcomer(ground)
    subject = own_subject(second.member)
    signatures = order(ground.mesh, subject.replace("/kms/2", "/kms/3")).signatures
    await second.receive(replace(order(ground.mesh, subject, ()), signatures=signatures))


async def from_a_kms_behind_its_log(ground: Ground) -> None:
    second = await _newcomer(ground)
    (await ground.running()).currency_clock.now += 61
    await second.receive(order(ground.mesh, own_subject(second.member)))


async def without_an_hpke_key(ground: Ground) -> None:
    second = await _newcomer(ground, {})
    await second.receive(order(ground.mesh, own_subject(second.member)))


def finishing(make: Callable[[Ground, Newcomer], Awaitable[bytes]]) -> Attack:
    """A newcomer that operators did order, with other evidence than that of this connection and this join."""

    async def attack(ground: Ground) -> None:
        second = await _newcomer(ground)
        await _finish(second, await make(ground, second), order(ground.mesh, own_subject(second.member)))

    return attack


async def _newcomer(ground: Ground, claims: Mapping[str, Any] | None = None) -> Newcomer:
    return await ground.enter(newcomer(ground.mesh, await ground.running(), claims))


async def _finish(second: Newcomer, document: bytes, given: SignedOrder) -> None:
    request = pb.FinishJoinRequest(document=document, signed_order=given.document)
    with remote_errors():
        await (await second.stub()).FinishJoin(request, timeout=10)


async def of_another_connection(ground: Ground, second: Newcomer) -> bytes:
    """Genuine in everything, over the key that another connection of the same instance shows."""
    key = ec.generate_private_key(ec.SECP256R1())
    return ground.mesh.evidence("kms", await second.challenge(), key, claims=hpke(second)).document


async def spent(ground: Ground, second: Newcomer) -> bytes:
    document = await second.evidence(await second.challenge())
    await _finish(second, document, order(ground.mesh, own_subject(second.member)))
    return document


async def of_its_own_challenge(ground: Ground, second: Newcomer) -> bytes:
    return await second.evidence(Challenge.unsigned(SECOND, PURPOSE, int(time.time())))


def of_another_purpose(purpose: str) -> Callable[[Ground, Newcomer], Awaitable[bytes]]:
    async def make(ground: Ground, second: Newcomer) -> bytes:
        return await second.evidence(ground.kms.challenges.issue(purpose))

    return make


def of_code(role: str, td: str) -> Callable[[Ground, Newcomer], Awaitable[bytes]]:
    async def make(ground: Ground, second: Newcomer) -> bytes:
        key = second.member.identity.current.key
        challenge = await second.challenge()
        return ground.mesh.evidence(role, challenge, key, td=ground.mesh.tds[td], claims=hpke(second)).document

    return make


async def asked_by_a_router(ground: Ground) -> None:
    running = await ground.running()
    router = await ground.member("router")
    stub = pb_grpc.KmsReplicationServiceStub(await router.peer("kms", running.target).channel(10))
    with remote_errors():
        await stub.FinishJoin(pb.FinishJoinRequest(), timeout=10)


async def about_a_key_that_was_not_shown(ground: Ground) -> None:
    own = Challenge.unsigned(SECOND, PURPOSE, int(time.time()))
    stub = await (await _newcomer(ground)).stub()
    with remote_errors():
        await stub.BeginJoin(pb.BeginJoinRequest(challenge=own.encode(), spki_sha256=bytes(32)), timeout=10)


def questioning(make: Callable[[Ground], Challenge]) -> Attack:
    """A KMS of the mesh that would have the giver's evidence for more than a join."""

    async def attack(ground: Ground) -> None:
        second = await _newcomer(ground)
        shown = second.running.member.identity.current.certificate.spki_sha256
        request = pb.BeginJoinRequest(challenge=make(ground).encode(), spki_sha256=shown)
        with remote_errors():
            await (await second.stub()).BeginJoin(request, timeout=10)

    return attack


def giving(bend: Callable[[Ground, Replication], None]) -> Attack:
    """A KMS with a real certificate and one thing bent about how it gives the root."""

    async def attack(ground: Ground) -> None:
        second = await _newcomer(ground)
        bent = hostile(await ground.running(), ground.mesh, lambda replication: bend(ground, replication))
        target = await ground.enter(bent)
        given = order(ground.mesh, own_subject(second.member)).document
        await receive_root(second.member, second.prover, second.receiver, target, given)

    return attack


def another_root(ground: Ground, bent: Replication) -> None:
    bent._root = Root(bytes(32))


def claiming(**claims: str) -> Callable[[Ground, Replication], None]:
    def bend(ground: Ground, bent: Replication) -> None:
        bent._prover = Prover(bent._prover.guest, ground.mesh.collateral, claims)

    return bend


def another_key(ground: Ground, bent: Replication) -> None:
    async def begin(challenge: Challenge, shown_sha256: bytes) -> tuple[bytes, Challenge]:
        stranger = spki_of(ec.generate_private_key(ec.SECP256R1()).public_key())
        return (await bent._prover.prove(challenge, stranger)).document, ground.kms.challenges.issue(PURPOSE)

    bent.begin = begin  # type: ignore[method-assign]


def another_nonce(ground: Ground, bent: Replication) -> None:
    honest = bent.begin

    async def begin(challenge: Challenge, shown_sha256: bytes) -> tuple[bytes, Challenge]:
        return await honest(Challenge.unsigned(SECOND, PURPOSE, int(time.time())), shown_sha256)

    bent.begin = begin  # type: ignore[method-assign]


ROWS = [
    Row("a join that nobody ordered", "ORDER_SIGNATURES_INSUFFICIENT", ordered(lambda subject: {"signers": ()})),
    Row("a join that one operator ordered", "ORDER_SIGNATURES_INSUFFICIENT", ordered(lambda s: {"signers": (0,)})),
    Row("a join that another mesh's operators ordered", "ORDER_SIGNATURES_INSUFFICIENT", ordered_by_strangers),
    Row("a join with the signatures of another order", "ORDER_SIGNATURES_INSUFFICIENT", with_another_orders_signatures),
    Row("a join whose order's time is over", "ORDER_EXPIRED", ordered(lambda s: {"not_after": 1})),
    Row("a join ordered in another mesh", "ORDER_OF_ANOTHER_KIND", ordered(lambda s: {"trust_domain": "mesh.other"})),
    Row("a join with an order to retire a key", "ORDER_OF_ANOTHER_KIND", ordered(lambda s: {"action": RETIRE_KEY})),
    Row(
        "a join ordered for another instance",
        "ORDER_FOR_ANOTHER",
        ordered(lambda subject: {"subject": subject.replace("/kms/2", "/kms/3")}),
    ),
    Row(
        "a join ordered for other code",
        "ORDER_FOR_ANOTHER",
        ordered(lambda subject: {"subject": other_part(subject, 1)}),
    ),
    Row(
        "a join ordered for another machine",
        "ORDER_FOR_ANOTHER",
        ordered(lambda subject: {"subject": other_part(subject, 2)}),
    ),
    Row("a join with a KMS that may have gone back", "KEY_STATE_BEHIND", from_a_kms_behind_its_log),
    Row("a newcomer whose evidence binds no key", "HPKE_KEY_MISSING", without_an_hpke_key),
    Row("a newcomer's evidence over another connection", "SPKI_MISMATCH", finishing(of_another_connection)),
    Row("a newcomer's evidence for the second time", "CHALLENGE_NOT_OPEN", finishing(spent)),
    Row("a newcomer's evidence for its own challenge", "CHALLENGE_NOT_OPEN", finishing(of_its_own_challenge)),
    Row("a newcomer's evidence for a certificate", "CHALLENGE_NOT_OPEN", finishing(of_another_purpose(ISSUANCE))),
    Row(
        "a newcomer's evidence for a person's challenge",
        "CHALLENGE_NOT_OPEN",
        finishing(of_another_purpose(OPERATOR_ISSUANCE)),
    ),
    Row("a newcomer of a router's code", "MEASUREMENT_NOT_ALLOWED", finishing(of_code("kms", "router"))),
    Row("a newcomer that claims a router's role", "ROLE_MISMATCH", finishing(of_code("router", "kms"))),
    Row("a router that asks for the root", "ROLE_NOT_ALLOWED", asked_by_a_router),
    Row("a join about a key that the KMS did not show", "KEY_NOT_HELD", about_a_key_that_was_not_shown),
    Row(
        "a newcomer's challenge that is for a bootstrap",
        "JOIN_CHALLENGE_REFUSED",
        questioning(lambda ground: Challenge.unsigned(SECOND, "kms-bootstrap", int(time.time()))),
    ),
    Row(
        "a newcomer's challenge that the KMS itself signed",
        "JOIN_CHALLENGE_REFUSED",
        questioning(lambda ground: ground.kms.challenges.issue(PURPOSE)),
    ),
    Row("a giver of another root", "ROOT_OF_ANOTHER_MESH", giving(another_root)),
    Row("a giver that names another CA", "CA_NOT_PROVEN", giving(claiming(role="kms", ca_spki_sha256="ab" * 32))),
    Row("a giver of another role", "ROLE_MISMATCH", giving(claiming(role="router"))),
    Row("a giver's evidence over another connection", "SPKI_MISMATCH", giving(another_key)),
    Row("a giver's evidence for another nonce", "NONCE_MISMATCH", giving(another_nonce)),
]
