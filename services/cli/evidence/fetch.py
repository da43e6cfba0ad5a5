"""It is responsible for getting evidence from a running mesh: by the service that speaks with it, or by its digest;
and past appraisals by their record's.

A service's evidence is asked of the one key that its certificate proves, and is the document that this certificate
names. It is handed over unjudged: `teemesh evidence appraise` judges it, and `teemesh evidence repeat`
a past appraisal.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc.aio
from teemesh.attestation.v1 import attestation_pb2, attestation_pb2_grpc
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.certificate import CertificateNotAccepted, MeshCertificate, der_of, verify_issued
from libs.identity.lease import EvidenceMismatch
from libs.rpc.channel import fetch_leaf, open_channel
from libs.rpc.errors import to_mesh_error
from libs.tee.archived import Bundle
from services.cli.mesh.roster import SERVICES
from services.cli.mesh.status import Access
from services.cli.terminal.inputs import InputUnreadable

_TIMEOUT_SECONDS = 10.0
_ARCHIVE = "attestation"


class AppraisalMismatch(MeshError):
    """The archive answered with another appraisal than the one that was asked for."""

    code = Code.DATA_LOSS
    reason = "APPRAISAL_MISMATCH"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A document of the digest that was asked for."""

    document: bytes
    source: str

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.document).digest()


async def fetch_by_role(access: Access, role: str) -> Fetched:
    """Return the evidence that a service's present certificate names. Raises the refusals of the way there."""
    certificate = await _certificate(access, role)
    return await _current(access, role, certificate)


async def fetch_by_digest(access: Access, digest: bytes) -> Fetched:
    """Return a document from whoever has it: the service that uses it now, or the archive.

    Raises what the archive refuses with, for example `EVIDENCE_UNKNOWN`.
    """
    for role in SERVICES:
        try:
            certificate = await _certificate(access, role)
            if certificate.evidence_digest == digest:
                return await _current(access, role, certificate)
        except MeshError:
            # A service that is away, or was just renewed, is one that does not have it: the archive decides.
            continue
    async with access.channel(_ARCHIVE) as channel:
        stub = attestation_pb2_grpc.AttestationServiceStub(channel)
        with _refusals():
            response = await stub.GetEvidence(
                attestation_pb2.GetEvidenceRequest(digest=digest), timeout=_TIMEOUT_SECONDS
            )
    return Fetched(_verified(response.document, digest), "the archive")


async def fetch_appraisal(access: Access, record_digest: bytes) -> bytes:
    """Return the bundle of a past appraisal: the record of that digest, with the evidence and the policy it names.

    Raises what the archive refuses with, for example `APPRAISAL_UNKNOWN`, and `ArchiveMalformed`.
    """
    async with access.channel(_ARCHIVE) as channel:
        stub = attestation_pb2_grpc.AttestationServiceStub(channel)
        with _refusals():
            response = await stub.GetAppraisal(
                attestation_pb2.GetAppraisalRequest(record_digest=record_digest), timeout=_TIMEOUT_SECONDS
            )
    bundle: bytes = response.bundle
    if Bundle.decode(bundle).record.digest != record_digest:
        raise AppraisalMismatch("the archive answered with another appraisal than the one that was asked for")
    return bundle


async def _certificate(access: Access, role: str) -> MeshCertificate:
    """Return the certificate of whoever serves a role now, its key proven and its issuer the mesh CA."""
    target = access.addresses.get(role)
    if target is None:
        raise InputUnreadable(f"no address of {role} is kept: restart the mesh with teemesh up")
    leaf = await fetch_leaf(
        target,
        server_name=f"{role}.{access.trust_domain}",
        timeout=_TIMEOUT_SECONDS,
        ca_pem=access.ca_pem,
        key_pem=access.key_pem,
        certificate_pem=access.certificate_pem,
    )
    certificate = verify_issued(leaf, der_of(access.ca_pem), time.time())
    if certificate.role != role or certificate.evidence_digest is None:
        raise CertificateNotAccepted(f"{target} is {certificate.spiffe_id}, not a {role}")
    return certificate


async def _current(access: Access, role: str, certificate: MeshCertificate) -> Fetched:
    async with open_channel(
        access.addresses[role],
        root_pem=certificate.pem,
        server_name=certificate.server_name,
        key_pem=access.key_pem,
        certificate_pem=access.certificate_pem,
    ) as channel:
        stub = evidence_pb2_grpc.EvidenceServiceStub(channel)
        with _refusals():
            response = await stub.GetEvidence(evidence_pb2.GetEvidenceRequest(), timeout=_TIMEOUT_SECONDS)
    return Fetched(_verified(response.document, certificate.evidence_digest), certificate.spiffe_id)


def _verified(document: bytes, digest: bytes | None) -> bytes:
    if hashlib.sha256(document).digest() != digest:
        raise EvidenceMismatch("the mesh answered with another document than the one that was asked for")
    return document


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise to_mesh_error(error) from error
