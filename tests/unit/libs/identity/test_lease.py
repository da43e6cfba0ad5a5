"""Who is believed, until when, and what happens to what runs when belief ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from libs.errors import MeshError
from libs.identity.certificate import Subject, parse
from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import KEYS_OF_A_NAME, EvidenceRequired, Leases, appraise_peer
from libs.identity.reappraisal import reappraise
from services.devtee.pki import VendorPki
from services.devtee.platform import Platform
from tests.fakes.certified_router import CertifiedRouter as Router
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore, MachineCollateral


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def router(mesh: JoinedMesh, kms: KmsCore, clock: Clock) -> Router:
    return Router(mesh, kms, clock)


@pytest.fixture
def keeper(mesh: JoinedMesh, clock: Clock) -> PolicyKeeper:
    return mesh.keeper("server", clock=clock)


@pytest.fixture
def leases(kms: KmsCore, keeper: PolicyKeeper, clock: Clock) -> Leases:
    return Leases(keeper, lambda: kms.ca.spki, clock)


def refusal(leases: Leases, router: Router, document: bytes | None = None) -> str:
    with pytest.raises(MeshError) as error:
        leases.open(router.certificate, router.evidence.document if document is None else document)
    return error.value.reason


def test_a_lease_ends_with_the_certificate(leases: Leases, router: Router, clock: Clock) -> None:
    lease = leases.open(router.certificate, router.evidence.document)
    assert lease.until == router.certificate.not_after
    assert leases.of(router.certificate.spki_sha256) is lease
    clock.now = lease.until
    with pytest.raises(EvidenceRequired):
        leases.of(router.certificate.spki_sha256)


def test_a_lease_ends_with_the_age_that_policy_gives_evidence(
    mesh: JoinedMesh, leases: Leases, keeper: PolicyKeeper, router: Router
) -> None:
    keeper.accept(mesh.successor(keeper.current, evidence_max_age_seconds=600))
    lease = leases.open(router.certificate, router.evidence.document)
    assert lease.until == router.evidence.challenge.issued_at + 600


def test_evidence_of_somebody_else_is_a_mismatch(
    mesh: JoinedMesh, kms: KmsCore, leases: Leases, router: Router, clock: Clock
) -> None:
    assert refusal(leases, router, Router(mesh, kms, clock).evidence.document) == "EVIDENCE_MISMATCH"


def test_evidence_over_another_key_is_refused_even_when_the_certificate_names_it(
    mesh: JoinedMesh, kms: KmsCore, leases: Leases, router: Router, clock: Clock
) -> None:
    """A KMS that certified a key which the evidence does not speak for."""
    thief = ec.generate_private_key(ec.SECP256R1())
    subject = Subject(TRUST_DOMAIN, "router", "1", router.evidence.digest)
    router.certificate = parse(kms.ca.issue_svid(subject, thief.public_key(), clock.now))
    assert refusal(leases, router) == "SPKI_MISMATCH"


def test_evidence_under_another_role_is_refused(
    mesh: JoinedMesh, kms: KmsCore, leases: Leases, router: Router, clock: Clock
) -> None:
    """A KMS that certified a router as the ledger: every relying service appraises by itself."""
    subject = Subject(TRUST_DOMAIN, "ledger", "1", router.evidence.digest)
    router.certificate = parse(kms.ca.issue_svid(subject, router.key.public_key(), clock.now))
    assert refusal(leases, router) == "MEASUREMENT_NOT_ALLOWED"


def test_evidence_for_a_challenge_of_another_ca_is_refused(mesh: JoinedMesh, leases: Leases, clock: Clock) -> None:
    stranger = Router(mesh, mesh.kms("stranger", root=bytes(32)), clock)
    assert refusal(leases, stranger) == "CHALLENGE_ISSUER_NOT_TRUSTED"


def test_evidence_older_than_policy_accepts_is_refused(leases: Leases, router: Router, clock: Clock) -> None:
    clock.now += 3901
    assert refusal(leases, router) == "CHALLENGE_TOO_OLD"


@pytest.mark.parametrize("document", [b"", b"{}", b"\xff" * 100, b"x" * (512 * 1024 + 1)])
def test_hostile_documents_are_refused_as_such(leases: Leases, router: Router, document: bytes) -> None:
    assert refusal(leases, router, document) in {"JSON_MALFORMED", "EVIDENCE_MALFORMED", "EVIDENCE_TOO_LARGE"}


async def running_on(leases: Leases, router: Router) -> asyncio.Task[None]:
    started = asyncio.Event()

    async def call() -> None:
        with leases.hold(router.certificate.spki_sha256):
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await started.wait()
    return task


async def test_what_runs_on_a_lease_ends_with_it(leases: Leases, router: Router, clock: Clock) -> None:
    lease = leases.open(router.certificate, router.evidence.document)
    task = await running_on(leases, router)
    clock.now = lease.until - 1
    leases.sweep()
    assert leases.of(router.certificate.spki_sha256) is lease
    clock.now = lease.until
    leases.sweep()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_presenting_again_lets_what_runs_go_on(
    mesh: JoinedMesh, kms: KmsCore, leases: Leases, router: Router, keeper: PolicyKeeper
) -> None:
    keeper.accept(mesh.successor(keeper.current, evidence_max_age_seconds=600))
    leases.open(router.certificate, router.evidence.document)
    task = await running_on(leases, router)
    keeper.accept(mesh.successor(keeper.current, evidence_max_age_seconds=3900))
    leases.open(router.certificate, router.evidence.document)
    await reappraise(keeper, lambda: (leases,))
    leases.sweep()
    assert not task.cancelling()
    task.cancel()


async def test_a_policy_that_no_longer_allows_the_measurement_ends_the_lease_at_once(
    mesh: JoinedMesh, leases: Leases, router: Router, keeper: PolicyKeeper
) -> None:
    leases.open(router.certificate, router.evidence.document)
    task = await running_on(leases, router)
    keeper.accept(mesh.successor(keeper.current))
    await reappraise(keeper, lambda: (leases,))
    assert leases.of(router.certificate.spki_sha256).appraisal.policy_version == 2
    keeper.accept(mesh.successor(keeper.current, roles=mesh.without("router")))
    await reappraise(keeper, lambda: (leases,))
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(EvidenceRequired):
        leases.of(router.certificate.spki_sha256)
    assert refusal(leases, router) == "MEASUREMENT_NOT_ALLOWED"


async def test_a_revoked_machine_ends_the_lease(
    mesh: JoinedMesh, leases: Leases, router: Router, keeper: PolicyKeeper
) -> None:
    lease = leases.open(router.certificate, router.evidence.document)
    devices = {"allowed": [], "revoked": [lease.appraisal.device_id]}
    keeper.accept(mesh.successor(keeper.current, devices=devices))
    await reappraise(keeper, lambda: (leases,))
    assert refusal(leases, router) == "DEVICE_REVOKED"


def opened(leases: Leases, router: Router) -> bytes:
    leases.open(router.certificate, router.evidence.document)
    return router.certificate.spki_sha256


def held(leases: Leases) -> list[bytes]:
    return [key for key, _ in leases.live()]


def test_a_name_holds_its_newest_keys_and_no_more(mesh: JoinedMesh, kms: KmsCore, leases: Leases, clock: Clock) -> None:
    other = opened(leases, Router(mesh, kms, clock, "2"))
    routers = [Router(mesh, kms, clock) for _ in range(KEYS_OF_A_NAME + 3)]
    keys = [opened(leases, router) for router in routers]
    assert held(leases) == [other, *keys[3:]]
    with pytest.raises(EvidenceRequired):
        leases.of(keys[0])
    assert opened(leases, routers[-1]) == keys[-1]
    assert held(leases) == [other, *keys[3:]]


def test_who_takes_a_name_on_another_machine_ends_no_lease_of_its_bearer(
    mesh: JoinedMesh, kms: KmsCore, leases: Leases, keeper: PolicyKeeper, clock: Clock
) -> None:
    bearer = opened(leases, Router(mesh, kms, clock))
    now, td = int(clock.now), mesh.tds["router"]
    elsewhere = replace(mesh.machine, pki=VendorPki.create(Platform.random(), now))
    (root,) = mesh.draft["vendor_roots"]
    roots = [root, {**root, "name": "elsewhere", "certificate": elsewhere.vendor_root.hex()}]
    keeper.accept(mesh.successor(keeper.current, vendor_roots=roots))
    mesh.tds["router"] = elsewhere.boot(td.app_compose.encode(), td.identity, now)
    mesh.collateral = MachineCollateral(elsewhere)
    keys = [opened(leases, Router(mesh, kms, clock)) for _ in range(KEYS_OF_A_NAME + 1)]
    assert held(leases) == [bearer, *keys[1:]]


async def test_keys_on_which_something_runs_stay_longest_but_not_without_bound(
    mesh: JoinedMesh, kms: KmsCore, leases: Leases, clock: Clock
) -> None:
    busy = [Router(mesh, kms, clock) for _ in range(KEYS_OF_A_NAME - 1)]
    keys = [opened(leases, router) for router in busy]
    tasks = [await running_on(leases, router) for router in busy]
    idle = opened(leases, Router(mesh, kms, clock))
    newest = Router(mesh, kms, clock)
    keys.append(opened(leases, newest))
    assert idle not in held(leases)
    assert held(leases) == keys
    assert not any(task.cancelling() for task in tasks)
    tasks.append(await running_on(leases, newest))
    keys.append(opened(leases, Router(mesh, kms, clock)))
    assert held(leases) == keys[1:]
    assert [bool(task.cancelling()) for task in tasks] == [True] + [False] * (len(tasks) - 1)
    for task in tasks:
        task.cancel()


async def test_nothing_runs_without_a_lease(leases: Leases, router: Router) -> None:
    with pytest.raises(EvidenceRequired), leases.hold(router.certificate.spki_sha256):
        pass


def test_appraising_a_peer_is_pure(mesh: JoinedMesh, kms: KmsCore, router: Router, clock: Clock) -> None:
    policy = mesh.keeper("k").current
    first = appraise_peer(router.certificate, router.evidence.document, policy, kms.ca.spki, clock.now)
    assert first == appraise_peer(router.certificate, router.evidence.document, policy, kms.ca.spki, clock.now)
