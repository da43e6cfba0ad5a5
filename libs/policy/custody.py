"""It is responsible for statements on keys, signed by the mesh CA: whose a public key is, and for whom it signed.

The CA's key is bound by the KMS's evidence, so a statement leads from a key to a measured KMS, and a statement on a
signature leads on to the evidence of the workload that asked for it. Both are canonical JSON. What they say was so at
their time, under the policy that they name; whether that is good enough is for the one who relies on them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.ca_signature import sign_by_ca, verify_by_ca
from libs.policy.members import Members
from libs.policy.releases import KEY_NAME, KeyAlgorithm
from libs.policy.vocabulary import KEY_BYTES, ROLE, TRUST_DOMAIN

_KEY = b"teemesh/key/v1\0"
_USE = b"teemesh/key-use/v1\0"
_MAX_SPKI_BYTES = 128
_ALGORITHM = re.compile("|".join(KeyAlgorithm))
_SPIFFE_ID = re.compile(r"spiffe://[!-~]{1,300}")


class KeyStatementMalformed(MeshError):
    """The bytes are no statement on a key."""

    code = Code.INVALID_ARGUMENT
    reason = "KEY_STATEMENT_MALFORMED"


class KeyStatementSignatureInvalid(MeshError):
    """The statement is not signed by the mesh CA."""

    code = Code.PERMISSION_DENIED
    reason = "KEY_STATEMENT_SIGNATURE_INVALID"


@dataclass(frozen=True, slots=True)
class KeyStatement:
    """This is the public half of that key."""

    trust_domain: str
    name: str
    epoch: int
    newest_epoch: int
    algorithm: KeyAlgorithm
    public_key: bytes
    """SubjectPublicKeyInfo, DER."""
    roles: frozenset[str]
    """Who may use the private half, by the policy."""
    policy_version: int
    policy_digest: bytes
    time_ms: int

    @property
    def document(self) -> bytes:
        return jcs.dumps(
            {
                "v": 1,
                "trust_domain": self.trust_domain,
                "name": self.name,
                "epoch": self.epoch,
                "newest_epoch": self.newest_epoch,
                "algorithm": str(self.algorithm),
                "public_key": self.public_key.hex(),
                "roles": sorted(self.roles),
                "policy_version": self.policy_version,
                "policy_sha256": self.policy_digest.hex(),
                "time_ms": self.time_ms,
            }
        )


@dataclass(frozen=True, slots=True)
class KeyUse:
    """That key made this signature, asked for by whoever showed that evidence."""

    trust_domain: str
    name: str
    epoch: int
    algorithm: KeyAlgorithm
    public_key: bytes
    """SubjectPublicKeyInfo, DER."""
    message_sha256: bytes
    signature_sha256: bytes
    spiffe_id: str
    evidence_sha256: bytes
    policy_version: int
    policy_digest: bytes
    time_ms: int

    @property
    def document(self) -> bytes:
        return jcs.dumps(
            {
                "v": 1,
                "trust_domain": self.trust_domain,
                "name": self.name,
                "epoch": self.epoch,
                "algorithm": str(self.algorithm),
                "public_key": self.public_key.hex(),
                "message_sha256": self.message_sha256.hex(),
                "signature_sha256": self.signature_sha256.hex(),
                "spiffe_id": self.spiffe_id,
                "evidence_sha256": self.evidence_sha256.hex(),
                "policy_version": self.policy_version,
                "policy_sha256": self.policy_digest.hex(),
                "time_ms": self.time_ms,
            }
        )


def sign_key_statement(statement: KeyStatement, ca_key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the CA's signature."""
    return sign_by_ca(_KEY + statement.document, ca_key)


def sign_key_use(use: KeyUse, ca_key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the CA's signature."""
    return sign_by_ca(_USE + use.document, ca_key)


def verify_key_statement(document: bytes, signature: bytes, ca_spki: bytes) -> KeyStatement:
    """Return what the CA said of a key. Raises `KeyStatementSignatureInvalid`, `KeyStatementMalformed`."""
    members = _verified(_KEY, document, signature, ca_spki)
    statement = KeyStatement(
        trust_domain=members.text("trust_domain", TRUST_DOMAIN),
        name=members.text("name", KEY_NAME),
        epoch=members.integer("epoch", 1),
        newest_epoch=members.integer("newest_epoch", 1),
        algorithm=KeyAlgorithm(members.text("algorithm", _ALGORITHM)),
        public_key=members.blob("public_key", _MAX_SPKI_BYTES),
        roles=frozenset(members.texts("roles", ROLE)),
        policy_version=members.integer("policy_version", 1),
        policy_digest=members.octets("policy_sha256", KEY_BYTES),
        time_ms=members.integer("time_ms", 0),
    )
    members.end()
    return statement


def verify_key_use(document: bytes, signature: bytes, ca_spki: bytes) -> KeyUse:
    """Return what the CA said of a signature. Raises `KeyStatementSignatureInvalid`, `KeyStatementMalformed`."""
    members = _verified(_USE, document, signature, ca_spki)
    use = KeyUse(
        trust_domain=members.text("trust_domain", TRUST_DOMAIN),
        name=members.text("name", KEY_NAME),
        epoch=members.integer("epoch", 1),
        algorithm=KeyAlgorithm(members.text("algorithm", _ALGORITHM)),
        public_key=members.blob("public_key", _MAX_SPKI_BYTES),
        message_sha256=members.octets("message_sha256", KEY_BYTES),
        signature_sha256=members.octets("signature_sha256", KEY_BYTES),
        spiffe_id=members.text("spiffe_id", _SPIFFE_ID),
        evidence_sha256=members.octets("evidence_sha256", KEY_BYTES),
        policy_version=members.integer("policy_version", 1),
        policy_digest=members.octets("policy_sha256", KEY_BYTES),
        time_ms=members.integer("time_ms", 0),
    )
    members.end()
    return use


def _verified(context: bytes, document: bytes, signature: bytes, ca_spki: bytes) -> Members:
    verify_by_ca(context + document, signature, ca_spki, KeyStatementSignatureInvalid)
    try:
        value = jcs.loads_object(document)
    except jcs.JsonMalformed as error:
        raise KeyStatementMalformed(f"the statement is {error}") from error
    if jcs.dumps(value) != document:
        raise KeyStatementMalformed("the statement is not in canonical form")
    members = Members(value, "", KeyStatementMalformed)
    members.integer("v", 1, 1)
    return members
