"""Genuine evidence, presented to a real listener for a key, a role, a name or a time that it is not about."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from libs.identity.lease import Lease, Leases
from libs.identity.renewal import Credential
from libs.policy.revocation import RevocationKind
from libs.tee.binding import report_data
from libs.tee.challenge import Challenge
from libs.tee.collateral import Collateral
from libs.tee.evidence import Evidence, assemble
from services.devtee.collateral import CollateralShape
from services.devtee.machine import Machine
from services.devtee.quotes import TD_ATTRIBUTES_DEBUG
from tests.fakes.joined_mesh import Clock, JoinedMesh
from tests.fakes.revocations import REASONS, value_of
from tests.unit.libs.identity.relays.ground import Ground, ask, fetch_evidence, present
from tests.unit.libs.identity.relays.row import Attack, Row

DAY = 86400


def remade(evidence: Evidence, **changes: Any) -> Evidence:
    """The same document with some parts exchanged; the quote stays what it is."""
    given = {
        "quote": evidence.quote,
        "event_log": evidence.event_log,
        "app_compose": evidence.app_compose,
        "spki": evidence.spki,
        "claims": evidence.claims,
        "challenge": evidence.challenge,
        "collateral": evidence.collateral,
    }
    return assemble(**{**given, **changes})


def presenting(make: Callable[[Ground], Credential]) -> Attack:
    """Show a certificate that names the evidence, and present that."""

    async def attack(ground: Ground) -> None:
        await ground.call(make(ground))

    return attack


def bent(change: Callable[[Ground, Evidence], Evidence]) -> Attack:
    """A certificate of a KMS that was deceived, over evidence that is genuine but for one part."""

    def make(ground: Ground) -> Credential:
        genuine = ground.genuine()
        return ground.certified(genuine.key, change(ground, genuine.evidence))

    return presenting(make)


def another_key(ground: Ground) -> Credential:
    return ground.certified(ec.generate_private_key(ec.SECP256R1()), ground.genuine().evidence)


def another_role(ground: Ground) -> Credential:
    genuine = ground.genuine()
    return ground.certified(genuine.key, genuine.evidence, role="registry")


def claiming_another_role(ground: Ground) -> Credential:
    """A router's code that says of itself that it is a registry."""
    return ground.genuine(claims={"role": "registry"})


async def of_another_instance(ground: Ground) -> None:
    own, other = ground.genuine(), ground.genuine(instance="2")
    await ground.present(own, other.evidence.document)


async def of_the_listener(ground: Ground) -> None:
    """What the server itself gives out to anyone with a certificate."""
    listening = await ground.listening()
    await ground.present(ground.genuine(), listening.member.identity.current.evidence.document)


async def of_its_last_certificate(ground: Ground) -> None:
    """The key's own evidence of an earlier challenge, which another certificate names."""
    key = ec.generate_private_key(ec.SECP256R1())
    earlier, later = ground.proof("router", key), ground.proof("router", key)
    await ground.present(ground.certified(key, later), earlier.document)


async def by_a_person(ground: Ground) -> None:
    async with ground.connected(*ground.person()) as channel:
        await present(channel, ground.genuine().evidence.document)


async def as_a_person(ground: Ground) -> None:
    """A person may make the call, but what it gives is for those who have evidence."""
    async with ground.connected(*ground.person()) as channel:
        await ask(channel)


async def asked_for(ground: Ground) -> None:
    genuine = ground.genuine()
    async with ground.connected(genuine.key, genuine.certificate.der) as channel:
        await fetch_evidence(channel, genuine.evidence.digest)


async def on_another_certificate_of_the_name(ground: Ground) -> None:
    """One has presented its evidence, the other, of the same instance, calls."""
    await ground.call(ground.genuine())
    second = ground.genuine()
    async with ground.connected(second.key, second.certificate.der) as channel:
        await ask(channel)


def challenged(make: Callable[[Ground], Challenge]) -> Attack:
    return presenting(lambda ground: ground.genuine(challenge=make(ground)))


def _by(ground: Ground, ca: Any, now: float) -> Challenge:
    return Challenge.signed("spiffe://mesh.test/kms/1", "certificate", int(now), ca.key, ca.certificate)


