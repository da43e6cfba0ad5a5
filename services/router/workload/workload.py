"""It is responsible for the router's own ACI identity: keys born here, and the keyset that lists them.

The outward TLS key is another than the mesh key: it lives as long as the keyset, and its certificate may be anyone's.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.aci import keyset as keysets
from libs.aci.e2ee.suites import SUITES, PrivateKey, Suite
from libs.aci.keyset import Keyset, PublicKey, TlsKey
from libs.identity import certificate as certificates
from libs.identity.member import Member
from libs.rpc.errors import remote_errors

RECEIPT_KEY_ID = "router-receipt"
_DAY_SECONDS = 24 * 3600
_CALL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class OutwardCertificate:
    """What clients see: a key that the keyset lists, and a certificate for it."""

    key_pem: bytes
    certificate_pem: bytes


@dataclass(frozen=True, slots=True)
class E2eeKey:
    """A key to which prompts may be encrypted."""

    key_id: str
    suite: Suite
    private: PrivateKey

    @classmethod
    def generate(cls, suite: Suite) -> E2eeKey:
        return cls(f"router-e2ee-{suite.curve}", suite, suite.key())

    def entry(self) -> PublicKey:
        """Return what the keyset has of it."""
        return PublicKey(self.key_id, self.suite.algo, self.private.public.hex())

    def listed_as(self, text: str) -> bool:
        """Say whether a client means this key, in any form in which it may be written (e2ee-v2 section 4)."""
        public = self.private.public
        return text.removeprefix("0x").lower() in (public.hex(), public.removeprefix(self.suite.prefix).hex())


class Workload:
    """The keys and the keyset of this process."""

    def __init__(self, subject: str, keyset_days: int) -> None:
        self.receipt_key = Ed25519PrivateKey.generate()
        self.e2ee_keys = tuple(E2eeKey.generate(suite) for suite in SUITES.values())
        self._tls_key = ec.generate_private_key(ec.SECP256R1())
        spki = certificates.spki_of(self._tls_key.public_key())
        self.keyset: Keyset = keysets.build(
            subject=subject,
            not_after=int(time.time()) + keyset_days * _DAY_SECONDS,
            receipt_keys={RECEIPT_KEY_ID: self.receipt_key.public_key().public_bytes_raw()},
            tls_keys=(TlsKey(hashlib.sha256(spki).hexdigest(), None),),
            e2ee_keys=tuple(key.entry() for key in self.e2ee_keys),
        )
        self.keyset_digest = self.keyset.digest
        """In every response and receipt, so it is computed once."""

    def headers(self) -> dict[str, str]:
        """Return what every response carries now."""
        return {"X-ACI-Version": "aci/1", "X-ACI-Keyset-Digest": self.keyset_digest}

    async def certify(
        self, member: Member, dns_names: tuple[str, ...], ip_addresses: tuple[str, ...]
    ) -> OutwardCertificate:
        """Have the mesh CA sign the outward key for these names. Raises the KMS's refusal."""
        peer = member.kms
        stub = kms_pb2_grpc.KmsServiceStub(await peer.channel(_CALL_SECONDS))
        with remote_errors():
            response = await stub.IssueServerCertificate(
                kms_pb2.IssueServerCertificateRequest(
                    csr=certificates.make_csr(self._tls_key), dns_names=dns_names, ip_addresses=ip_addresses
                ),
                timeout=_CALL_SECONDS,
            )
        chain = certificates.pem_of(response.certificate) + member.ca_pem
        return OutwardCertificate(certificates.key_pem(self._tls_key), chain)
