"""Revocations are verified where they count, kept, and never forgotten; who they name is refused at once."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from libs.errors import MeshError
from libs.identity.certificate import MeshCertificate, Subject, parse
from libs.identity.freshness import MAX_SILENCE_SECONDS, PolicyKeeper
from libs.identity.lease import EvidenceRequired, Leases
from libs.identity.reappraisal import reappraise
from libs.identity.revocations import RevocationsUnreadable
from libs.identity.statements import StatementsEnded, follow_statements, watch_statements
from libs.policy.revocation import RevocationKind, RevocationSet, parse_revocation
from libs.policy.statement import Statement
from tests.fakes.certified_router import CertifiedRouter
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore, hear
from tests.fakes.revocations import REASONS, value_of

COMPOSE = "ab" * 32


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(MeshError) as error:
        act()
    return error.value.reason


def identifier(signed: bytes) -> str:
    return parse_revocation(signed).revocation.id.hex()


def some(mesh: JoinedMesh, count: int) -> list[bytes]:
    return [mesh.revocation(RevocationKind.MEASUREMENT, f"{number:064x}") for number in range(count)]


def statement(keeper: PolicyKeeper, known: RevocationSet, now: float) -> Statement:
    current = keeper.current
    return Statement(current.version, current.digest, known.number, int(now * 1000), known.digest)


def test_a_revocation_counts_at_once_and_after_a_restart(mesh: JoinedMesh) -> None:
    keeper = mesh.keeper("k")
    keeper.accept_revocations([mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE)])
    assert keeper.current.revoked.compose_hashes == {COMPOSE}
    again = mesh.keeper("k")
    assert again.current == keeper.current
    assert again.revocations == keeper.revocations


def test_two_services_that_learn_in_another_order_agree(mesh: JoinedMesh) -> None:
    first, second = mesh.keeper("one"), mesh.keeper("two")
    revocations = some(mesh, 3)
    for signed in revocations:
        first.accept_revocations([signed])
    second.accept_revocations(reversed(revocations))
    assert first.revocations.digest == second.revocations.digest
    assert first.current.revoked == second.current.revoked


def test_an_unsigned_a_foreign_and_a_strangers_revocation_are_refused_and_the_valid_one_beside_them_counts(
    mesh: JoinedMesh,
) -> None:
    keeper = mesh.keeper("k")
    good = mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE)
    stranger = JoinedMesh(mesh.folder, mesh.machine)  # Other operators.
    signature = parse_revocation(good).signature.hex()
    for bad, reason in (
        (good.replace(signature.encode(), b"00" * 64), "REVOCATION_SIGNATURE_INVALID"),
        (stranger.revocation(RevocationKind.MEASUREMENT, COMPOSE), "REVOCATION_SIGNATURE_INVALID"),
        (mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE, mesh="other.test"), "REVOCATION_OF_ANOTHER_MESH"),
        (b"{}", "REVOCATION_MALFORMED"),
    ):
        assert refusal(lambda bad=bad: keeper.accept_revocations([bad])) == reason  # type: ignore[misc]
        assert keeper.revocations.number == 0
    assert [path.name for path in (mesh.folder / "k" / "policy").iterdir()] == ["1.json"]
    assert refusal(lambda: keeper.accept_revocations([b"{}", good])) == "REVOCATION_MALFORMED"
    assert keeper.current.revoked.compose_hashes == {COMPOSE}


def test_an_operator_who_left_cannot_take_a_revocation_along(mesh: JoinedMesh) -> None:
    keeper = mesh.keeper("k")
    keys = mesh.draft["operators"]["keys"]
    keeper.accept(mesh.successor(keeper.current, operators={"keys": keys[:2], "threshold": 2}))
    keeper.accept_revocations([mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE, operator=2)])
    assert mesh.keeper("k").current.revoked.compose_hashes == {COMPOSE}


@pytest.mark.parametrize("held", [1, 2])
def test_a_statement_that_names_fewer_refreshes_nothing_and_takes_nothing_back(mesh: JoinedMesh, held: int) -> None:
    clock = Clock()
    keeper = mesh.keeper("k", clock=clock)
    earlier = keeper.revocations
    keeper.accept_revocations(some(mesh, held))
    clock.now += MAX_SILENCE_SECONDS + 1
    assert refusal(lambda: keeper.note(statement(keeper, earlier, clock.now))) == "REVOCATIONS_DIVERGED"
    assert refusal(keeper.require_fresh) == "POLICY_STALE"
    assert keeper.revocations.number == held
    hear(keeper, clock.now)
    assert keeper.require_fresh().revoked.compose_hashes


def test_a_statement_with_another_digest_refreshes_nothing(mesh: JoinedMesh) -> None:
    keeper = mesh.keeper("k", fresh=False)
    other = mesh.keeper("other")
    keeper.accept_revocations(some(mesh, 1))
    other.accept_revocations([mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE)])
    wrong = statement(keeper, other.revocations, time.time())
    assert wrong.revocation == keeper.revocations.number
    assert refusal(lambda: keeper.note(wrong)) == "REVOCATIONS_DIVERGED"
    assert refusal(keeper.require_fresh) == "POLICY_STALE"


def test_a_statement_with_another_number_refreshes_nothing(mesh: JoinedMesh) -> None:
    keeper = mesh.keeper("k", fresh=False)
    current = keeper.current
    wrong = Statement(current.version, current.digest, 1, int(time.time() * 1000), keeper.revocations.digest)
    assert refusal(lambda: keeper.note(wrong)) == "REVOCATIONS_DIVERGED"


def test_m_of_n_lift_a_revocation_and_replaying_it_changes_nothing(mesh: JoinedMesh) -> None:
    keeper = mesh.keeper("k")
    signed = mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE)
    keeper.accept_revocations([signed])
    keeper.accept(mesh.successor(keeper.current, lifted_revocations=[identifier(signed)]))
    assert not keeper.current.revoked.compose_hashes
    keeper.accept_revocations([signed])
    assert not keeper.current.revoked.compose_hashes
    assert keeper.revocations.number == 1
    keeper.accept_revocations([mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE, time_ms=1)])
    assert keeper.current.revoked.compose_hashes == {COMPOSE}


def test_what_the_next_version_does_not_lift_again_counts_again(mesh: JoinedMesh) -> None:
    keeper = mesh.keeper("k")
    signed = mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE)
    keeper.accept_revocations([signed])
    keeper.accept(mesh.successor(keeper.current, lifted_revocations=[identifier(signed)]))
    keeper.accept(mesh.successor(keeper.current))
    assert keeper.current.revoked.compose_hashes == {COMPOSE}


def test_fewer_than_the_threshold_lift_nothing(mesh: JoinedMesh) -> None:
    keeper = mesh.keeper("k")
    signed = mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE)
    keeper.accept_revocations([signed])
    draft = {**mesh.draft, "version": 2, "previous": keeper.current.digest.hex()}
    lifting = mesh.sign({**draft, "lifted_revocations": [identifier(signed)]}, signers=(1,))
    assert refusal(lambda: keeper.accept(lifting)) == "POLICY_SIGNATURES_INSUFFICIENT"
    assert keeper.current.revoked.compose_hashes == {COMPOSE}


def _kept(mesh: JoinedMesh) -> Path:
    (path,) = (mesh.folder / "k" / "policy" / "revocations").iterdir()
    return path


def test_a_damaged_revocation_on_disk_is_never_skipped(mesh: JoinedMesh) -> None:
    signed = mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE)
    mesh.keeper("k").accept_revocations([signed])
    path = _kept(mesh)
    stranger = JoinedMesh(mesh.folder, mesh.machine)
    other = mesh.revocation(RevocationKind.MEASUREMENT, "cd" * 32)
    for damaged in (
        b"",
        signed[:-1],
        signed.replace(COMPOSE.encode(), b"cd" * 32),
        stranger.revocation(RevocationKind.MEASUREMENT, COMPOSE),
        other,
    ):
        path.write_bytes(damaged)
        with pytest.raises(RevocationsUnreadable, match=path.name):
            mesh.keeper("k")
    path.write_bytes(signed)
    assert mesh.keeper("k").current.revoked.compose_hashes == {COMPOSE}


def test_a_revocation_removed_from_disk_is_missed_at_the_next_statement(mesh: JoinedMesh) -> None:
    keeper = mesh.keeper("k")
    keeper.accept_revocations(some(mesh, 1))
    _kept(mesh).unlink()
    again = mesh.keeper("k", fresh=False)
    assert refusal(lambda: again.note(statement(again, keeper.revocations, time.time()))) == "REVOCATIONS_DIVERGED"
    assert refusal(again.require_fresh) == "POLICY_STALE"


@dataclass(slots=True)
class Kms:
    """States what its own keeper holds, and gives out what the test lets it."""

    keeper: PolicyKeeper
    given: list[bytes] = field(default_factory=list)
    stated: asyncio.Queue[Statement] = field(default_factory=asyncio.Queue)

    def state(self) -> None:
        self.stated.put_nowait(statement(self.keeper, self.keeper.revocations, time.time()))

    def revoke(self, signed: bytes) -> None:
        self.keeper.accept_revocations([signed])
        self.given.append(signed)
        self.state()

    async def watch(self) -> AsyncGenerator[Statement, None]:
        while not self.stated.empty():
            yield self.stated.get_nowait()
        raise StatementsEnded("nothing more")

    async def policy(self, version: int) -> bytes:
        return self.keeper.signed(version)

    async def revocations(self) -> Sequence[bytes]:
        return self.given


async def taken(kms: Kms, keeper: PolicyKeeper) -> str:
    with pytest.raises(MeshError) as error:
        await watch_statements(kms, keeper)
    return error.value.reason


async def test_a_service_fetches_what_a_statement_names_and_it_lacks(mesh: JoinedMesh) -> None:
    kms, keeper = Kms(mesh.keeper("kms")), mesh.keeper("k", fresh=False)
    kms.revoke(mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE))
    assert await taken(kms, keeper) == "STATEMENTS_ENDED"
    assert keeper.require_fresh().revoked.compose_hashes == {COMPOSE}


async def test_a_kms_that_names_what_it_hides_refreshes_nobody(mesh: JoinedMesh) -> None:
    kms, keeper = Kms(mesh.keeper("kms")), mesh.keeper("k", fresh=False)
    kms.revoke(mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE))
    kms.given.clear()
    assert await taken(kms, keeper) == "REVOCATIONS_DIVERGED"
    assert refusal(keeper.require_fresh) == "POLICY_STALE"


class VersionsUnread(Kms):
    """Gives out versions in a form that this service does not read."""

    async def policy(self, version: int) -> bytes:
        return b"{}"


async def test_a_version_that_cannot_be_read_keeps_no_revocation_from_counting(mesh: JoinedMesh) -> None:
    kms, keeper = VersionsUnread(mesh.keeper("kms")), mesh.keeper("k", fresh=False)
    kms.keeper.accept(mesh.successor(kms.keeper.current))
    kms.revoke(mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE))
    assert await taken(kms, keeper) == "POLICY_MALFORMED"
    assert keeper.current.version == 1
    assert keeper.current.revoked.compose_hashes == {COMPOSE}
    assert refusal(keeper.require_fresh) == "POLICY_STALE"


async def test_a_kms_that_goes_back_refreshes_nobody(mesh: JoinedMesh) -> None:
    keeper = mesh.keeper("k", fresh=False)
    signed = mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE)
    keeper.accept_revocations([signed])
    rolled_back = Kms(mesh.keeper("kms"))
    rolled_back.state()
    assert await taken(rolled_back, keeper) == "REVOCATIONS_DIVERGED"
    assert refusal(keeper.require_fresh) == "POLICY_STALE"
    assert keeper.current.revoked.compose_hashes == {COMPOSE}


async def test_a_kms_that_adds_a_revocation_of_its_own_is_not_believed(mesh: JoinedMesh) -> None:
    kms, keeper = Kms(mesh.keeper("kms")), mesh.keeper("k", fresh=False)
    kms.revoke(mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE))
    stranger = JoinedMesh(mesh.folder, mesh.machine)
    kms.given.insert(0, stranger.revocation(RevocationKind.TENANT, "12" * 16))
    assert await taken(kms, keeper) == "REVOCATION_SIGNATURE_INVALID"
    assert keeper.current.revoked.compose_hashes == {COMPOSE}
    assert not keeper.current.revoked.tenants


async def test_a_watch_that_broke_off_is_taken_up_again(mesh: JoinedMesh) -> None:
    kms, keeper = Kms(mesh.keeper("kms")), mesh.keeper("k", fresh=False)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow_statements(kms, keeper, 0.01))
        for number, signed in enumerate(some(mesh, 3), start=1):
            kms.revoke(signed)
            while keeper.revocations.number < number:
                await keeper.advanced()
        following.cancel()


@pytest.fixture
def router(mesh: JoinedMesh, kms: KmsCore) -> CertifiedRouter:
    return CertifiedRouter(mesh, kms, Clock())


async def held(holding: Callable[[ExitStack], None]) -> asyncio.Task[None]:
    started = asyncio.Event()

    async def call() -> None:
        with ExitStack() as stack:
            holding(stack)
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await started.wait()
    return task


@pytest.mark.parametrize("kind", REASONS)
async def test_whoever_is_revoked_loses_lease_and_calls_at_once(
    mesh: JoinedMesh, kms: KmsCore, router: CertifiedRouter, kind: RevocationKind
) -> None:
    keeper = mesh.keeper("server")
    leases = Leases(keeper, lambda: kms.ca.spki)
    lease = leases.open(router.certificate, router.evidence.document)
    task = await held(lambda stack: stack.enter_context(leases.hold(router.certificate.spki_sha256)))
    keeper.accept_revocations([mesh.revocation(kind, value_of(kind, lease))])
    await reappraise(keeper, lambda: (leases,))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    with pytest.raises(EvidenceRequired):
        leases.of(router.certificate.spki_sha256)
    assert refusal(lambda: leases.open(router.certificate, router.evidence.document)) == REASONS[kind]


async def test_a_revocation_of_another_leaves_a_lease_alone(
    mesh: JoinedMesh, kms: KmsCore, router: CertifiedRouter
) -> None:
    keeper = mesh.keeper("server")
    leases = Leases(keeper, lambda: kms.ca.spki)
    leases.open(router.certificate, router.evidence.document)
    others = {
        RevocationKind.MEASUREMENT: COMPOSE,
        RevocationKind.DEVICE: "cd" * 32,
        RevocationKind.CPU_FAMILY: "000000000000",
        RevocationKind.KEY: "ef" * 32,
        RevocationKind.NODE: f"spiffe://{TRUST_DOMAIN}/router/99",
        RevocationKind.TENANT: "12" * 16,
    }
    keeper.accept_revocations([mesh.revocation(kind, value) for kind, value in others.items()])
    await reappraise(keeper, lambda: (leases,))
    assert leases.of(router.certificate.spki_sha256).certificate == router.certificate


def person(kms: KmsCore) -> MeshCertificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = Subject(TRUST_DOMAIN, "operator", "ada", None)
    return parse(kms.ca.issue_svid(subject, key.public_key(), time.time()))


async def test_a_call_without_a_lease_ends_with_the_callers_key(mesh: JoinedMesh, kms: KmsCore) -> None:
    keeper = mesh.keeper("server")
    leases = Leases(keeper, lambda: kms.ca.spki)
    revoked, other = person(kms), person(kms)
    ending = await held(lambda stack: stack.enter_context(leases.hold_certified(revoked)))
    going_on = await held(lambda stack: stack.enter_context(leases.hold_certified(other)))
    keeper.accept_revocations([mesh.revocation(RevocationKind.KEY, hashlib.sha256(revoked.spki).hexdigest())])
    await reappraise(keeper, lambda: (leases,))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(ending, 10)
    assert not going_on.cancelling()
    going_on.cancel()