def stranger(ground: Ground) -> Challenge:
    return ground.mesh.kms("stranger", root=bytes(32)).challenges.issue("certificate")


def forged(ground: Ground) -> Challenge:
    """The words of one challenge under the signature of another."""
    first, second = (ground.kms.challenges.issue("certificate") for _ in range(2))
    return replace(first, signature=second.signature)


def another_nonce(ground: Ground, evidence: Evidence) -> Evidence:
    return remade(evidence, challenge=ground.kms.challenges.issue("certificate"))


def another_spki(ground: Ground) -> Credential:
    """A quote over one key, in a document that names another."""
    victim, thief = ground.genuine(), ground.genuine()
    document = remade(victim.evidence, spki=thief.certificate.spki)
    return ground.certified(thief.key, document)


def debugged(ground: Ground, evidence: Evidence) -> Evidence:
    bound = report_data(evidence.challenge.nonce, evidence.spki, evidence.claims)
    quote = ground.mesh.tds["router"].quote(bound, td_attributes=TD_ATTRIBUTES_DEBUG)
    return remade(evidence, quote=quote)


def shaped(**shape: Any) -> Callable[[Ground, Evidence], Evidence]:
    """Other statements of the vendor about the same machine."""

    def change(ground: Ground, evidence: Evidence) -> Evidence:
        said = CollateralShape(**{"issued_at": int(time.time()), **shape})
        return remade(evidence, collateral=Collateral.parse(ground.mesh.machine.collateral(said).members()))

    return change


def of_another_vendor(ground: Ground) -> Credential:
    """A software TEE with the same code and a root of its own."""
    other = JoinedMesh(ground.mesh.folder, Machine.create(int(time.time())))
    key = ec.generate_private_key(ec.SECP256R1())
    return ground.certified(key, other.evidence("router", ground.kms.challenges.issue("certificate"), key))


def revoked(kind: RevocationKind) -> Attack:
    """Everything about the caller is as it was when it was still allowed."""

    async def attack(ground: Ground) -> None:
        genuine = ground.genuine()
        keeper = (await ground.listening()).member.policy
        value = value_of(kind, _lease(ground, genuine))
        keeper.accept_revocations([ground.mesh.revocation(kind, value)])
        leases = Leases(keeper, lambda: ground.kms.ca.spki)
        leases.open(genuine.certificate, genuine.evidence.document)

    return attack


def revoked_with_a_lease(kind: RevocationKind) -> Attack:
    """It was believed, and makes the same call once more."""

    async def attack(ground: Ground) -> None:
        genuine = ground.genuine()
        async with ground.connected(genuine.key, genuine.certificate.der) as channel:
            await present(channel, genuine.evidence.document)
            await ask(channel)
            member = (await ground.listening()).member
            lease = member.leases.of(genuine.certificate.spki_sha256)
            member.policy.accept_revocations([ground.mesh.revocation(kind, value_of(kind, lease))])
            await fetch_evidence(channel)

    return attack


def _lease(ground: Ground, genuine: Credential) -> Lease:
    leases = Leases(ground.keeper(), lambda: ground.kms.ca.spki)
    return leases.open(genuine.certificate, genuine.evidence.document)


def moved_on(**changes: Any) -> Attack:
    """Policy was published since the certificate was issued."""

    async def attack(ground: Ground) -> None:
        genuine = ground.genuine(challenge=_by(ground, ground.kms.ca, time.time() - 900))
        keeper = (await ground.listening()).member.policy
        keeper.accept(ground.mesh.successor(keeper.current, **changes))
        await ground.call(genuine)

    return attack


async def no_longer_a_router(ground: Ground) -> None:
    keeper = (await ground.listening()).member.policy
    keeper.accept(ground.mesh.successor(keeper.current, roles=ground.mesh.without("router")))
    await ground.call(ground.genuine())


async def a_lease_that_ran_out(ground: Ground) -> None:
    clock = Clock()
    genuine = ground.genuine()
    leases = Leases(ground.keeper(), lambda: ground.kms.ca.spki, clock)
    leases.open(genuine.certificate, genuine.evidence.document)
    clock.now = genuine.certificate.not_after
    leases.of(genuine.certificate.spki_sha256)


