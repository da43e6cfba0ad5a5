"""Another instance of the KMS: what it takes to be given the root, and everything that does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs
from structlog.typing import EventDict
from teemesh.kms.v1 import replication_pb2 as pb
from teemesh.kms.v1 import replication_pb2_grpc as pb_grpc

from libs.errors import MeshError
from libs.identity.certificate import spki_of
from libs.identity.member import Member
from libs.identity.renewal import Prover
from libs.identity.sealed import ReceiverKey
from libs.policy.orders import JOIN_KMS, RETIRE_KEY, Order, SignedOrder, join_subject
from libs.tee.challenge import Challenge
from services.kms.decisions import Decisions
from services.kms.issuance import ISSUANCE
from services.kms.joining import JoinSettings, await_root, own_subject, receive_root
from services.kms.replication import PURPOSE, Replication, ReplicationServicer, join_info, replication_binding
from services.kms.root import Root
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.kms_callers import calling
from tests.fakes.refusals import refusal
from tests.fakes.running_kms import RunningKms, running_kms

SECOND = f"spiffe://{TRUST_DOMAIN}/kms/2"


@pytest.fixture
async def running(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[RunningKms]:
    async with running_kms(mesh, kms) as kms_service:
        yield kms_service


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A second instance that has its certificate and no root."""

    member: Member
    receiver: ReceiverKey
    prover: Prover
    running: RunningKms

    async def receive(self, order: SignedOrder) -> bytes:
        root = await receive_root(self.member, self.prover, self.receiver, self.running.target, order.document)
        return root.secret

    def joins(self, target: str, order: Path) -> Awaitable[Root]:
        """Ask a KMS until it gives the root, or refuses it for good."""
        return await_root(self.member, self.prover, self.receiver, JoinSettings(target, self.running.bootstrap, order))

    async def stub(self) -> pb_grpc.KmsReplicationServiceStub:
        return pb_grpc.KmsReplicationServiceStub(await self.member.peer("kms", self.running.target).channel(10))

    async def challenge(self) -> Challenge:
        own = Challenge.unsigned(issuer=SECOND, purpose=PURPOSE, now=int(time.time()))
        shown = self.running.member.identity.current.certificate.spki_sha256
        request = pb.BeginJoinRequest(challenge=own.encode(), spki_sha256=shown)
        begun = await (await self.stub()).BeginJoin(request, timeout=10)
        return Challenge.decode(begun.challenge)

    async def finish(self, document: bytes, order: SignedOrder) -> str:
        """The reason with which the KMS refuses."""
        request = pb.FinishJoinRequest(document=document, signed_order=order.document)
        return await refusal((await self.stub()).FinishJoin(request, timeout=10))

    async def evidence(self, challenge: Challenge) -> bytes:
        spki = self.member.identity.current.certificate.spki
        return (await self.prover.prove(challenge, spki)).document


@asynccontextmanager
async def newcomer(
    mesh: JoinedMesh, running: RunningKms, claims: Mapping[str, Any] | None = None
) -> AsyncIterator[Newcomer]:
    receiver = ReceiverKey()
    said = {"hpke_key": receiver.public.hex()} if claims is None else dict(claims)
    async with mesh.member("kms", running.core, instance="2", claims=said) as member:
        prover = Prover(member.guest, mesh.collateral, {"role": "kms", **said})
        yield Newcomer(member, receiver, prover, running)


def order(mesh: JoinedMesh, subject: str, signers: tuple[int, ...] = (0, 1), **changes: Any) -> SignedOrder:
    given = {"trust_domain": TRUST_DOMAIN, "action": JOIN_KMS, "subject": subject, "not_after": 2**33}
    signed = SignedOrder(Order(**{**given, **changes}))
    for number in signers:
        signed = signed.signed_by(mesh.operators[number])
    return signed


async def test_a_newcomer_that_operators_ordered_receives_the_root(mesh: JoinedMesh, running: RunningKms) -> None:
    async with newcomer(mesh, running) as second:
        given = order(mesh, own_subject(second.member))
        assert await second.receive(given) == mesh.root
        (said,) = [body for _, body in running.log.entries if body["decision"] == "joined"]
    assert said["spiffe_id"] == SECOND
    assert said["order_sha256"] == given.order.digest.hex()
    assert mesh.root.hex() not in repr(running.log.entries)


