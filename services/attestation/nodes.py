"""It is responsible for getting a node's evidence from the node itself, without believing either it or the registry.

A peer that this service would refuse must be looked at too, so no lease is asked for: the leaf is taken by a handshake,
must be from the mesh CA and of the very key that the registry lists, and the document must be the one that it names.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass

from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.certificate import pem_of, verify_issued
from libs.identity.lease import EvidenceMismatch
from libs.identity.member import Member
from libs.rpc.channel import fetch_leaf, open_channel
from libs.rpc.errors import remote_errors

_ENDPOINT = re.compile(r"([^:/@\s]{1,253}|\[[0-9a-f:.]{2,45}\]):([1-9][0-9]{0,4})")
_MAX_PORT = 65535
_CALL_SECONDS = 5.0
_ROLE = "node"


class EndpointMalformed(MeshError):
    """The registry lists a node at what is no host and port."""

    code = Code.INVALID_ARGUMENT
    reason = "ENDPOINT_MALFORMED"


class NodeReplaced(MeshError):
    """Another node answers at that address than the one that the lease is of."""

    code = Code.UNAUTHENTICATED
    reason = "NODE_REPLACED"


@dataclass(frozen=True, slots=True)
class Listed:
    """What a live lease of the registry says of a node, as far as it matters here."""

    spiffe_id: str
    endpoint: str
    evidence_digest: bytes
    spki_sha256: bytes


@dataclass(frozen=True, slots=True)
class Shown:
    """What the node shows: the key of its certificate, DER, and the document that the certificate names."""

    spki: bytes
    document: bytes


async def fetch_evidence(member: Member, listed: Listed) -> Shown:
    """Raises `EndpointMalformed`, `NodeReplaced`, `EvidenceMismatch`, and what keeps the node away."""
    parts = _ENDPOINT.fullmatch(listed.endpoint)
    if parts is None or int(parts[2]) > _MAX_PORT:
        raise EndpointMalformed("a node's endpoint must be host:port")
    credential = member.identity.current
    server_name = f"{_ROLE}.{member.trust_domain}"
    leaf = await fetch_leaf(
        listed.endpoint,
        server_name=server_name,
        timeout=_CALL_SECONDS,
        ca_pem=member.ca_pem,
        key_pem=credential.key_pem,
        certificate_pem=credential.certificate.pem,
    )
    certificate = verify_issued(leaf, member.identity.ca_certificate, time.time())
    if (certificate.spiffe_id, certificate.spki_sha256) != (listed.spiffe_id, listed.spki_sha256):
        raise NodeReplaced(f"{listed.endpoint} is {certificate.spiffe_id} with another key than the lease's")
    if certificate.evidence_digest != listed.evidence_digest:
        raise EvidenceMismatch("the lease names other evidence than the node's certificate")
    async with open_channel(
        listed.endpoint,
        root_pem=pem_of(leaf),
        server_name=server_name,
        key_pem=credential.key_pem,
        certificate_pem=credential.certificate.pem,
    ) as channel:
        stub = evidence_pb2_grpc.EvidenceServiceStub(channel)
        with remote_errors():
            response = await stub.GetEvidence(
                evidence_pb2.GetEvidenceRequest(digest=listed.evidence_digest), timeout=_CALL_SECONDS
            )
    if hashlib.sha256(response.document).digest() != listed.evidence_digest:
        raise EvidenceMismatch("the document is not the one that the certificate names")
    return Shown(certificate.spki, response.document)
