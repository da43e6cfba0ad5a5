"""The router's gRPC face for clients: server TLS, an API key in the metadata, the same exchanges as over HTTPS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from teemesh.inference.v1 import inference_pb2 as pb
from teemesh.registry.v1 import registry_pb2

from libs import jcs
from libs.aci.encoding import digest
from libs.aci.endpoints import DEFINED, Endpoint, paths
from libs.aci.receipt import verify_receipt
from libs.aci.receipt_events import Aborted, UpstreamFailed
from libs.policy.tenant_record import Limits
from libs.rpc.errors import STATUS_DETAILS_KEY, reason_of
from libs.transparency.leaf import Kind
from services.router.admission.limits import RECEIPTED_AT_ONCE
from services.router.face.servicer import ENVELOPE_BYTES
from services.router.routing.settings import RoutingSettings
from tests.fakes.grpc_clients import AUTHORIZED, Line, grpc_line
from tests.fakes.https_clients import KEY, MAX_BODY_BYTES, OTHER_KEY
from tests.fakes.leases import MODEL, WEIGHTS
from tests.fakes.ledgers import ACKNOWLEDGEMENT, TENANT
from tests.fakes.nodes import BUFFERED, STREAMED
from tests.fakes.routers import PATIENCE_SECONDS, prompt


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    async with grpc_line(tmp_path) as running:
        yield running


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_a_head_chunks_and_a_conclusion(line: Line, stream: bool) -> None:
    if stream:
        line.bench.nodes[0].stream()
    parts = await line.parts(body=prompt(stream=stream))
    kinds = [part.WhichOneof("part") for part in parts]
    assert (kinds[0], kinds[-1], set(kinds[1:-1])) == ("head", "conclusion", {"chunk"})
    body = b"".join(part.chunk for part in parts[1:-1])
    assert (parts[0].head.status, body) == (200, b"".join(STREAMED if stream else BUFFERED))
    conclusion = parts[-1].conclusion
    receipt = verify_receipt(conclusion.receipt, line.bench.workload.keyset)
    assert receipt.returned.body_hash == digest(body)
    assert conclusion.acknowledgement.statement == ACKNOWLEDGEMENT.statement
    assert parts[0].head.receipt_id == receipt.receipt_id
    assert parts[0].head.workload_keyset_digest == line.bench.workload.keyset.digest == receipt.workload_keyset_digest


async def test_a_refusal_is_an_answer_with_its_own_status_and_receipt(line: Line) -> None:
    head, chunk, end = await line.parts(body=b"{")
    assert (head.head.status, head.head.content_type) == (400, "application/json")
    receipt = verify_receipt(end.conclusion.receipt, line.bench.workload.keyset)
    assert receipt.returned.body_hash == digest(chunk.chunk)


async def test_without_an_acknowledgement_the_call_fails_after_the_error(line: Line) -> None:
    line.bench.ledger.silent = True
    call = line.infer()
    head, chunk = await call.read(), await call.read()
    assert (head.head.status, b"ledger_unavailable" in chunk.chunk) == (503, True)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call.read()
    assert (error.value.code(), reason_of(error.value)) == (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE")


@pytest.mark.parametrize(
    "metadata",
    [(), (("authorization", "Bearer sk-wrong"),), (("authorization", KEY),), (("authorization", "Bearer "),)],
    ids=["none", "wrong", "no scheme", "empty"],
)
async def test_without_a_tenants_key_nothing_is_done(line: Line, metadata: Any) -> None:
    assert await line.refused(metadata=metadata) == (grpc.StatusCode.UNAUTHENTICATED, "API_KEY_INVALID")
    assert line.bench.ledger.entries == []
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await line.stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_SECONDS, metadata=metadata)
    assert reason_of(error.value) == "API_KEY_INVALID"


async def test_a_key_may_come_as_anthropics_clients_send_it(line: Line) -> None:
    parts = await line.parts(metadata=(("x-api-key", KEY),))
    assert parts[0].head.status == 200
    refused = await line.refused(metadata=(*AUTHORIZED, ("x-api-key", "sk-wrong")))
    assert refused == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")


async def test_two_keys_are_refused_whosever_they_are(line: Line) -> None:
    refused = await line.refused(metadata=(*AUTHORIZED, ("authorization", "Bearer sk-wrong")))
    assert refused == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")
    assert line.bench.ledger.entries == []


def assert_refused_with_receipt(line: Line, document: bytes, reason: str, answer: bytes) -> None:
    """The client has the receipt that was logged: what came, what it was refused for, what it was told."""
    receipt = verify_receipt(document, line.bench.workload.keyset)
    assert receipt == line.bench.only_receipt()
    assert receipt.upstream == UpstreamFailed(True, "none", reason)
    assert (receipt.received.body_hash, receipt.returned.body_hash) == (digest(prompt()), digest(answer))
    assert line.bench.nodes[0].requests == []


@pytest.mark.parametrize("name", ["x-e2ee-version", "x-client-pub-key", "x-signing-algo"])
async def test_whoever_wants_to_be_encrypted_is_not_answered_without(line: Line, name: str) -> None:
    head, chunk, last = await line.parts(metadata=(*AUTHORIZED, (name, "2")))
    assert (head.head.status, b"invalid_request_error" in chunk.chunk) == (400, True)
    assert_refused_with_receipt(line, last.conclusion.receipt, "request_invalid", chunk.chunk)


async def test_a_prompt_that_nobody_verified_could_serve_goes_nowhere(line: Line) -> None:
    node = line.bench.nodes[0]
    line.bench.registry.sessions.clear()
    line.bench.upstreams.take(line.bench.snapshot())
    line.bench.upstreams.take(line.bench.snapshot(node.provider(session_id=b"\x01" * 32)))
    await line.bench.upstreams.verify()
    head, chunk, last = await line.parts(body=prompt(provider={"aci_verified": True}))
    assert (head.head.status, b"SESSION_UNKNOWN" in chunk.chunk) == (503, True)
    assert line.bench.metrics.refusals.numbers == {"UPSTREAM_VERIFICATION_FAILED": 1}
    receipt = verify_receipt(last.conclusion.receipt, line.bench.workload.keyset)
    assert receipt.upstream == UpstreamFailed(True, MODEL, "SESSION_UNKNOWN")
    assert node.requests == []


async def test_a_session_that_nobody_has_is_no_upstream(line: Line) -> None:
    head, _, last = await line.parts(body=prompt(provider={"aci_session_ids": ["00" * 32]}))
    assert head.head.status == 412
    receipt = verify_receipt(last.conclusion.receipt, line.bench.workload.keyset)
    assert receipt.upstream == UpstreamFailed(True, MODEL, "session_not_accepted")
    assert line.bench.nodes[0].requests == []


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 65, "ünicode", "²", "a/b"])
async def test_a_request_id_that_is_none_is_refused_with_a_receipt(line: Line, request_id: str) -> None:
    head, _, last = await line.parts(request_id=request_id)
    assert head.head.status == 400
    assert verify_receipt(last.conclusion.receipt, line.bench.workload.keyset).receipt_id == head.head.receipt_id
    assert line.bench.metrics.refusals.numbers == {"REQUEST_ID_MALFORMED": 1}


async def test_a_body_over_the_limit_is_refused_with_a_receipt(line: Line) -> None:
    head, _, last = await line.parts(body=b"x" * (MAX_BODY_BYTES + 1))
    assert head.head.status == 413
    assert verify_receipt(last.conclusion.receipt, line.bench.workload.keyset).receipt_id == head.head.receipt_id
    assert line.bench.metrics.refusals.numbers == {"BODY_TOO_LARGE": 1}


@pytest.mark.parametrize("wrong", [{"request_id": "a b"}, {"body": b"x" * (MAX_BODY_BYTES + 1)}], ids=["id", "body"])
async def test_what_is_refused_for_its_form_counts_towards_its_tenants_limits(line: Line, wrong: Any) -> None:
    line.directory.limit(Limits(requests_per_minute=1))
    assert (await line.parts(**wrong))[0].head.status in (400, 413)
    assert (await line.parts(**wrong))[0].head.status == 429


async def test_a_message_that_no_body_needs_is_not_taken(line: Line) -> None:
    code, reason = await line.refused(body=b"x" * (MAX_BODY_BYTES + ENVELOPE_BYTES))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, None)
    assert line.bench.ledger.entries == []


async def test_a_tenants_bodies_have_their_part_of_the_room_and_leave_the_others_theirs(line: Line) -> None:
    with line.room.share() as https:
        https.assign(TENANT.tenant_id)
        https.take(MAX_BODY_BYTES)
        head, _, last = await line.parts()
        assert (head.head.status, head.head.retry_delay.seconds) == (503, 1)
        assert line.bench.metrics.refusals.numbers == {"BODIES_BUSY": 1}
        assert verify_receipt(last.conclusion.receipt, line.bench.workload.keyset).receipt_id == head.head.receipt_id
        other = await line.parts(metadata=(("authorization", f"Bearer {OTHER_KEY}"),))
        assert other[0].head.status == 200
    assert (await line.parts())[0].head.status == 200
    assert line.room.taken == 0


async def test_a_body_takes_room_over_grpc_as_long_as_its_request_runs(line: Line) -> None:
    node = line.bench.nodes[0]
    node.stream()
    node.waits_at = 1
    body = prompt(stream=True)
    async with asyncio.timeout(PATIENCE_SECONDS):
        call = line.infer(body=body)
        assert (await call.read()).WhichOneof("part") == "head"
        assert line.room.taken == len(body)
        call.cancel()
        await node.left.wait()
        await line.bench.logged()


@pytest.mark.parametrize("endpoint", ["/v1/systemone", "", "none", "/v1/chat/completions/" + "x" * 50_000])
async def test_an_endpoint_that_is_not_served_is_refused_with_a_receipt(line: Line, endpoint: str) -> None:
    head, chunk, last = await line.parts(endpoint=endpoint)
    assert (head.head.status, b"not_found" in chunk.chunk) == (404, True)
    assert_refused_with_receipt(line, last.conclusion.receipt, "endpoint_not_supported", chunk.chunk)
    assert line.bench.only_receipt().endpoint == "none"


async def test_a_call_without_a_deadline_is_refused(line: Line) -> None:
    assert (await line.refused(timeout=None))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stale_policy_is_named_and_the_refusal_has_a_receipt(line: Line) -> None:
    line.bench.member.policy.fresh = False
    call = line.infer(body=prompt())
    head, chunk = await call.read(), await call.read()
    assert head.head.status == 503
    assert b"POLICY_STALE" in chunk.chunk
    assert (await line.bench.logged())["receipt_id"] == head.head.receipt_id


async def test_the_models_are_those_that_a_verified_node_serves(line: Line) -> None:
    listed = await line.stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_SECONDS, metadata=AUTHORIZED)
    assert [(model.id, model.weights_sha256.hex()) for model in listed.models] == [(MODEL, WEIGHTS)]
    assert list(listed.models[0].endpoints) == paths(DEFINED)


@pytest.mark.parametrize("endpoint", DEFINED, ids=lambda endpoint: endpoint.path)
async def test_a_prompt_is_answered_at_every_endpoint(line: Line, endpoint: Endpoint) -> None:
    *_, last = await line.parts(endpoint=endpoint.path)
    assert verify_receipt(last.conclusion.receipt, line.bench.workload.keyset).endpoint == endpoint.path


async def test_a_client_that_leaves_mid_stream_stops_the_engine_and_leaves_one_receipt(line: Line) -> None:
    node = line.bench.nodes[0]
    node.stream()
    node.waits_at = 1
    async with asyncio.timeout(PATIENCE_SECONDS):
        call = line.infer(body=prompt(stream=True))
        assert (await call.read()).WhichOneof("part") == "head"
        assert (await call.read()).chunk == STREAMED[0]
        call.cancel()
        await node.left.wait()
        document = await line.bench.logged()
    receipt = verify_receipt(jcs.dumps(dict(document)), line.bench.workload.keyset)
    assert receipt.returned.body_hash == digest(STREAMED[0])
    assert Aborted("client_disconnected") in receipt.events
    assert len(line.bench.ledger.of(Kind.RECEIPT)) == 1


async def test_a_router_that_stops_mid_stream_says_so_and_not_that_the_client_left(line: Line) -> None:
    node = line.bench.nodes[0]
    node.stream()
    node.waits_at = 1
    async with asyncio.timeout(PATIENCE_SECONDS):
        call = line.infer(body=prompt(stream=True))
        assert (await call.read()).WhichOneof("part") == "head"
        assert (await call.read()).chunk == STREAMED[0]
        line.servicer.stop()
        await line.stop()
        await line.bench.logged()
    receipt = line.bench.only_receipt()
    assert [event for event in receipt.events if isinstance(event, Aborted)] == [Aborted("shutdown")]
    assert receipt.returned.body_hash == digest(STREAMED[0])


async def test_a_client_whose_time_is_over_is_not_said_to_have_left(line: Line) -> None:
    """Its time is over while the ledger is asked to open the vault."""
    line.bench.ledger.vault_waits = True
    async with asyncio.timeout(PATIENCE_SECONDS):
        call = line.infer(timeout=1.0)
        await line.bench.ledger.asked.wait()
        line.bench.ledger.vault_waits = False
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await line.bench.logged()
    receipt = line.bench.only_receipt()
    assert [event for event in receipt.events if isinstance(event, Aborted)] == [Aborted("deadline_exceeded")]


async def test_a_tenant_beyond_its_rate_is_refused_with_a_receipt_and_told_when_to_come_again(line: Line) -> None:
    line.directory.limit(Limits(requests_per_minute=1))
    await line.parts()
    head, chunk, conclusion = await line.parts()
    assert (head.head.status, head.head.retry_delay.seconds) == (429, 60)
    receipt = verify_receipt(conclusion.conclusion.receipt, line.bench.workload.keyset)
    assert receipt.returned.body_hash == digest(chunk.chunk)
    line.directory.now += 60
    assert (await line.parts())[0].head.status == 200


async def test_a_tenant_that_goes_on_is_refused_with_a_retry_info_and_no_receipt(line: Line) -> None:
    line.directory.limit(Limits(concurrent=1))
    with line.bench.gates.entered(replace(TENANT, limits=Limits(concurrent=1))):
        for _ in range(int(RECEIPTED_AT_ONCE)):
            assert (await line.parts())[0].head.status == 429
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await line.parts()
    assert (refused.value.code(), reason_of(refused.value)) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TENANT_CONCURRENCY_EXCEEDED",
    )
    metadata = dict(refused.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(metadata[STATUS_DETAILS_KEY])
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.seconds == 1
    assert len(line.bench.ledger.of(Kind.RECEIPT)) == RECEIPTED_AT_ONCE


async def test_overload_is_an_answer_with_a_receipt(tmp_path: Path) -> None:
    async with grpc_line(tmp_path, routing=RoutingSettings(queue_length=0)) as line:
        full = line.bench.nodes[0].provider(load=registry_pb2.Load(running_requests=4))
        line.bench.upstreams.take(line.bench.snapshot(full))
        head, chunk, end = await line.parts()
        assert (head.head.status, b'"overloaded"' in chunk.chunk) == (429, True)
        receipt = verify_receipt(end.conclusion.receipt, line.bench.workload.keyset)
        assert receipt.upstream == UpstreamFailed(True, MODEL, "overloaded")


async def test_a_call_whose_time_nears_its_end_is_told_so_while_it_waits(tmp_path: Path) -> None:
    async with grpc_line(tmp_path) as line:
        full = line.bench.nodes[0].provider(load=registry_pb2.Load(running_requests=4))
        line.bench.upstreams.take(line.bench.snapshot(full))
        head, *_ = await line.parts(timeout=6.5)
        assert head.head.status == 429