async def test_what_is_given_is_on_record_first(mesh: JoinedMesh, running: RunningKms) -> None:
    running.log.away = True
    async with newcomer(mesh, running) as second:
        given = order(mesh, own_subject(second.member))
        with pytest.raises(MeshError, match="did not acknowledge"):
            await second.receive(given)
        running.log.away = False
        assert await second.receive(given) == mesh.root


async def test_a_kms_that_may_have_gone_back_gives_nothing(mesh: JoinedMesh, running: RunningKms) -> None:
    running.currency_clock.now += 61
    async with newcomer(mesh, running) as second:
        with pytest.raises(MeshError) as error:
            await second.receive(order(mesh, own_subject(second.member)))
    assert error.value.reason == "KEY_STATE_BEHIND"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda subject: {"signers": ()}, "ORDER_SIGNATURES_INSUFFICIENT"),
        (lambda subject: {"signers": (0,)}, "ORDER_SIGNATURES_INSUFFICIENT"),
        (lambda subject: {"not_after": 1}, "ORDER_EXPIRED"),
        (lambda subject: {"trust_domain": "mesh.other"}, "ORDER_OF_ANOTHER_KIND"),
        (lambda subject: {"action": RETIRE_KEY}, "ORDER_OF_ANOTHER_KIND"),
        (lambda subject: {"subject": subject.replace("/kms/2", "/kms/3")}, "ORDER_FOR_ANOTHER"),
        (lambda subject: {"subject": other_part(subject, 1)}, "ORDER_FOR_ANOTHER"),
        (lambda subject: {"subject": other_part(subject, 2)}, "ORDER_FOR_ANOTHER"),
    ],
)
async def test_an_order_that_is_not_for_this_newcomer_gives_nothing(
    mesh: JoinedMesh, running: RunningKms, change: Callable[[str], dict[str, Any]], reason: str
) -> None:
    async with newcomer(mesh, running) as second:
        subject = own_subject(second.member)
        with pytest.raises(MeshError) as error:
            await second.receive(order(mesh, **{"subject": subject, **change(subject)}))
    assert error.value.reason == reason
    (said,) = [body for _, body in running.log.outbox if body.get("decision") == "refused"]
    assert (said["name"], said["reason"], said["spiffe_id"]) == ("root", reason, SECOND)


