"""It is responsible for what an operator signs so that a person or a tool gets a mesh certificate.

The signature binds the KMS's challenge, the key to be certified, the role and the name. That the challenge is open, and
that the request proves possession of its key, is the KMS's to check.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.policy.vocabulary import INSTANCE, KEY_BYTES, PEOPLE_ROLES

_CONTEXT = b"teemesh/operator-certificate/v1\0"


class OperatorRequestMalformed(MeshError):
    """The request asks for a role or a name that no person or tool can have."""

    code = Code.INVALID_ARGUMENT
    reason = "OPERATOR_REQUEST_MALFORMED"


class OperatorSignatureInvalid(MeshError):
    """The request is not signed by an operator that the policy names."""

    code = Code.PERMISSION_DENIED
    reason = "OPERATOR_SIGNATURE_INVALID"


@dataclass(frozen=True, slots=True)
class OperatorRequest:
    """What is asked for."""

    role: str
    """"operator" or "auditor"."""
    name: str
    csr: bytes
    """PKCS#10, DER."""
    nonce: bytes
    """Of the KMS's challenge, 32 bytes."""

    @property
    def signing_input(self) -> bytes:
        """The bytes that the operator signs. Raises `OperatorRequestMalformed`."""
        if self.role not in PEOPLE_ROLES:
            raise OperatorRequestMalformed("the role must be operator or auditor")
        if not INSTANCE.fullmatch(self.name):
            raise OperatorRequestMalformed("the name must be 1 to 40 lower-case letters, digits and hyphens")
        if len(self.nonce) != KEY_BYTES:
            raise OperatorRequestMalformed("the challenge's nonce must be 32 bytes")
        request = {
            "challenge": self.nonce.hex(),
            "csr_sha256": hashlib.sha256(self.csr).hexdigest(),
            "name": self.name,
            "role": self.role,
        }
        return _CONTEXT + hashlib.sha256(jcs.dumps(request)).digest()


def sign_operator_request(request: OperatorRequest, operator_key: Ed25519PrivateKey) -> bytes:
    """Return the operator's signature. Raises `OperatorRequestMalformed`."""
    return operator_key.sign(request.signing_input)


def verify_operator_request(request: OperatorRequest, operator_key: bytes, signature: bytes, policy: Policy) -> None:
    """Raise unless an operator that the policy names signed exactly this request: `OperatorRequestMalformed`,
    `OperatorSignatureInvalid`.
    """
    message = request.signing_input
    if operator_key not in policy.operator_keys:
        raise OperatorSignatureInvalid(f"policy version {policy.version} names no such operator")
    try:
        Ed25519PublicKey.from_public_bytes(operator_key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise OperatorSignatureInvalid("the operator's signature is not over this request") from error
