"""A verifier's reading of a TDX quote and of dstack's event log, by Intel's layout and nothing of the product.

What it proves ends at the vendor's root: whether the platform is up to date is another question, which policies ask.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

TDX = 0x81
RUNTIME_EVENT = 0x08000001
_SIGNED_BYTES = 632
_QE_REPORT_BYTES = 384
_QE_REPORT = 6
_PCK_CHAIN = 5
_RTMR0 = 376
_REGISTER_BYTES = 48
_SLOT = 568


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote of version 4, as its bytes say."""

    raw: bytes

    @property
    def version(self) -> int:
        return int.from_bytes(self.raw[0:2], "little")

    @property
    def tee_type(self) -> int:
        return int.from_bytes(self.raw[4:8], "little")

    @property
    def slot(self) -> bytes:
        """The 64 bytes that the workload had the hardware sign."""
        return self.raw[_SLOT:_SIGNED_BYTES]

    def register(self, number: int) -> bytes:
        """RTMR0 to RTMR3."""
        begin = _RTMR0 + number * _REGISTER_BYTES
        return self.raw[begin : begin + _REGISTER_BYTES]

    def verify(self, root_pem: bytes) -> None:
        """Follow the signature to the vendor's root. Raises `InvalidSignature` or `AssertionError`."""
        rest = _Bytes(self.raw[_SIGNED_BYTES + 4 :])
        signature, key = rest.take(64), rest.take(64)
        assert rest.number(2) == _QE_REPORT
        rest.number(4)
        qe_report, qe_signature = rest.take(_QE_REPORT_BYTES), rest.take(64)
        authentication = rest.take(rest.number(2))
        assert rest.number(2) == _PCK_CHAIN
        chain = x509.load_pem_x509_certificates(rest.take(rest.number(4)).rstrip(b"\0"))
        _verify(_point(key), signature, self.raw[:_SIGNED_BYTES])
        assert qe_report[320:352] == hashlib.sha256(key + authentication).digest()
        leaf = chain[0].public_key()
        assert isinstance(leaf, ec.EllipticCurvePublicKey)
        _verify(leaf, qe_signature, qe_report)
        for certificate, issuer in itertools.pairwise(chain):
            certificate.verify_directly_issued_by(issuer)
        root = x509.load_pem_x509_certificate(root_pem)
        assert _spki(chain[-1]) == _spki(root)
        chain[-1].verify_directly_issued_by(root)


def runtime_digest(name: str, payload: bytes) -> bytes:
    """What dstack extends RTMR3 with for an event of its own."""
    tag = RUNTIME_EVENT.to_bytes(4, "little")
    return hashlib.sha384(tag + b":" + name.encode() + b":" + payload).digest()


def replayed(events: Iterable[Mapping[str, Any]]) -> bytes:
    """RTMR3 after these events, whose digests are made anew of what they say."""
    register = bytes(_REGISTER_BYTES)
    for event in events:
        if event["imr"] == 3:
            measured = runtime_digest(event["event"], bytes.fromhex(event["event_payload"]))
            register = hashlib.sha384(register + measured).digest()
    return register


class _Bytes:
    """What is left to read."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def take(self, size: int) -> bytes:
        taken, self._data = self._data[:size], self._data[size:]
        assert len(taken) == size
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")


def _point(key: bytes) -> ec.EllipticCurvePublicKey:
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + key)


def _verify(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> None:
    pair = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    key.verify(encode_dss_signature(*pair), data, ec.ECDSA(hashes.SHA256()))


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
