"""It is responsible for the way from a signature to a measurement, walked offline: key, KMS, workload, policy.

An agent's signature is by a key of the KMS. The KMS says, under the mesh CA's key, which evidence asked for it; its own
evidence binds that CA key to measured code. Everything is judged under one policy, which the caller knows the operators
signed, and as of the time that the statement names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.custody import KeyUse, verify_key_use
from libs.policy.document import Policy
from libs.policy.members import Members
from libs.policy.succession import verify_valid_at
from libs.tee import evidence as evidences
from libs.tee.appraisal import Appraisal, AppraisalContext, SignedBy, appraise

MAX_BUNDLE_BYTES = 2 * 1024 * 1024
_MAX_SIGNATURE_BYTES = 128
_MAX_STATEMENT_BYTES = 8 * 1024
_MAX_CERTIFICATE_BYTES = 16 * 1024


class SignedMessageMalformed(MeshError):
    """The bytes are no signed message of an agent."""

    code = Code.INVALID_ARGUMENT
    reason = "SIGNED_MESSAGE_MALFORMED"


class MessageSignatureInvalid(MeshError):
    """The signature is not over this message, or not by the key that is stated."""

    code = Code.PERMISSION_DENIED
    reason = "MESSAGE_SIGNATURE_INVALID"


class CaNotAttested(MeshError):
    """The KMS's evidence does not speak for the CA that made the statement."""

    code = Code.PERMISSION_DENIED
    reason = "CA_NOT_ATTESTED"


class SignedUnderAnotherPolicy(MeshError):
    """The statement names another policy, or another mesh's, than the one it is judged by."""

    reason = "SIGNED_UNDER_ANOTHER_POLICY"


class SignerNotTheWorkload(MeshError):
    """The evidence is not the one that asked for the signature, or its workload may not use the key."""

    code = Code.PERMISSION_DENIED
    reason = "SIGNER_NOT_THE_WORKLOAD"


@dataclass(frozen=True, slots=True)
class SignedMessage:
    """A signature and everything that leads from it to a measurement. Nothing is verified."""

    signature: bytes
    statement: bytes
    """`KeyUse`, canonical JSON."""
    statement_signature: bytes
    ca_certificate: bytes
    """DER."""
    kms_evidence: bytes
    """The evidence document of the KMS that signed."""
    evidence: bytes
    """The evidence document of the workload that asked."""

    def encode(self) -> bytes:
        return jcs.dumps(
            {
                "v": 1,
                "signature": self.signature.hex(),
                "statement": self.statement.hex(),
                "statement_signature": self.statement_signature.hex(),
                "ca_certificate": self.ca_certificate.hex(),
                "kms_evidence": jcs.loads(self.kms_evidence),
                "evidence": jcs.loads(self.evidence),
            }
        )


@dataclass(frozen=True, slots=True)
class VerifiedSignature:
    """What a signature proves."""

    use: KeyUse
    workload: Appraisal
    kms: Appraisal


def parse_signed_message(data: bytes) -> SignedMessage:
    """Read what `SignedMessage.encode` wrote. Raises `SignedMessageMalformed`."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise SignedMessageMalformed(f"a signed message has at most {MAX_BUNDLE_BYTES} bytes")
    try:
        value = jcs.loads_object(data)
    except jcs.JsonMalformed as error:
        raise SignedMessageMalformed(f"it is {error}") from error
    members = Members(value, "", SignedMessageMalformed)
    members.integer("v", 1, 1)
    message = SignedMessage(
        signature=members.blob("signature", _MAX_SIGNATURE_BYTES),
        statement=members.blob("statement", _MAX_STATEMENT_BYTES),
        statement_signature=members.blob("statement_signature", _MAX_SIGNATURE_BYTES),
        ca_certificate=members.blob("ca_certificate", _MAX_CERTIFICATE_BYTES),
        kms_evidence=_document(members, "kms_evidence"),
        evidence=_document(members, "evidence"),
    )
    members.end()
    return message


def verify_signed_message(signed: SignedMessage, message: bytes, policy: Policy) -> VerifiedSignature:
    """Walk from the signature to the measurement of the workload that asked for it.

    `policy` MUST be one that the operators signed. Raises `MessageSignatureInvalid`, `CaNotAttested`,
    `SignedUnderAnotherPolicy`, `PolicyNotValidNow`, `SignerNotTheWorkload`, what `verify_key_use` raises, and every
    appraisal refusal. What operators revoked is not known here.
    """
    ca_spki = _spki_of(signed.ca_certificate)
    use = verify_key_use(signed.statement, signed.statement_signature, ca_spki)
    verify_signature(signed.signature, message, use)
    if (use.trust_domain, use.policy_version, use.policy_digest) != (
        policy.trust_domain,
        policy.version,
        policy.digest,
    ):
        raise SignedUnderAnotherPolicy(f"it was signed under version {use.policy_version} of {use.trust_domain}")
    now = use.time_ms // 1000
    verify_valid_at(policy, now)
    kms = _appraise(signed.kms_evidence, "kms", policy, ca_spki, now)
    if kms.workload_claims.get("ca_spki_sha256") != sha256(ca_spki).hexdigest():
        raise CaNotAttested("the KMS's evidence names another CA")
    return VerifiedSignature(use, _appraise_workload(signed.evidence, use, policy, ca_spki, now), kms)


def _appraise_workload(document: bytes, use: KeyUse, policy: Policy, ca_spki: bytes, now: int) -> Appraisal:
    if sha256(document).digest() != use.evidence_sha256:
        raise SignerNotTheWorkload("the statement names other evidence")
    # spiffe://<trust domain>/<role>/<instance>, as the CA wrote it.
    role = use.spiffe_id.removeprefix(f"spiffe://{use.trust_domain}/").partition("/")[0]
    appraisal = _appraise(document, role, policy, ca_spki, now)
    rule = policy.key_release(use.name)
    if rule is None or not rule.admits(role, appraisal.measurement.compose_hash) or rule.algorithm is not use.algorithm:
        raise SignerNotTheWorkload(f"policy {policy.version} does not give {use.name} to this workload")
    return appraisal


def _appraise(document: bytes, role: str, policy: Policy, ca_spki: bytes, now: int) -> Appraisal:
    evidence = evidences.parse(document)
    context = AppraisalContext(
        now=now,
        spki=evidence.spki,
        challenge=SignedBy(ca_spki, policy.evidence_max_age_seconds),
        policy_version=policy.version,
    )
    return appraise(evidence, policy.rules(role), context)


def verify_signature(signature: bytes, message: bytes, use: KeyUse) -> None:
    """Hold a signature and a message against what was stated of them. Raises `MessageSignatureInvalid`."""
    if sha256(message).digest() != use.message_sha256 or sha256(signature).digest() != use.signature_sha256:
        raise MessageSignatureInvalid("the statement is about another message, or another signature")
    try:
        key = serialization.load_der_public_key(use.public_key)
        match key:
            case Ed25519PublicKey():
                key.verify(signature, message)
            case ec.EllipticCurvePublicKey():
                key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            case _:
                raise MessageSignatureInvalid("the stated key is none that signs")
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
        raise MessageSignatureInvalid("the signature is not by the stated key") from error


def _spki_of(certificate: bytes) -> bytes:
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CaNotAttested("the CA certificate cannot be read") from error


def _document(members: Members, name: str) -> bytes:
    value: Any = members.value(name)
    if not isinstance(value, Mapping):
        raise members.refuse(name, "must be an object")
    try:
        return jcs.dumps(dict(value))
    except jcs.JsonMalformed as error:
        raise members.refuse(name, f"has {error}") from error
