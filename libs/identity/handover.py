"""It is responsible for one key naming the next: what it signs, and what must hold before a receiver believes it.

The old key has proven itself on the connection already; its signature keeps the statement from being taken for anything
else, and from being moved to another connection. It vouches for a name and a key only: the next certificate earns its
own lease by its own evidence.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from libs.errors import Code, MeshError
from libs.identity.certificate import CertificateNotAccepted, MeshCertificate, verify_issued
from libs.identity.renewal import Credential

_CONTEXT = b"teemesh/successor/v1\x00"
_ALGORITHM = ec.ECDSA(hashes.SHA256())


class SuccessorNotIssued(MeshError):
    """What was announced as the next certificate is not a current one of this mesh's CA."""

    code = Code.UNAUTHENTICATED
    reason = "SUCCESSOR_NOT_ISSUED"


class SuccessorOfAnotherName(MeshError):
    """The next certificate is for another name than the one that it is to follow."""

    code = Code.PERMISSION_DENIED
    reason = "SUCCESSOR_OF_ANOTHER_NAME"


class SuccessorNotSigned(MeshError):
    """The key that this connection rests on did not name that certificate."""

    code = Code.UNAUTHENTICATED
    reason = "SUCCESSOR_NOT_SIGNED"


@dataclass(frozen=True, slots=True)
class Successor:
    """A next certificate (DER), the evidence document that it names, and the old key's word. Nothing is verified."""

    certificate: bytes
    document: bytes
    signature: bytes


def name_successor(shown: Credential, following: Credential) -> Successor:
    """Return what the holder of `shown` says to those who are connected to that key."""
    certificate = following.certificate.der
    return Successor(certificate, following.evidence.document, shown.key.sign(_statement(certificate), _ALGORITHM))


def verify_successor(successor: Successor, shown: MeshCertificate, ca_der: bytes, now: float) -> MeshCertificate:
    """Return the next certificate if the key of `shown` named it and it is for the same SPIFFE ID.

    The evidence is not looked at: the caller MUST appraise it. Raises `SuccessorNotIssued`, `SuccessorOfAnotherName` or
    `SuccessorNotSigned`.
    """
    try:
        following = verify_issued(successor.certificate, ca_der, now)
    except CertificateNotAccepted as error:
        raise SuccessorNotIssued(f"the next certificate: {error}") from error
    if following.spiffe_id != shown.spiffe_id:
        raise SuccessorOfAnotherName(f"{following.spiffe_id} cannot follow {shown.spiffe_id}")
    key = load_der_public_key(shown.spki)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise SuccessorNotSigned("mesh keys are P-256")
    try:
        key.verify(successor.signature, _statement(successor.certificate), _ALGORITHM)
    except InvalidSignature as error:
        raise SuccessorNotSigned("the key of this connection did not name that certificate") from error
    return following


def _statement(certificate: bytes) -> bytes:
    return _CONTEXT + hashlib.sha256(certificate).digest()
