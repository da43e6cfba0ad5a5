"""It is responsible for the router's own ACI identity: keys born here, the keyset that lists them, the report that
binds it into a quote.

The outward TLS key is another than the mesh key: it lives as long as the keyset, and its certificate may be anyone's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.aci import keyset as keysets
from libs.aci import report
from libs.aci.keyset import Keyset, TlsKey
from libs.identity import certificate as certificates
from libs.identity.collateral import CollateralSource
from libs.identity.member import Member
from libs.rpc.errors import remote_errors
from libs.tee import tdx
from libs.tee.eventlog import RUNTIME_REGISTER, with_digests

RECEIPT_KEY_ID = "router-receipt"
_DAY_SECONDS = 24 * 3600
_CALL_SECONDS = 10.0
_CACHE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class OutwardCertificate:
    """What clients see: a key that the keyset lists, and a certificate for it."""

    key_pem: bytes
    certificate_pem: bytes


class Workload:
    """The keys and the keyset of this process."""

    def __init__(self, subject: str, keyset_days: int) -> None:
        self.receipt_key = Ed25519PrivateKey.generate()
        self._tls_key = ec.generate_private_key(ec.SECP256R1())
        spki = certificates.spki_of(self._tls_key.public_key())
        self.keyset: Keyset = keysets.build(
            subject=subject,
            not_after=int(time.time()) + keyset_days * _DAY_SECONDS,
            receipt_keys={RECEIPT_KEY_ID: self.receipt_key.public_key().public_bytes_raw()},
            tls_keys=(TlsKey(hashlib.sha256(spki).hexdigest(), None),),
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


class Reports:
    """Attestation reports. Fresh ones are quoted one at a time; the unchallenged one is kept for an hour."""

    def __init__(
        self,
        member: Member,
        workload: Workload,
        collateral: CollateralSource,
        provenance: report.SourceProvenance,
    ) -> None:
        self._member = member
        self._workload = workload
        self._collateral = collateral
        self._provenance = provenance
        self._quoting = asyncio.Lock()
        self._unchallenged: tuple[float, bytes] | None = None

    async def report(self, nonce: str | None) -> bytes:
        """Return the report for a nonce, or the unchallenged one. Raises `NonceMalformed`."""
        if nonce is not None:
            report.check_nonce(nonce)
            async with self._quoting:
                return await self._make(nonce)
        async with self._quoting:
            now = asyncio.get_running_loop().time()
            if self._unchallenged is None or now - self._unchallenged[0] > _CACHE_SECONDS:
                self._unchallenged = (now, await self._make(None))
            return self._unchallenged[1]

    async def _make(self, nonce: str | None) -> bytes:
        keyset = self._workload.keyset
        slot = report.slot(report.report_data(keyset.digest, nonce))
        compose = await self._member.guest.measured_compose()
        quote = await self._member.guest.quote(slot)
        collateral = await self._collateral.collateral(quote.quote)
        signed = tdx.read_report(quote.quote).rtmrs[RUNTIME_REGISTER]
        events = [event.to_json() for event in with_digests(quote.event_log, signed)]
        evidence = {
            "quote": quote.quote.hex(),
            "quote_report_data": slot.hex(),
            "event_log": json.dumps(events, separators=(",", ":")),
            "app_compose": compose,
            "vm_config": quote.vm_config,
            "collateral": collateral.to_json(),
            "key_custody": {
                "provider": "in-tee",
                "keys": [{"role": "receipt", "public_key": key.public_key} for key in keyset.receipt_signing_keys]
                + [{"role": "tls", "spki_sha256": key.spki_sha256} for key in keyset.tls_public_keys],
            },
        }
        return report.assemble(keyset, nonce=nonce, tee_type="tdx", provenance=self._provenance, evidence=evidence)