def other_part(subject: str, number: int) -> str:
    """The same subject with another app-compose, or another machine."""
    parts = subject.split(",")
    parts[number] = "ab" * (len(parts[number]) // 2)
    return join_subject(*parts)


async def test_evidence_counts_once_for_this_and_on_this_connection(mesh: JoinedMesh, running: RunningKms) -> None:
    """A relay: genuine evidence with another nonce, of another purpose, key or code."""
    async with newcomer(mesh, running) as second:
        given = order(mesh, own_subject(second.member))
        challenge = await second.challenge()
        another_key = mesh.evidence("kms", challenge, ec.generate_private_key(ec.SECP256R1()), claims=hpke(second))
        assert await second.finish(another_key.document, given) == "SPKI_MISMATCH"
        assert await second.finish(await second.evidence(challenge), given) == "CHALLENGE_NOT_OPEN"  # Spent.
        own = Challenge.unsigned(issuer=SECOND, purpose=PURPOSE, now=int(time.time()))
        assert await second.finish(await second.evidence(own), given) == "CHALLENGE_NOT_OPEN"
        for_a_certificate = running.core.challenges.issue(ISSUANCE)
        assert await second.finish(await second.evidence(for_a_certificate), given) == "CHALLENGE_NOT_OPEN"
        key = second.member.identity.current.key
        other_code = mesh.evidence("kms", await second.challenge(), key, td=mesh.tds["router"], claims=hpke(second))
        assert await second.finish(other_code.document, given) == "MEASUREMENT_NOT_ALLOWED"
        kms_td = mesh.tds["kms"]
        other_role = mesh.evidence("router", await second.challenge(), key, td=kms_td, claims=hpke(second))
        assert await second.finish(other_role.document, given) == "ROLE_MISMATCH"
        assert await second.receive(given) == mesh.root


def hpke(second: Newcomer) -> dict[str, str]:
    return {"hpke_key": second.receiver.public.hex()}


async def test_a_newcomer_whose_evidence_binds_no_key_receives_nothing(mesh: JoinedMesh, running: RunningKms) -> None:
    async with newcomer(mesh, running, {}) as second:
        with pytest.raises(MeshError) as error:
            await second.receive(order(mesh, own_subject(second.member)))
    assert error.value.reason == "HPKE_KEY_MISSING"


async def test_a_kms_proves_keys_that_it_showed_alone(mesh: JoinedMesh, running: RunningKms) -> None:
    own = Challenge.unsigned(issuer=SECOND, purpose=PURPOSE, now=int(time.time()))
    async with newcomer(mesh, running) as second:
        request = pb.BeginJoinRequest(challenge=own.encode(), spki_sha256=bytes(32))
        assert await refusal((await second.stub()).BeginJoin(request, timeout=10)) == "KEY_NOT_HELD"


async def test_a_kms_answers_no_challenge_whose_answer_would_count_elsewhere(
    mesh: JoinedMesh, running: RunningKms
) -> None:
    shown = running.member.identity.current.certificate.spki_sha256
    async with newcomer(mesh, running) as second:
        for challenge in (
            Challenge.unsigned(issuer=SECOND, purpose="kms-bootstrap", now=int(time.time())),
            Challenge.unsigned(issuer=SECOND, purpose=ISSUANCE, now=int(time.time())),
            running.core.challenges.issue(PURPOSE),
        ):
            request = pb.BeginJoinRequest(challenge=challenge.encode(), spki_sha256=shown)
            assert await refusal((await second.stub()).BeginJoin(request, timeout=10)) == "JOIN_CHALLENGE_REFUSED"


async def test_a_join_goes_on_over_a_connection_that_outlives_its_certificates(
    mesh: JoinedMesh, running: RunningKms
) -> None:
    """What counts is the key that this connection shows, not the one that has followed it on either side."""
    async with newcomer(mesh, running) as second:
        given = order(mesh, own_subject(second.member))
        link = await second.member.peer("kms", running.target).link(10)
        shown = second.member.identity.current.certificate
        await asyncio.sleep(1.1)  # Certificates end at whole seconds, and a lease goes to what ends later.
        await running.member.identity.obtain()
        await second.member.identity.obtain()
        following = second.member.identity.current
        await link.hand_over(following)
        assert running.member.leases.of(shown.spki_sha256).certificate == following.certificate
        stub = pb_grpc.KmsReplicationServiceStub(link.channel)
        own = Challenge.unsigned(issuer=SECOND, purpose=PURPOSE, now=int(time.time()))
        asked = pb.BeginJoinRequest(challenge=own.encode(), spki_sha256=link.lease.certificate.spki_sha256)
        challenge = Challenge.decode((await stub.BeginJoin(asked, timeout=10)).challenge)
        document = await second.evidence(challenge)
        request = pb.FinishJoinRequest(document=document, signed_order=given.document)
        assert await refusal(stub.FinishJoin(request, timeout=10)) == "SPKI_MISMATCH"
        assert await second.receive(given) == mesh.root


async def test_only_another_kms_may_ask(mesh: JoinedMesh, running: RunningKms) -> None:
    async with calling(mesh, running, "router") as (_, router):
        stub = pb_grpc.KmsReplicationServiceStub(await router.peer("kms", running.target).channel(10))
        own = Challenge.unsigned(issuer="me", purpose=PURPOSE, now=int(time.time()))
        begun = stub.BeginJoin(pb.BeginJoinRequest(challenge=own.encode()), timeout=10)
        assert await refusal(begun) == "ROLE_NOT_ALLOWED"
        finished = stub.FinishJoin(pb.FinishJoinRequest(), timeout=10)
        assert await refusal(finished) == "ROLE_NOT_ALLOWED"


async def test_a_sealed_root_opens_for_this_newcomer_and_this_join_alone(mesh: JoinedMesh, running: RunningKms) -> None:
    async with newcomer(mesh, running) as second:
        given = order(mesh, own_subject(second.member))
        challenge = await second.challenge()
        request = pb.FinishJoinRequest(document=await second.evidence(challenge), signed_order=given.document)
        sealed = (await (await second.stub()).FinishJoin(request, timeout=10)).sealed_root
    assert mesh.root not in sealed
    assert second.receiver.open(sealed, join_info(challenge.nonce, SECOND)) == mesh.root
    for receiver, info in (
        (ReceiverKey(), join_info(challenge.nonce, SECOND)),
        (second.receiver, join_info(bytes(32), SECOND)),
        (second.receiver, join_info(challenge.nonce, f"spiffe://{TRUST_DOMAIN}/kms/3")),
    ):
        with pytest.raises(MeshError) as error:
            receiver.open(sealed, info)
        assert error.value.reason == "SEALED_KEY_REFUSED"


@asynccontextmanager
async def hostile(running: RunningKms, mesh: JoinedMesh, bent: Callable[[Replication], None]) -> AsyncIterator[str]:
    """The KMS on another port, with one thing about how it gives the root bent."""
    core, member = running.core, running.member
    claims = {"role": "kms", "ca_spki_sha256": core.ca.spki_sha256.hex()}
    prover = Prover(member.guest, mesh.collateral, claims)
    replication = Replication(
        Root(mesh.root), prover, member.identity, core.challenges, core.policy, Decisions(running.log), running.currency
    )
    bent(replication)
    async with member.serve([replication_binding(ReplicationServicer(replication))]) as serving:
        yield f"127.0.0.1:{serving.port}"


async def test_a_newcomer_takes_a_root_from_a_proven_kms_of_its_own_mesh_alone(
    mesh: JoinedMesh, running: RunningKms
) -> None:
    guest = running.member.guest

    def other_root(bent: Replication) -> None:
        bent._root = Root(bytes(32))

    def other_ca(bent: Replication) -> None:
        bent._prover = Prover(guest, mesh.collateral, {"role": "kms", "ca_spki_sha256": "ab" * 32})

    def other_role(bent: Replication) -> None:
        bent._prover = Prover(guest, mesh.collateral, {"role": "router"})

    def other_key(bent: Replication) -> None:
        async def begin(challenge: Challenge, shown_sha256: bytes) -> tuple[bytes, Challenge]:
            stranger = spki_of(ec.generate_private_key(ec.SECP256R1()).public_key())
            return (await bent._prover.prove(challenge, stranger)).document, challenge

        bent.begin = begin  # type: ignore[method-assign]

    def other_nonce(bent: Replication) -> None:
        async def begin(challenge: Challenge, shown_sha256: bytes) -> tuple[bytes, Challenge]:
            own = running.core.challenges.issue(PURPOSE)
            spki = running.member.identity.current.certificate.spki
            return (await bent._prover.prove(own, spki)).document, own

        bent.begin = begin  # type: ignore[method-assign]

    async with newcomer(mesh, running) as second:
        given = order(mesh, own_subject(second.member))
        for bent, reason in (
            (other_root, "ROOT_OF_ANOTHER_MESH"),
            (other_ca, "CA_NOT_PROVEN"),
            (other_role, "ROLE_MISMATCH"),
            (other_key, "SPKI_MISMATCH"),
            (other_nonce, "NONCE_MISMATCH"),
        ):
            async with hostile(running, mesh, bent) as target:
                with pytest.raises(MeshError) as error:
                    await receive_root(second.member, second.prover, second.receiver, target, given.document)
            assert error.value.reason == reason


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in ("_LOOK_SECONDS", "_FIRST_PAUSE_SECONDS"):
        monkeypatch.setattr(f"services.kms.joining.{pause}", 0.01)


Meanwhile = Callable[[RunningKms, Newcomer], Awaitable[None]]


async def the_giver_forgets_its_challenges(running: RunningKms, second: Newcomer) -> None:
    running.core.challenges._open.clear()


async def the_giver_forgets_its_leases(running: RunningKms, second: Newcomer) -> None:
    running.member.leases._held.clear()


async def nothing(running: RunningKms, second: Newcomer) -> None:
    pass


async def the_giver_renews_twice(running: RunningKms, second: Newcomer) -> None:
    for _ in range(2):
        await running.member.identity.obtain()


def interrupted(running: RunningKms, second: Newcomer, before: Meanwhile, after: Meanwhile) -> Callable[..., None]:
    """Something happens to the giver before or after it answers the first challenge of a join."""

    def bend(bent: Replication) -> None:
        honest = bent.begin

        async def begin(challenge: Challenge, shown_sha256: bytes) -> tuple[bytes, Challenge]:
            bent.begin = honest  # type: ignore[method-assign]
            await before(running, second)
            answer = await honest(challenge, shown_sha256)
            await after(running, second)
            return answer

        bent.begin = begin  # type: ignore[method-assign]

    return bend


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (nothing, the_giver_forgets_its_challenges, "CHALLENGE_NOT_OPEN"),
        (nothing, the_giver_forgets_its_leases, "EVIDENCE_REQUIRED"),
        (the_giver_renews_twice, nothing, "KEY_NOT_HELD"),
    ],
)
async def test_a_newcomer_asks_anew_when_the_giver_has_changed_meanwhile(
    mesh: JoinedMesh, running: RunningKms, tmp_path: Path, before: Meanwhile, after: Meanwhile, reason: str
) -> None:
    async with newcomer(mesh, running) as second:
        path = tmp_path / "order.json"
        path.write_bytes(order(mesh, own_subject(second.member)).document)
        async with hostile(running, mesh, interrupted(running, second, before, after)) as target:
            with capture_logs() as captured:
                assert (await second.joins(target, path)).secret == mesh.root
    again = [entry for entry in captured if entry["event"] == "no root yet: it is asked for again"]
    assert [entry["reason"] for entry in again] == [reason]


