"""`teemesh evidence fetch` from members that really joined, over real mutual TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from teemesh.attestation.v1 import attestation_pb2

from libs.errors import Code, MeshError
from libs.identity.certificate import CertificateNotAccepted
from libs.identity.exchange import EvidenceUnknown
from libs.identity.member import Member
from libs.rpc.channel import PeerUnreachable
from libs.rpc.policies import MethodRule, ServiceBinding
from services.cli.evidence.fetch import fetch_by_digest, fetch_by_role
from services.cli.terminal.inputs import InputUnreadable
from tests.fakes.joined_fixtures import kms, machine, mesh
from tests.fakes.joined_mesh import JoinedMesh, KmsCore
from tests.unit.services.cli.attesting import access

__all__ = ["kms", "machine", "mesh"]

_ARCHIVE = "teemesh.attestation.v1.AttestationService"


def shelf(document: bytes | None, bundle: bytes = b"") -> ServiceBinding:
    """An archive that answers every digest with what it has: one document or nothing, and one bundle."""

    async def get_evidence(
        request: attestation_pb2.GetEvidenceRequest, context: Any
    ) -> attestation_pb2.GetEvidenceResponse:
        if document is None:
            raise EvidenceUnknown("no document of that digest here")
        return attestation_pb2.GetEvidenceResponse(document=document)

    async def get_appraisal(
        request: attestation_pb2.GetAppraisalRequest, context: Any
    ) -> attestation_pb2.GetAppraisalResponse:
        return attestation_pb2.GetAppraisalResponse(bundle=bundle)

    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "GetEvidence": grpc.unary_unary_rpc_method_handler(
            get_evidence,
            request_deserializer=attestation_pb2.GetEvidenceRequest.FromString,
            response_serializer=attestation_pb2.GetEvidenceResponse.SerializeToString,
        ),
        "GetAppraisal": grpc.unary_unary_rpc_method_handler(
            get_appraisal,
            request_deserializer=attestation_pb2.GetAppraisalRequest.FromString,
            response_serializer=attestation_pb2.GetAppraisalResponse.SerializeToString,
        ),
    }
    handler = grpc.method_handlers_generic_handler(_ARCHIVE, methods)
    return ServiceBinding(
        _ARCHIVE,
        lambda server: server.add_generic_rpc_handlers((handler,)),
        {f"/{_ARCHIVE}/{method}": MethodRule(roles=frozenset({"operator"})) for method in methods},
    )


@asynccontextmanager
async def served(
    mesh: JoinedMesh, kms: KmsCore, role: str, *bindings: ServiceBinding
) -> AsyncIterator[tuple[Member, str]]:
    async with mesh.member(role, kms) as member, member.serve(bindings) as serving:
        yield member, f"127.0.0.1:{serving.port}"


async def test_a_service_gives_the_evidence_that_its_certificate_names(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with served(mesh, kms, "ledger") as (ledger, target):
        fetched = await fetch_by_role(access(kms, ledger=target), "ledger")
    evidence = ledger.identity.current.evidence
    assert (fetched.document, fetched.digest, fetched.source) == (evidence.document, evidence.digest, ledger.spiffe_id)


async def test_a_digest_is_found_at_the_service_that_uses_it_though_others_are_away(
    mesh: JoinedMesh, kms: KmsCore
) -> None:
    async with served(mesh, kms, "ledger") as (ledger, target):
        digest = ledger.identity.current.evidence.digest
        fetched = await fetch_by_digest(
            access(kms, ledger=target, router="127.0.0.1:9", attestation="127.0.0.1:9"), digest
        )
    assert (fetched.digest, fetched.source) == (digest, ledger.spiffe_id)


async def test_a_digest_of_earlier_days_is_found_in_the_archive(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with served(mesh, kms, "ledger") as (ledger, _):
        earlier = ledger.identity.current.evidence
    async with served(mesh, kms, "attestation", shelf(earlier.document)) as (_, target):
        fetched = await fetch_by_digest(access(kms, attestation=target), earlier.digest)
    assert (fetched.document, fetched.source) == (earlier.document, "the archive")


@pytest.mark.parametrize(
    ("held", "reason"), [(None, "EVIDENCE_UNKNOWN"), (b"{}", "EVIDENCE_MISMATCH")], ids=["nothing", "another"]
)
async def test_nothing_but_the_document_of_that_digest_is_taken(
    mesh: JoinedMesh, kms: KmsCore, held: bytes | None, reason: str
) -> None:
    async with served(mesh, kms, "attestation", shelf(held)) as (_, target):
        with pytest.raises(MeshError) as refusal:
            await fetch_by_digest(access(kms, attestation=target), bytes(32))
    assert refusal.value.reason == reason


async def test_a_service_in_anothers_place_is_not_asked(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with served(mesh, kms, "ledger") as (_, target):
        with pytest.raises((PeerUnreachable, CertificateNotAccepted)):
            await fetch_by_role(access(kms, router=target), "router")


async def test_a_service_of_another_mesh_is_not_asked(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with served(mesh, kms, "ledger") as (_, target):
        with pytest.raises(PeerUnreachable):
            await fetch_by_role(access(mesh.kms("other", root=b"o" * 32), ledger=target), "ledger")


async def test_a_service_that_is_away_or_unknown_is_said(kms: KmsCore) -> None:
    with pytest.raises(PeerUnreachable) as away:
        await fetch_by_role(access(kms, router="127.0.0.1:9"), "router")
    assert away.value.code is Code.UNAVAILABLE
    with pytest.raises(InputUnreadable, match="teemesh up"):
        await fetch_by_role(access(kms), "router")
    with pytest.raises(InputUnreadable):
        await fetch_by_digest(access(kms), bytes(32))
