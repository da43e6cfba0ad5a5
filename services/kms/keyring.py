"""It is responsible for deriving every key from the root: one name, epoch, purpose and algorithm, one key.

HKDF-SHA256 (RFC 5869) of the root with a fixed salt; the info is "teemesh/key/v1", a zero byte, then each of name,
epoch (4 bytes big-endian), purpose and algorithm after its length (2 bytes big-endian), so no two keys share an info.
Purposes keep the KMS's own keys apart from workloads': no name that a policy can write derives one of them.
"""

from __future__ import annotations

import hashlib
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.policy.releases import KeyAlgorithm

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_OWN = "sign"
_SEAL_STATE = "seal-state"
_PURPOSE = {
    KeyAlgorithm.AES_256: "release",
    KeyAlgorithm.X25519: "agree",
    KeyAlgorithm.ED25519: "workload-sign",
    KeyAlgorithm.P_256: "workload-sign",
}


class Keyring:
    """All keys of one root."""

    def __init__(self, root: bytes) -> None:
        self._root = root

    @property
    def ca_key(self) -> ec.EllipticCurvePrivateKey:
        """The mesh CA's."""
        return _p256(self._derive("mesh-ca", 1, _OWN, KeyAlgorithm.P_256, 48))

    @property
    def state_key(self) -> bytes:
        """32 bytes: what the KMS's own state is sealed with."""
        return self._derive("kms-state", 1, _SEAL_STATE, KeyAlgorithm.AES_256, 32)

    def material(self, name: str, epoch: int, algorithm: KeyAlgorithm) -> bytes:
        """The 32 bytes that a holder of the key gets: the key, the seed, or the private scalar."""
        if algorithm is KeyAlgorithm.P_256:
            key = self._p256_of(name, epoch)
            return key.private_numbers().private_value.to_bytes(32, "big")
        return self._derive(name, epoch, _PURPOSE[algorithm], algorithm, 32)

    def public_key(self, name: str, epoch: int, algorithm: KeyAlgorithm) -> bytes:
        """The public half, SubjectPublicKeyInfo in DER. The algorithm MUST have one."""
        key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey | X25519PrivateKey
        match algorithm:
            case KeyAlgorithm.P_256:
                key = self._p256_of(name, epoch)
            case KeyAlgorithm.ED25519:
                key = self._ed25519(name, epoch)
            case KeyAlgorithm.X25519:
                key = X25519PrivateKey.from_private_bytes(self.material(name, epoch, algorithm))
            case KeyAlgorithm.AES_256:
                raise ValueError(f"{algorithm} has no public half")
        return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, name: str, epoch: int, algorithm: KeyAlgorithm, message: bytes) -> bytes:
        """Ed25519, or ECDSA with SHA-256 in DER. The algorithm MUST be one that signs."""
        match algorithm:
            case KeyAlgorithm.P_256:
                return self._p256_of(name, epoch).sign(message, ec.ECDSA(hashes.SHA256()))
            case KeyAlgorithm.ED25519:
                return self._ed25519(name, epoch).sign(message)
        raise ValueError(f"nothing is signed with {algorithm}")

    def _ed25519(self, name: str, epoch: int) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.material(name, epoch, KeyAlgorithm.ED25519))

    def _p256_of(self, name: str, epoch: int) -> ec.EllipticCurvePrivateKey:
        return _p256(self._derive(name, epoch, _PURPOSE[KeyAlgorithm.P_256], KeyAlgorithm.P_256, 48))

    def _derive(self, name: str, epoch: int, purpose: str, algorithm: str, length: int) -> bytes:
        parts = [name.encode(), struct.pack(">I", epoch), purpose.encode(), algorithm.encode()]
        info = b"teemesh/key/v1\0" + b"".join(struct.pack(">H", len(part)) + part for part in parts)
        salt = hashlib.sha256(b"teemesh/kms/root/v1").digest()
        return HKDF(hashes.SHA256(), length, salt=salt, info=info).derive(self._root)


def _p256(wide: bytes) -> ec.EllipticCurvePrivateKey:
    """48 bytes are reduced, so the bias is below 2^-128 (FIPS 186-5, A.2.1)."""
    return ec.derive_private_key(int.from_bytes(wide, "big") % (_P256_ORDER - 1) + 1, ec.SECP256R1())
