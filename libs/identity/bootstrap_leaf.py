"""It is responsible for the leaf of a bootstrap listener: self-signed, fresh in every process, trusted by nobody.

The KMS proves the key by evidence; what the attestation service says over its own needs no trust.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from libs.identity.certificate import key_pem, spki_of

_YEARS = 10


@dataclass(frozen=True, slots=True)
class BootstrapLeaf:
    """Server credentials, and the key that evidence may speak for."""

    credentials: grpc.ServerCredentials
    spki: bytes


def make_bootstrap_leaf(role: str, trust_domain: str) -> BootstrapLeaf:
    """Make the leaf of `<role>-bootstrap.<trust domain>`."""
    key = ec.generate_private_key(ec.SECP256R1())
    server_name = f"{role}-bootstrap.{trust_domain}"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, server_name)])
    start = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=365 * _YEARS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(server_name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pair = (key_pem(key), certificate.public_bytes(Encoding.PEM))
    return BootstrapLeaf(grpc.ssl_server_credentials([pair]), spki_of(key.public_key()))
