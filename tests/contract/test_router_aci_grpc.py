"""ACI's documents over gRPC: the same as over HTTPS, to the same people."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from teemesh.inference.v1 import aci_pb2 as pb
from teemesh.inference.v1 import aci_pb2_grpc as pb_grpc

from libs.aci.receipt import verify_receipt
from libs.aci.session import verify_session
from libs.rpc.errors import reason_of
from services.registry.sessions import draft_session
from tests.fakes.grpc_clients import grpc_line
from tests.fakes.https_clients import (
    EVIDENCE,
    EVIDENCE_DIGEST,
    KEY,
    OTHER_KEY,
)
from tests.fakes.leases import MODEL
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench, prompt

NONCE = "ab" * 32


class Line:
    def __init__(self, bench: RouterBench, stub: pb_grpc.AciServiceStub) -> None:
        self.bench = bench
        self._stub = stub

    async def ask(self, method: str, request: Any, *keys: str) -> Any:
        metadata = tuple(("authorization", f"Bearer {key}") for key in keys)
        return await getattr(self._stub, method)(request, timeout=PATIENCE_SECONDS, metadata=metadata)

    async def refused(self, method: str, request: Any, *keys: str) -> tuple[grpc.StatusCode, str | None, str | None]:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await self.ask(method, request, *keys)
        return error.value.code(), reason_of(error.value), error.value.details()


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    async with grpc_line(tmp_path) as running:
        yield Line(running.bench, running.aci)


async def test_a_report_is_bound_to_the_nonce_or_to_none(line: Line) -> None:
    unbound = await line.ask("GetAttestation", pb.GetAttestationRequest())
    bound = await line.ask("GetAttestation", pb.GetAttestationRequest(nonce=NONCE))
    assert (json.loads(unbound.report), json.loads(bound.report)) == ({}, {"nonce": NONCE})


@pytest.mark.parametrize("nonce", ["", "00", NONCE.upper(), NONCE + "a"])
async def test_a_nonce_that_is_none_is_refused(line: Line, nonce: str) -> None:
    code, reason, _ = await line.refused("GetAttestation", pb.GetAttestationRequest(nonce=nonce))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")


async def test_a_receipt_and_its_place_are_its_tenants_alone(line: Line) -> None:
    answer = await line.bench.run(prompt())
    for identifier in (answer.started.receipt_id, "chatcmpl-1"):
        response = await line.ask("GetReceipt", pb.GetReceiptRequest(id=identifier), KEY)
        receipt = verify_receipt(response.receipt, line.bench.workload.keyset)
        assert receipt.receipt_id == answer.started.receipt_id
    place = await line.ask("GetCommitment", pb.GetCommitmentRequest(id=answer.started.receipt_id), KEY)
    assert set(json.loads(place.commitment)) == {"entry_id"}


@pytest.mark.parametrize(
    ("method", "request_type"), [("GetReceipt", pb.GetReceiptRequest), ("GetCommitment", pb.GetCommitmentRequest)]
)
async def test_a_key_that_opens_no_receipt_learns_nothing_of_it(line: Line, method: str, request_type: Any) -> None:
    answer = await line.bench.run(prompt())
    there, missing = request_type(id=answer.started.receipt_id), request_type(id="rcpt-none")
    refusals = {await line.refused(method, asked, key) for asked in (there, missing) for key in (OTHER_KEY, "sk-wrong")}
    assert len(refusals) == 1
    assert next(iter(refusals))[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert (await line.refused(method, there))[:2] == (grpc.StatusCode.UNAUTHENTICATED, "API_KEY_INVALID")
    assert (await line.refused(method, there, KEY, OTHER_KEY))[1] == "REQUEST_INVALID"


async def test_sessions_are_listed_and_served_without_a_key(line: Line) -> None:
    node = line.bench.nodes[0]
    session_id = draft_session(node.lease, node.target).session_id
    for request, count in (
        (pb.ListSessionsRequest(), 1),
        (pb.ListSessionsRequest(model=MODEL), 1),
        (pb.ListSessionsRequest(model="other"), 0),
        (pb.ListSessionsRequest(upstream_name="", model=""), 1),
        (pb.ListSessionsRequest(upstream_name="other"), 0),
    ):
        assert len(json.loads((await line.ask("ListSessions", request)).sessions)["sessions"]) == count
    response = await line.ask("GetSession", pb.GetSessionRequest(session_id=session_id))
    assert verify_session(response.session, session_id).evidence == node.lease.evidence.document


@pytest.mark.parametrize("session_id", ["", "00" * 32, "AA" * 32])
async def test_a_session_that_is_not_there_is_not_found(line: Line, session_id: str) -> None:
    refused = await line.refused("GetSession", pb.GetSessionRequest(session_id=session_id))
    assert refused[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


async def test_evidence_is_served_by_its_digest(line: Line) -> None:
    assert (await line.ask("GetEvidence", pb.GetEvidenceRequest(digest=EVIDENCE_DIGEST))).evidence == EVIDENCE
    refused = await line.refused("GetEvidence", pb.GetEvidenceRequest(digest="00" * 32))
    assert refused[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


async def test_what_was_used_is_its_tenants_alone(line: Line) -> None:
    await line.bench.run(prompt())
    async with line.bench.usage.recording():
        pass
    said = json.loads((await line.ask("GetUsage", pb.GetUsageRequest(), KEY)).usage)
    assert [entry["rows"][0]["requests"] for entry in said["entries"]] == [1]
    for request, key in ((pb.GetUsageRequest(), OTHER_KEY), (pb.GetUsageRequest(before=1), KEY)):
        assert json.loads((await line.ask("GetUsage", request, key)).usage) == {"entries": [], "before": None}
    assert (await line.refused("GetUsage", pb.GetUsageRequest()))[1] == "API_KEY_INVALID"
