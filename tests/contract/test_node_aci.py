"""A node asked as an ACI direct service, by members that it has appraised and by people, over the mesh's own TLS."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.inference.v1 import aci_pb2 as pb
from teemesh.inference.v1 import aci_pb2_grpc as pb_grpc

from libs.aci.receipt import parse, verify_receipt
from libs.aci.receipt_events import PolicyInForce
from libs.aci.report import DIRECT, ReportDataMismatch
from libs.client.attestation import Established, establish
from libs.identity.certificate import Subject, key_pem, pem_of
from libs.identity.member import Member
from libs.identity.reports import Reports
from libs.policy.document import read
from libs.rpc.channel import open_channel
from libs.rpc.errors import RemoteRefused, remote_errors
from services.devtee.machine import VirtualTd
from services.node.aci_servicer import AciServicer, aci_binding
from services.node.kept_receipts import KeptReceipts
from services.node.receipts import KEY_ID, Exchange, ReceiptSigner
from services.node.reports import NodeReports, ReportSettings
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore, measurement_of

NONCE, OTHER_NONCE = "ab" * 32, "cd" * 32
IMAGE = "sha256:" + "0a" * 32
SECONDS = 20.0
EXCHANGE = Exchange("/v1/chat/completions", "m", "sha256:" + "01" * 32, None, "sha256:" + "02" * 32)
POLICY = PolicyInForce(1, "sha256:" + "00" * 32)


@dataclass(slots=True)
class AskedNode:
    """A running node of this mesh, and those who may ask it."""

    mesh: JoinedMesh
    kms: KmsCore
    member: Member
    signer: ReceiptSigner
    target: str
    _open: AsyncExitStack = field(repr=False)

    async def by_member(self, role: str) -> pb_grpc.AciServiceStub:
        claims: dict[str, Any] = {"models": []} if role == "node" else {}
        caller = await self._open.enter_async_context(self.mesh.member(role, self.kms, instance="asks", claims=claims))
        return pb_grpc.AciServiceStub(await caller.peer("node", self.target).channel(SECONDS))

    async def by_person(self, role: str) -> pb_grpc.AciServiceStub:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = Subject(TRUST_DOMAIN, role, "eve", None)
        der = self.kms.ca.issue_svid(subject, key.public_key(), time.time())
        channel = await self._open.enter_async_context(
            open_channel(
                self.target,
                root_pem=self.member.ca_pem,
                server_name=f"node.{TRUST_DOMAIN}",
                key_pem=key_pem(key),
                certificate_pem=pem_of(der),
            )
        )
        return pb_grpc.AciServiceStub(channel)

    def established(self, report: bytes, nonce: str) -> Established:
        """What a relying party makes of a report, under this mesh's policy."""
        return establish(report, nonce, read(dict(self.mesh.draft)).rules("node"), int(time.time()))


@asynccontextmanager
async def running_node(
    mesh: JoinedMesh, kms: KmsCore, td: VirtualTd, settings: ReportSettings
) -> AsyncIterator[AskedNode]:
    kept = KeptReceipts()
    signer = ReceiptSigner(kept.keep)
    claims: dict[str, Any] = {"receipt_key": signer.public_key.hex(), "models": []}
    async with mesh.member("node", kms, claims=claims, td=td) as member, AsyncExitStack() as callers:
        reports = Reports(member.guest, signer, mesh.collateral, settings.quotes_per_second)
        documents = AciServicer(NodeReports(reports, settings, td.app_compose), kept)
        async with member.serve([aci_binding(documents)]) as running:
            yield AskedNode(mesh, kms, member, signer, f"127.0.0.1:{running.port}", callers)
            await callers.aclose()


@pytest.fixture
def td(mesh: JoinedMesh) -> VirtualTd:
    """A node that runs one image, which policy allows."""
    td = mesh.boot("node", f"services:\n  node:\n    image: node@{IMAGE}\n")
    grant = mesh.draft["roles"]["node"]
    allowed = {**grant, "measurements": [*grant["measurements"], measurement_of(td).to_json()]}
    mesh.draft = {**mesh.draft, "roles": {**mesh.draft["roles"], "node": allowed}}
    mesh.seed = mesh.sign(mesh.draft)
    return td


@pytest.fixture
async def node(mesh: JoinedMesh, td: VirtualTd, kms: KmsCore) -> AsyncIterator[AskedNode]:
    async with running_node(mesh, kms, td, ReportSettings(quotes_per_second=100.0)) as running:
        yield running


async def reported(stub: pb_grpc.AciServiceStub, nonce: str | None) -> bytes:
    asked = pb.GetAttestationRequest() if nonce is None else pb.GetAttestationRequest(nonce=nonce)
    with remote_errors():
        return (await stub.GetAttestation(asked, timeout=SECONDS)).report


async def receipt_of(stub: pb_grpc.AciServiceStub, receipt_id: str) -> bytes:
    with remote_errors():
        return (await stub.GetReceipt(pb.GetReceiptRequest(id=receipt_id), timeout=SECONDS)).receipt


