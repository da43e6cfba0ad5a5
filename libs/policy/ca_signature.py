"""It is responsible for what the mesh CA's key signs beside certificates: ECDSA with P-256 and SHA-256, DER."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from libs.errors import MeshError

_ALGORITHM = ec.ECDSA(hashes.SHA256())


def sign_by_ca(message: bytes, ca_key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the CA's signature. Each kind of message MUST begin with a context of its own."""
    return ca_key.sign(message, _ALGORITHM)


def verify_by_ca(message: bytes, signature: bytes, ca_spki_der: bytes, refusal: type[MeshError]) -> None:
    """Raise the refusal that the message's reader names unless the mesh CA signed exactly this message."""
    try:
        key = serialization.load_der_public_key(ca_spki_der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise refusal("the CA key is not readable") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise refusal("the CA key must be P-256")
    try:
        key.verify(signature, message, _ALGORITHM)
    except InvalidSignature as error:
        raise refusal("the statement is not signed by the mesh CA") from error
