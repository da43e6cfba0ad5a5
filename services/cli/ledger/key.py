"""It is responsible for the ledger's checkpoint key: taken from its evidence, not from its word."""

from __future__ import annotations

import time

import grpc.aio
from cryptography import x509
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.certificate import CertificateNotAccepted, spki_of, verify_issued
from libs.identity.lease import appraise_peer
from libs.policy.document import Policy
from libs.rpc.channel import fetch_leaf, open_channel
from libs.rpc.errors import to_mesh_error
from libs.transparency.note import NoteMalformed, VerifierKey
from services.cli.mesh.operator_certificate import OperatorCredential
from services.cli.mesh.roster import TRUST_DOMAIN

_TIMEOUT_SECONDS = 10.0


class LedgerKeyMissing(MeshError):
    """The ledger's evidence names no usable checkpoint key."""

    code = Code.UNAUTHENTICATED
    reason = "LEDGER_KEY_MISSING"


async def fetch_ledger_vkey(target: str, credential: OperatorCredential, policy: Policy) -> str:
    """Return the verifier key of the ledger's checkpoints, C2SP text. The ledger is appraised under the policy.

    Raises `LedgerKeyMissing` and every refusal of the appraisal.
    """
    server_name = f"ledger.{TRUST_DOMAIN}"
    leaf = await fetch_leaf(
        target,
        server_name=server_name,
        timeout=_TIMEOUT_SECONDS,
        ca_pem=credential.ca_pem,
        key_pem=credential.key_pem,
        certificate_pem=credential.certificate.pem,
    )
    certificate = verify_issued(leaf, credential.ca_certificate, time.time())
    if certificate.role != "ledger":
        raise CertificateNotAccepted(f"{target} is {certificate.spiffe_id}, not a ledger")
    async with open_channel(
        target,
        root_pem=certificate.pem,
        server_name=server_name,
        key_pem=credential.key_pem,
        certificate_pem=credential.certificate.pem,
    ) as channel:
        stub = evidence_pb2_grpc.EvidenceServiceStub(channel)
        try:
            response = await stub.GetEvidence(evidence_pb2.GetEvidenceRequest(), timeout=_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise to_mesh_error(error) from error
    ca_spki = spki_of(x509.load_der_x509_certificate(credential.ca_certificate).public_key())
    claims = appraise_peer(certificate, response.document, policy, ca_spki, time.time()).appraisal.workload_claims
    origin, key = claims.get("origin"), claims.get("checkpoint_key")
    if not isinstance(origin, str) or not isinstance(key, str):
        raise LedgerKeyMissing("the ledger's evidence names no checkpoint key")
    try:
        return VerifierKey(origin, bytes.fromhex(key)).text()
    except (ValueError, NoteMalformed) as error:
        raise LedgerKeyMissing("the ledger's evidence names a malformed checkpoint key") from error
