"""The attestation service's own servicer, archive and feed, served by a member that really joined."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from libs.identity.certificate import Subject, key_pem, pem_of, spki_of_certificate
from libs.identity.challenges import Challenges
from libs.identity.member import Member
from libs.policy.document import Policy, read
from libs.tee.appraisal import SignedBy
from libs.tee.archived import Question
from libs.tee.ear import Signer
from services.attestation.appraisal import Appraisals, Appraiser
from services.attestation.archive import Archive
from services.attestation.feed import Feed
from services.attestation.leases import LiveLeases
from services.attestation.nodes import Listed, Shown, fetch_evidence
from services.attestation.servicer import AttestationServicer, Watching, attestation_binding
from services.attestation.sweep import Sweep
from services.cli.mesh.status import Access
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore

FIRST = 1000
"""The feed's number before the first appraisal."""


@dataclass(frozen=True, slots=True)
class Attesting:
    """A service to ask, and what it answers from."""

    target: str
    appraisals: Appraisals
    policy: Policy
    document: bytes
    """Evidence of a ledger."""
    question: Question
    """Which that evidence answers."""
    watching: Watching
    """Leases of a registry that is away."""
    clock: Clock
    """By which evidence ages."""

    async def appraise(self, role: str = "ledger", spiffe_id: str = "") -> bytes:
        """Have the evidence appraised for a role; return the record's digest."""
        question = Question(role, self.question.now, self.question.spki, self.question.challenge)
        _, recorded = await self.appraisals.make(self.document, self.policy, question, spiffe_id=spiffe_id)
        assert recorded is not None
        return recorded.digest


@asynccontextmanager
async def attesting(mesh: JoinedMesh, kms: KmsCore, *, kept: int = 4096) -> AsyncIterator[Attesting]:
    """Serve an empty archive, and a feed that keeps so many."""
    async with mesh.member("attestation", kms) as member:
        archive, feed = Archive(member.settings.state_dir / "archive", 1 << 30), Feed(FIRST, kept)
        await archive.open()
        appraisals = Appraisals(archive, feed)
        current = member.identity.current
        challenges = Challenges(member.spiffe_id, lambda: (current.key, current.certificate.der), time.time)
        signer = Signer(member.spiffe_id, current.key, current.certificate.der, current.certificate.not_after)
        appraiser = Appraiser(challenges, member.policy, appraisals, lambda: signer)
        clock = Clock()
        watching = _watching(member, archive, appraisals, clock)
        servicer = AttestationServicer(challenges, appraiser, archive, feed, watching)
        asked = kms.challenges.issue("evidence")
        evidence = mesh.evidence("ledger", asked, ec.generate_private_key(ec.SECP256R1()))
        question = Question("ledger", int(time.time()), None, SignedBy(spki_of_certificate(kms.ca.certificate), 60))
        async with member.serve([attestation_binding(servicer)]) as running:
            target = f"127.0.0.1:{running.port}"
            yield Attesting(target, appraisals, read(mesh.draft), evidence.document, question, watching, clock)


def access(kms: KmsCore, **addresses: str) -> Access:
    """An operator's certificate of the mesh CA, and where the services are."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = Subject(TRUST_DOMAIN, "operator", "me", None)
    certificate = pem_of(kms.ca.issue_svid(subject, key.public_key(), time.time()))
    return Access(TRUST_DOMAIN, pem_of(kms.ca.certificate), certificate, key_pem(key), "", {}, addresses)


def _watching(member: Member, archive: Archive, appraisals: Appraisals, clock: Clock) -> Watching:
    async def fetch(listed: Listed) -> Shown:
        return await fetch_evidence(member, listed)

    def ca_spki() -> bytes:
        return spki_of_certificate(member.identity.ca_certificate)

    leases = LiveLeases(member.peer("registry", "127.0.0.1:9"))
    return Watching(leases, Sweep(leases, fetch, member.policy, ca_spki, archive, appraisals, clock))
