"""It is responsible for who gets a certificate: services on evidence, people on an operator's signature."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from libs.errors import Code, MeshError
from libs.identity.authority import CertificateRequest, Issued
from libs.identity.certificate import MAX_LIFETIME_SECONDS, PEOPLE, Subject, spki_of
from libs.identity.challenges import Challenges
from libs.identity.freshness import PolicyKeeper
from libs.identity.revoked import verify_not_revoked
from libs.policy.document import Policy
from libs.policy.operator_request import OperatorRequest, verify_operator_request
from libs.tee import evidence as evidences
from libs.tee.appraisal import Appraisal, AppraisalContext, OwnNonce, appraise
from services.kms.ca import CertificateAuthority, public_key_of

ISSUANCE = "certificate"
"""What a service's challenge is for."""
OPERATOR_ISSUANCE = "operator-certificate"
"""What the challenge of a person or tool is for."""

_INSTANCE = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")

log = structlog.get_logger()


class InstanceNameMalformed(MeshError):
    """Not a name for an instance or a person."""

    code = Code.INVALID_ARGUMENT
    reason = "INSTANCE_NAME_MALFORMED"


class RoleNotCertified(MeshError):
    """Nobody is certified for that role in this way."""

    code = Code.INVALID_ARGUMENT
    reason = "ROLE_NOT_CERTIFIED"


class Issuance:
    """Issues certificates under the current policy."""

    def __init__(
        self,
        ca: CertificateAuthority,
        challenges: Challenges,
        policy: PolicyKeeper,
        clock: Callable[[], float] = time.time,
        *,
        service_seconds: int = MAX_LIFETIME_SECONDS,
    ) -> None:
        """`service_seconds` is the life of a service's certificate: it renews by itself, which people do not."""
        self._ca = ca
        self._challenges = challenges
        self._policy = policy
        self._clock = clock
        self._service_seconds = service_seconds

    def certify_service(self, csr: bytes, document: bytes, instance: str) -> tuple[bytes, Appraisal]:
        """Return a certificate for a service that answered one of our challenges. Raises the first refusal.

        Under a policy that has expired nobody gets one: `PolicyNotValidNow`.
        """
        return self.certify(csr, document, instance, self._policy.require_fresh())

    def certify(self, csr: bytes, document: bytes, instance: str, policy: Policy) -> tuple[bytes, Appraisal]:
        """The same under a given policy, its validity being the caller's business.

        The role is the one that the evidence claims: the appraisal holds it against that role's measurements, so a
        service cannot claim what it was not measured as.
        """
        _require_name(instance)
        key = public_key_of(csr)
        evidence = evidences.parse(document)
        role = evidence.claims.get("role")
        if not isinstance(role, str) or role in PEOPLE:
            raise RoleNotCertified("the evidence must claim a service's role")
        self._challenges.spend(evidence.challenge.nonce, ISSUANCE)
        now = self._clock()
        appraisal = appraise(
            evidence,
            policy.rules(role),
            AppraisalContext(
                now=int(now),
                spki=spki_of(key),
                challenge=OwnNonce(evidence.challenge.nonce),
                policy_version=policy.version,
            ),
        )
        subject = Subject(self._ca.trust_domain, role, instance, evidence.digest)
        verify_not_revoked(appraisal.spki_sha256, subject.spiffe_id, policy)
        certificate = self._ca.issue_svid(subject, key, now, self._service_seconds)
        log.info("certificate issued", role=role, instance=instance, evidence=evidence.digest.hex())
        return certificate, appraisal

    def certify_person(self, request: OperatorRequest, operator_key: bytes, signature: bytes) -> bytes:
        """Return a certificate for a person or tool that an operator vouches for. Raises the first refusal."""
        _require_name(request.name)
        key = public_key_of(request.csr)
        verify_operator_request(request, operator_key, signature, self._policy.current)
        self._challenges.spend(request.nonce, OPERATOR_ISSUANCE)
        subject = Subject(self._ca.trust_domain, request.role, request.name, None)
        verify_not_revoked(hashlib.sha256(spki_of(key)).digest(), subject.spiffe_id, self._policy.current)
        log.info("certificate issued to a person", role=request.role, name=request.name, by=operator_key.hex())
        return self._ca.issue_svid(subject, key, self._clock())


class OwnAuthority:
    """The KMS certifies itself by the same rules: its own evidence, appraised under role `kms`.

    It does so under an expired policy too: without a running KMS operators could not publish the next one.
    """

    def __init__(self, issuance: Issuance, challenges: Challenges, ca: CertificateAuthority) -> None:
        self._issuance = issuance
        self._challenges = challenges
        self._ca = ca

    async def issue(self, request: CertificateRequest, policy: Policy) -> Issued:
        document = await request.prove(self._challenges.issue(ISSUANCE))
        certificate, _ = self._issuance.certify(request.csr, document, request.instance, policy)
        return Issued(certificate, self._ca.certificate)


def require_other_key(key: ec.EllipticCurvePublicKey, mesh_spki: bytes) -> None:
    """Raises `RoleNotCertified` when a service asks for its mesh key to be its outward key too."""
    if spki_of(key) == mesh_spki:
        raise RoleNotCertified("a service's outward key must not be its mesh key")


def _require_name(name: str) -> None:
    if not _INSTANCE.fullmatch(name):
        raise InstanceNameMalformed("names are 1 to 40 lower-case letters, digits and hyphens")