async def test_a_fresh_report_establishes_the_key_that_the_nodes_evidence_claims(node: AskedNode) -> None:
    for stub in (await node.by_member("router"), await node.by_person("auditor"), await node.by_person("operator")):
        found = node.established(await reported(stub, NONCE), NONCE)
        assert found.serving == DIRECT
        claimed = node.member.identity.current.evidence.claims["receipt_key"]
        assert found.keyset.receipt_key(KEY_ID).hex() == claimed


async def test_a_report_is_for_the_nonce_that_was_sent(node: AskedNode) -> None:
    stub = await node.by_person("auditor")
    for stale in (await reported(stub, OTHER_NONCE), await reported(stub, None)):
        with pytest.raises(ReportDataMismatch):
            node.established(stale, NONCE)


async def test_a_report_names_the_image_that_was_measured(node: AskedNode) -> None:
    said = json.loads(await reported(await node.by_person("auditor"), NONCE))
    assert said["attestation"]["source_provenance"]["image_digest"] == IMAGE
    assert said["service_capabilities"] == {"serving": "direct", "supported_e2ee_versions": []}


async def test_a_node_whose_compose_leads_to_no_one_image_says_nothing_of_itself(
    mesh: JoinedMesh, kms: KmsCore
) -> None:
    async with running_node(mesh, kms, mesh.tds["node"], ReportSettings()) as node:
        stub = await node.by_person("auditor")
        for nonce in (NONCE, None):
            with pytest.raises(RemoteRefused) as refused:
                await reported(stub, nonce)
            assert refused.value.reason == "PROVENANCE_UNKNOWN"


async def test_a_receipt_is_had_by_its_id_and_verifies_under_the_established_keyset(node: AskedNode) -> None:
    router, auditor = await node.by_member("router"), await node.by_person("auditor")
    keyset = node.established(await reported(auditor, NONCE), NONCE).keyset
    signed = node.signer.sign(EXCHANGE, POLICY)
    receipt_id = parse(signed).receipt_id
    for stub in (router, auditor):
        document = await receipt_of(stub, receipt_id)
        assert document == signed
        assert verify_receipt(document, keyset).returned.body_hash == EXCHANGE.returned
        with pytest.raises(RemoteRefused) as refused:
            await receipt_of(stub, "rcpt-" + "0" * 24)
        assert refused.value.reason == "NOT_FOUND"


@pytest.mark.parametrize("role", ["registry", "node", "ledger"])
async def test_nobody_else_in_the_mesh_is_answered(node: AskedNode, role: str) -> None:
    stub = await node.by_member(role)
    receipt_id = parse(node.signer.sign(EXCHANGE, POLICY)).receipt_id
    for asking in (reported(stub, NONCE), reported(stub, None), receipt_of(stub, receipt_id)):
        with pytest.raises(RemoteRefused) as refused:
            await asking
        assert refused.value.reason == "ROLE_NOT_ALLOWED"


async def test_an_operator_is_handed_no_receipt(node: AskedNode) -> None:
    receipt_id = parse(node.signer.sign(EXCHANGE, POLICY)).receipt_id
    with pytest.raises(RemoteRefused) as refused:
        await receipt_of(await node.by_person("operator"), receipt_id)
    assert refused.value.reason == "ROLE_NOT_ALLOWED"


async def test_what_a_direct_service_does_not_have_is_refused_with_a_reason(node: AskedNode) -> None:
    stub = await node.by_person("auditor")
    for asked in (
        stub.GetCommitment(pb.GetCommitmentRequest(id="rcpt-1"), timeout=SECONDS),
        stub.GetUsage(pb.GetUsageRequest(), timeout=SECONDS),
        stub.ListSessions(pb.ListSessionsRequest(), timeout=SECONDS),
        stub.GetSession(pb.GetSessionRequest(session_id="00" * 32), timeout=SECONDS),
        stub.GetEvidence(pb.GetEvidenceRequest(digest="00" * 32), timeout=SECONDS),
    ):
        with pytest.raises(RemoteRefused) as refused, remote_errors():
            await asked
        assert refused.value.reason == "NOT_SERVED_BY_NODES"


@pytest.mark.parametrize("nonce", ["", "ab", "AB" * 32, "ab" * 33])
async def test_a_nonce_that_is_none_is_refused(node: AskedNode, nonce: str) -> None:
    with pytest.raises(RemoteRefused) as refused:
        await reported(await node.by_person("auditor"), nonce)
    assert refused.value.reason == "NONCE_MALFORMED"


async def test_a_flood_of_nonces_is_refused_and_takes_no_report_from_who_brings_none(
    mesh: JoinedMesh, td: VirtualTd, kms: KmsCore
) -> None:
    async with running_node(mesh, kms, td, ReportSettings(quotes_per_second=1e-6)) as node:
        stub = await node.by_member("router")
        kept = await reported(stub, None)
        assert await reported(stub, NONCE)
        for nonce in (NONCE, OTHER_NONCE):
            with pytest.raises(RemoteRefused) as refused:
                await reported(stub, nonce)
            assert refused.value.reason == "REPORTS_BUSY"
        assert await reported(stub, None) == kept