async def a_lease_that_never_was(ground: Ground) -> None:
    leases = Leases(ground.keeper(), lambda: ground.kms.ca.spki)
    with leases.hold(ground.genuine().certificate.spki_sha256):
        pass


ROWS = [
    Row("evidence of another instance", "EVIDENCE_MISMATCH", of_another_instance),
    Row("evidence of the listener itself", "EVIDENCE_MISMATCH", of_the_listener),
    Row("the key's own evidence of an earlier certificate", "EVIDENCE_MISMATCH", of_its_last_certificate),
    Row("evidence by a person", "EVIDENCE_MISMATCH", by_a_person),
    Row("a person's certificate where a service's is needed", "EVIDENCE_REQUIRED", as_a_person),
    Row(
        "a certificate whose name another key has a lease for", "EVIDENCE_REQUIRED", on_another_certificate_of_the_name
    ),
    Row("a lease that has run out", "EVIDENCE_REQUIRED", a_lease_that_ran_out),
    Row("a lease that never was", "EVIDENCE_REQUIRED", a_lease_that_never_was),
    Row("a question for evidence that the listener does not hold", "EVIDENCE_UNKNOWN", asked_for),
    Row("evidence under another key", "SPKI_MISMATCH", presenting(another_key)),
    Row("a quote over another key than the document names", "REPORT_DATA_MISMATCH", presenting(another_spki)),
    Row("evidence under another role", "MEASUREMENT_NOT_ALLOWED", presenting(another_role)),
    Row("evidence that claims another role", "ROLE_MISMATCH", presenting(claiming_another_role)),
    Row("evidence for a challenge of another CA", "CHALLENGE_ISSUER_NOT_TRUSTED", challenged(stranger)),
    Row("evidence for a challenge with another's signature", "CHALLENGE_SIGNATURE_INVALID", challenged(forged)),
    Row(
        "evidence for a challenge that nobody signed",
        "CHALLENGE_UNSIGNED",
        challenged(lambda g: Challenge.unsigned("spiffe://mesh.test/kms/1", "certificate", int(time.time()))),
    ),
    Row(
        "evidence for a challenge of an earlier day",
        "CHALLENGE_TOO_OLD",
        challenged(lambda g: _by(g, g.kms.ca, time.time() - DAY)),
    ),
    Row(
        "evidence for a challenge of the next day",
        "CHALLENGE_FROM_FUTURE",
        challenged(lambda g: _by(g, g.kms.ca, time.time() + DAY)),
    ),
    Row("evidence with the nonce exchanged", "REPORT_DATA_MISMATCH", bent(another_nonce)),
    Row(
        "evidence with a claim added",
        "REPORT_DATA_MISMATCH",
        bent(lambda g, evidence: remade(evidence, claims={**evidence.claims, "log_key": "ab"})),
    ),
    Row(
        "evidence of other code",
        "MEASUREMENT_NOT_ALLOWED",
        presenting(lambda g: g.genuine(td=g.mesh.boot("router", image="patched"))),
    ),
    Row("evidence of a debug TD", "TD_DEBUG", bent(debugged)),
    Row("evidence of a software TEE with a root of its own", "VENDOR_ROOT_NOT_TRUSTED", presenting(of_another_vendor)),
    Row(
        "evidence with collateral older than policy accepts",
        "COLLATERAL_TOO_OLD",
        bent(shaped(issued_at=int(time.time()) - 2 * DAY)),
    ),
    Row("evidence of a machine that is out of date", "TCB_STATUS_NOT_ALLOWED", bent(shaped(tcb_status="OutOfDate"))),
    *[Row(f"a certificate from before its {kind} was revoked", REASONS[kind], revoked(kind)) for kind in REASONS],
    Row("a live lease whose key was revoked", "KEY_REVOKED", revoked_with_a_lease(RevocationKind.KEY)),
    Row("a live lease whose instance was revoked", "NODE_REVOKED", revoked_with_a_lease(RevocationKind.NODE)),
    Row("evidence older than the next policy accepts", "CHALLENGE_TOO_OLD", moved_on(evidence_max_age_seconds=600)),
    Row("evidence of a role that the next policy has no more", "MEASUREMENT_NOT_ALLOWED", no_longer_a_router),
]
