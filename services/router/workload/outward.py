"""It is responsible for the TLS key that clients meet, and for a certificate that names it before the last one ends.

It is another key than the mesh key. It lives as long as the process, and each of its keysets lists it: a client that
pinned it is cut off by no renewal.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.identity import certificate as certificates
from libs.identity.member import Member
from libs.rpc.errors import remote_errors
from libs.rpc.tls import load_server_context, show

_CALL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class OutwardCertificate:
    """What clients see: a key that the keyset lists, and a certificate for it."""

    key_pem: bytes
    certificate_pem: bytes


class Outward:
    """The key, and the certificate that listeners show for it: new connections get the newest."""

    def __init__(self, dns_names: tuple[str, ...], ip_addresses: tuple[str, ...]) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._dns_names, self._ip_addresses = dns_names, ip_addresses
        self._shown: OutwardCertificate | None = None
        self._context: ssl.SSLContext | None = None

    @property
    def spki_sha256(self) -> str:
        """SHA-256 (hex) of the key, as keysets list it."""
        return hashlib.sha256(certificates.spki_of(self._key.public_key())).hexdigest()

    @property
    def shown(self) -> OutwardCertificate:
        if self._shown is None:
            raise RuntimeError("the outward key is used before it is certified")
        return self._shown

    async def certify(self, member: Member) -> None:
        """Have the mesh CA sign the key for these names, and show that from now on. Raises the KMS's refusal."""
        stub = kms_pb2_grpc.KmsServiceStub(await member.kms.channel(_CALL_SECONDS))
        with remote_errors():
            response = await stub.IssueServerCertificate(
                kms_pb2.IssueServerCertificateRequest(
                    csr=certificates.make_csr(self._key), dns_names=self._dns_names, ip_addresses=self._ip_addresses
                ),
                timeout=_CALL_SECONDS,
            )
        chain = certificates.pem_of(response.certificate) + member.ca_pem
        self._shown = OutwardCertificate(certificates.key_pem(self._key), chain)
        if self._context is not None:
            # Only handshakes look at it: connections that stand go on.
            show(self._context, key_pem=self._shown.key_pem, certificate_pem=chain)

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of the HTTPS listener, which follows renewals."""
        if self._context is None:
            shown = self.shown
            self._context = load_server_context(key_pem=shown.key_pem, certificate_pem=shown.certificate_pem)
        return self._context

    def credentials(self) -> grpc.ServerCredentials:
        """Return the credentials of the gRPC listener, which follow renewals."""
        newest = _NewestCertificate(self)
        return grpc.dynamic_ssl_server_credentials(
            newest.first,
            newest,  # type: ignore[arg-type]  # It may return None, which the stubs do not know.
            require_client_authentication=False,
        )


class _NewestCertificate:
    """What gRPC asks, from a thread of its own, before every handshake: None for what is shown already, because what it
    exchanges may be in use (https://github.com/grpc/grpc/issues/36693).
    """

    def __init__(self, outward: Outward) -> None:
        self._outward = outward
        self._shown = outward.shown
        self.first = _configuration(self._shown)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        if self._outward.shown is self._shown:
            return None
        self._shown = self._outward.shown
        return _configuration(self._shown)


def _configuration(shown: OutwardCertificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(shown.key_pem, shown.certificate_pem)])