@pytest.mark.usefixtures("impatient")
async def test_a_newcomer_waits_for_a_giver_that_does_not_know_the_log_s_end_yet(
    mesh: JoinedMesh, running: RunningKms, tmp_path: Path
) -> None:
    async with newcomer(mesh, running) as second:
        path = tmp_path / "order.json"
        path.write_bytes(order(mesh, own_subject(second.member)).document)
        running.currency_clock.now += 61
        with capture_logs() as captured:
            joining = asyncio.ensure_future(second.joins(running.target, path))
            await until_logged(captured, "no root yet: it is asked for again")
            running.currency.heard()
            assert (await joining).secret == mesh.root


@pytest.mark.usefixtures("impatient")
async def test_what_another_try_does_not_mend_ends_the_join_at_the_first(
    mesh: JoinedMesh, running: RunningKms, tmp_path: Path
) -> None:
    path = tmp_path / "order.json"
    async with newcomer(mesh, running) as second:
        subject = own_subject(second.member)
        for given, reason in (
            (order(mesh, subject.replace("/kms/2", "/kms/3")), "ORDER_FOR_ANOTHER"),
            (order(mesh, subject, not_after=1), "ORDER_EXPIRED"),
            (order(mesh, subject, signers=(0,)), "ORDER_SIGNATURES_INSUFFICIENT"),
        ):
            path.write_bytes(given.document)
            with capture_logs() as captured, pytest.raises(MeshError) as error:
                await second.joins(running.target, path)
            assert error.value.reason == reason
            assert "no root yet: it is asked for again" not in [entry["event"] for entry in captured]

        def other_role(bent: Replication) -> None:
            bent._prover = Prover(running.member.guest, mesh.collateral, {"role": "router"})

        path.write_bytes(order(mesh, subject).document)
        async with hostile(running, mesh, other_role) as target:
            with pytest.raises(MeshError) as error:
                await second.joins(target, path)
        assert error.value.reason == "ROLE_MISMATCH"


@pytest.mark.usefixtures("impatient")
async def test_an_order_counts_once_it_is_there_whole(mesh: JoinedMesh, running: RunningKms, tmp_path: Path) -> None:
    path = tmp_path / "order.json"
    async with newcomer(mesh, running) as second:
        document = order(mesh, own_subject(second.member)).document
        with capture_logs() as captured:
            joining = asyncio.ensure_future(second.joins(running.target, path))
            for half in (b"", document[: len(document) // 2], document[:-1]):
                said = len(captured)
                path.write_bytes(half)
                await until_logged(captured, "the order cannot be used yet", after=said)
            assert not joining.done()
            path.write_bytes(document)
            assert (await joining).secret == mesh.root
    assert [body["decision"] for _, body in running.log.outbox if body.get("decision") == "refused"] == []


async def until_logged(captured: list[EventDict], event: str, after: int = 0) -> None:
    async with asyncio.timeout(10):
        while event not in [entry["event"] for entry in captured[after:]]:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
