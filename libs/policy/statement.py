"""It is responsible for the KMS's statement of which policy and revocations are in force: what keeps a service from
being frozen on old ones.

The statement is canonical JSON signed by the mesh CA's key. How old a statement may be is for the one who relies on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.ca_signature import sign_by_ca, verify_by_ca
from libs.policy.members import Members
from libs.policy.revocation import NO_REVOCATIONS_DIGEST
from libs.policy.vocabulary import KEY_BYTES

_CONTEXT = b"teemesh/statement/v1\0"


class StatementMalformed(MeshError):
    """The bytes are not a policy statement."""

    code = Code.INVALID_ARGUMENT
    reason = "STATEMENT_MALFORMED"


class StatementSignatureInvalid(MeshError):
    """The statement is not signed by the mesh CA."""

    code = Code.PERMISSION_DENIED
    reason = "STATEMENT_SIGNATURE_INVALID"


@dataclass(frozen=True, slots=True)
class Statement:
    """What the KMS holds to be in force at one moment."""

    version: int
    digest: bytes
    """Of the policy."""
    revocation: int
    """How many revocations are known, lifted ones too."""
    time_ms: int
    """Unix milliseconds."""
    revocations_digest: bytes = NO_REVOCATIONS_DIGEST
    """Of the set of them."""

    @property
    def document(self) -> bytes:
        """Canonical JSON: what is signed and sent."""
        return jcs.dumps(
            {
                "v": 1,
                "version": self.version,
                "digest": self.digest.hex(),
                "revocation": self.revocation,
                "revocations_digest": self.revocations_digest.hex(),
                "time_ms": self.time_ms,
            }
        )


def sign_statement(statement: Statement, ca_key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the signature over a statement's document."""
    return sign_by_ca(_CONTEXT + statement.document, ca_key)


def verify_statement(statement: bytes, signature: bytes, ca_spki_der: bytes) -> Statement:
    """Return what the mesh CA stated. Does not judge its age. Raises `StatementSignatureInvalid` and, for signed bytes
    that are no canonical statement, `StatementMalformed`.
    """
    verify_by_ca(_CONTEXT + statement, signature, ca_spki_der, StatementSignatureInvalid)
    return _parse(statement)


def _parse(data: bytes) -> Statement:
    try:
        value = jcs.loads_object(data)
    except jcs.JsonMalformed as error:
        raise StatementMalformed(f"the statement is {error}") from error
    members = Members(value, "", StatementMalformed)
    members.integer("v", 1, 1)
    statement = Statement(
        version=members.integer("version", 1),
        digest=members.octets("digest", KEY_BYTES),
        revocation=members.integer("revocation", 0),
        revocations_digest=members.octets("revocations_digest", KEY_BYTES),
        time_ms=members.integer("time_ms", 0),
    )
    members.end()
    if statement.document != data:
        raise StatementMalformed("the statement is not in canonical form")
    return statement
