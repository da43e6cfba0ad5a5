"""Responsible for where a TLS connection ends: the server's key is judged inside the handshake.

A connection whose key is refused never comes to be, so nothing of a request is written to it.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.errors import Code, MeshError

Admit = Callable[[str], bool]
"""Says whether a connection to the key of this SHA-256 (hex, over its SubjectPublicKeyInfo) may be used."""


class CaUnreadable(MeshError):
    """The CA that the user named cannot be read."""

    code = Code.INVALID_ARGUMENT
    reason = "CA_UNREADABLE"


class ServerKeyRefused(ssl.SSLCertVerificationError):
    """The server proved possession of a key that is not to be talked to."""


def client_context(ca_pem: bytes | None, admit: Admit) -> ssl.SSLContext:
    """Return a TLS 1.3 context that asks `admit` about every server, after chain and name are verified.

    With `ca_pem` that CA alone is believed, else the system's. Raises `CaUnreadable`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Requires a certificate and checks its name.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if ca_pem is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(cadata=ca_pem.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise CaUnreadable("the CA for the router's name is not a PEM certificate") from error

    class Judged(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()  # Raises while bytes are missing: below, the server's proof is complete.
            certificate = self.getpeercert(binary_form=True)
            try:
                admitted = certificate is not None and admit(spki_sha256(certificate))
            except (ValueError, UnsupportedAlgorithm) as error:
                raise ServerKeyRefused("the server's key is of an unknown kind") from error
            if not admitted:
                raise ServerKeyRefused("the server's key is not an attested one")

    context.sslobject_class = Judged
    return context


def spki_sha256(certificate_der: bytes) -> str:
    """Return the SHA-256 (hex) of a certificate's SubjectPublicKeyInfo."""
    public_key = x509.load_der_x509_certificate(certificate_der).public_key()
    return hashlib.sha256(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
