"""It is responsible for one TLS key that clients meet: born here, certified for its names, shown under the newest
certificate.

It is another key than the mesh key, and lives as long as the process: a client that pinned it is cut off by no renewal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.aci.keyset import TlsKey
from libs.identity import certificate as certificates
from libs.identity.member import Member
from libs.rpc.errors import remote_errors
from libs.rpc.tls import ServerContext, load_server_context, show

_CALL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class OutwardCertificate:
    """What clients see: a key that the keyset lists, and a certificate for it."""

    key_pem: bytes
    certificate_pem: bytes


class OutwardKey:
    """A key with the names that its certificate has. With a `domain`, keysets list it for that host name alone."""

    def __init__(
        self, dns_names: Sequence[str], ip_addresses: Sequence[str] = (), *, domain: str | None = None
    ) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._dns_names, self._ip_addresses = tuple(dns_names), tuple(ip_addresses)
        self._domain = domain
        self._context: ServerContext | None = None

    @property
    def listed(self) -> TlsKey:
        """What keysets have of it."""
        spki = certificates.spki_of(self._key.public_key())
        return TlsKey(hashlib.sha256(spki).hexdigest(), self._domain)

    async def certify(self, member: Member) -> OutwardCertificate:
        """Have the mesh CA sign the key for its names, and show that from now on. Raises the KMS's refusal."""
        stub = kms_pb2_grpc.KmsServiceStub(await member.kms.channel(_CALL_SECONDS))
        with remote_errors():
            response = await stub.IssueServerCertificate(
                kms_pb2.IssueServerCertificateRequest(
                    csr=certificates.make_csr(self._key), dns_names=self._dns_names, ip_addresses=self._ip_addresses
                ),
                timeout=_CALL_SECONDS,
            )
        chain = certificates.pem_of(response.certificate) + member.ca_pem
        shown = OutwardCertificate(certificates.key_pem(self._key), chain)
        if self._context is None:
            self._context = load_server_context(key_pem=shown.key_pem, certificate_pem=chain)
        else:
            # Only handshakes look at it: connections that stand go on.
            show(self._context, key_pem=shown.key_pem, certificate_pem=chain)
        return shown

    @property
    def context(self) -> ServerContext:
        """The TLS context of listeners that show this key, which follows renewals."""
        if self._context is None:
            raise RuntimeError("the outward key is used before it is certified")
        return self._context
