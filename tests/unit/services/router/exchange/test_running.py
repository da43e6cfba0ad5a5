"""One request from first to last byte: what goes out when, and the one receipt that it leaves, whatever happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.registry.v1 import registry_pb2

from libs.aci.encoding import digest
from libs.aci.endpoints import CHAT
from libs.aci.json_values import MOST_VALUES
from libs.aci.receipt import Receipt
from libs.aci.receipt_events import PolicyInForce, SealedUnder, ServedByNode, UpstreamFailed, UpstreamVerified
from libs.policy.constraints import Constraints, TenantConstraints
from libs.policy.revoked import Revoked
from libs.transparency.leaf import Kind
from services.registry.sessions import draft_session
from services.router.exchange.course import Started
from services.router.prompt import Constraints as Demands
from services.router.routing.hop import MAX_PROOF_BYTES
from tests.fakes.leases import MODEL, WEIGHTS, node_lease
from tests.fakes.ledgers import TENANT, VAULT
from tests.fakes.nodes import BUFFERED, STREAMED
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench, aborts, prompt, router_bench, sha256, until_waiting


def error_type(body: bytes) -> str:
    value: str = json.loads(body)["error"]["type"]
    return value


async def test_a_buffered_response_is_whole_and_its_receipt_says_all(bench: RouterBench) -> None:
    answer = await bench.run(prompt())
    (node,) = bench.nodes
    assert (answer.started.status, answer.body) == (200, b"".join(BUFFERED))
    receipt = bench.only_receipt()
    assert receipt.receipt_id == answer.started.receipt_id
    assert (receipt.model, receipt.chat_id) == (MODEL, "chatcmpl-1")
    assert receipt.received.body_hash == digest(prompt())
    assert receipt.forwarded is not None
    assert receipt.forwarded.body_hash == digest(node.requests[0].body)
    assert receipt.returned.body_hash == digest(answer.body)
    session_id = draft_session(node.lease, node.target).session_id
    assert receipt.upstream == UpstreamVerified(True, MODEL, session_id)
    assert PolicyInForce(3, "sha256:" + "03" * 32) in receipt.events
    assert SealedUnder(VAULT.epoch) in receipt.events
    served = ServedByNode(
        node.lease.certificate.spiffe_id,
        "sha256:" + node.lease.evidence.digest.hex(),
        sha256(node.receipt(prompt())),
        WEIGHTS,
        "llama",
        "00" * 32,
        node.receipt(prompt()).decode(),
    )
    assert served in receipt.events
    assert aborts(receipt) == []
    assert bench.ledger.cut == [1]
    assert (await bench.store.receipts.find("chatcmpl-1", "ab" * 16)).receipt_id == receipt.receipt_id


async def test_nothing_of_a_buffered_response_is_out_before_its_receipt_is_logged(bench: RouterBench) -> None:
    bench.ledger.waits = True
    exchange = bench.exchanges.run(bench.request(prompt()))
    first = asyncio.ensure_future(anext(exchange))
    await until_waiting(bench.ledger.asked)
    assert not first.done()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await exchange.aclose()


async def test_a_stream_is_withheld_from_its_finish_until_its_receipt_is_logged(bench: RouterBench) -> None:
    bench.nodes[0].stream()
    bench.ledger.waits = True
    exchange = bench.exchanges.run(bench.request(prompt(stream=True)))
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert isinstance(await anext(exchange), Started)
        assert [await anext(exchange), await anext(exchange)] == list(STREAMED[:2])
    rest = asyncio.ensure_future(anext(exchange))
    await until_waiting(bench.ledger.asked)
    assert not rest.done()
    rest.cancel()
    await asyncio.gather(rest, return_exceptions=True)


async def test_a_stream_ends_as_the_node_ended_it(bench: RouterBench) -> None:
    bench.nodes[0].stream()
    answer = await bench.run(prompt(stream=True))
    assert answer.body == b"".join(STREAMED)
    assert bench.only_receipt().returned.body_hash == digest(answer.body)
    assert bench.ledger.cut == [1]


async def test_an_engine_error_is_an_answer_with_a_receipt(bench: RouterBench) -> None:
    node = bench.nodes[0]
    node.status, node.chunks = 400, (b'{"error":{}}',)
    answer = await bench.run(prompt(stream=True))
    assert (answer.started.status, answer.body) == (400, b'{"error":{}}')
    assert bench.only_receipt().returned.body_hash == digest(answer.body)


async def test_constraints_never_reach_the_node(bench: RouterBench) -> None:
    answer = await bench.run(prompt(provider={"aci_verified": True}))
    forwarded = bench.nodes[0].requests[0].body
    assert answer.started.status == 200
    assert b"aci_" not in forwarded
    receipt = bench.only_receipt()
    assert receipt.forwarded is not None
    assert receipt.forwarded.body_hash == digest(forwarded) != receipt.received.body_hash


async def test_a_buffered_response_without_acknowledgement_is_an_error(bench: RouterBench) -> None:
    bench.ledger.silent = True
    answer = await bench.run(prompt())
    assert (answer.started.status, error_type(answer.body)) == (503, "ledger_unavailable")
    (amendment,) = bench.ledger.of(Kind.AMENDMENT)
    assert (amendment["effect"], amendment["emitted_hash"]) == ("not_released", digest(answer.body))
    assert bench.only_receipt().returned.body_hash == digest(b"".join(BUFFERED))
    assert bench.ledger.cut == []


async def test_a_stream_without_acknowledgement_ends_in_an_error_and_the_amendment_says_so(bench: RouterBench) -> None:
    bench.nodes[0].stream()
    bench.ledger.silent = True
    answer = await bench.run(prompt(stream=True))
    assert answer.started.status == 200
    assert answer.body.startswith(b"".join(STREAMED[:2]))
    assert b'"finish_reason":"stop"' not in answer.body
    assert b'"type":"ledger_unavailable"' in answer.parts[-1]
    (amendment,) = bench.ledger.of(Kind.AMENDMENT)
    assert (amendment["effect"], amendment["emitted_hash"]) == ("not_released", digest(answer.body))


async def test_a_vault_that_cannot_be_opened_means_an_error_and_a_receipt_over_it(bench: RouterBench) -> None:
    bench.ledger.vault_open = False
    answer = await bench.run(prompt())
    assert (answer.started.status, error_type(answer.body)) == (503, "ledger_unavailable")
    assert bench.ledger.entries == []
    bench.ledger.vault_open = True
    async with bench.issuance.recording():
        await bench.logged()
    receipt = bench.only_receipt()
    assert receipt.returned.body_hash == digest(answer.body)
    assert aborts(receipt) == ["ledger_unavailable"]


async def test_a_refusal_without_acknowledgement_says_so(bench: RouterBench) -> None:
    bench.ledger.silent = True
    answer = await bench.run(b"{")
    assert (answer.started.status, error_type(answer.body)) == (503, "ledger_unavailable")
    (amendment,) = bench.ledger.of(Kind.AMENDMENT)
    assert (amendment["effect"], amendment["emitted_hash"]) == ("not_released", digest(answer.body))


async def test_a_disk_that_fails_after_the_acknowledgement_does_not_break_the_response(bench: RouterBench) -> None:
    bench.store.file.close()
    answer = await bench.run(prompt())
    assert (answer.started.status, answer.body) == (200, b"".join(BUFFERED))
    assert bench.ledger.cut == [1]


@pytest.mark.parametrize(
    ("body", "status", "kind", "reason"),
    [
        (b"{", 400, "invalid_request_error", "request_invalid"),
        (prompt(ids=[0] * MOST_VALUES), 400, "invalid_request_error", "body_values_too_many"),
        (prompt(model="unheard-of"), 404, "not_found_error", "model_not_found"),
        (prompt(cache_salt="x"), 400, "invalid_request_error", "request_invalid"),
        (prompt(provider={"aci_session_ids": ["00" * 32]}), 412, "session_not_accepted", "session_not_accepted"),
        (prompt(max_tokens=1, max_completion_tokens="100000"), 400, "invalid_request_error", "bound_malformed"),
    ],
    ids=["malformed", "many values", "unknown model", "cache salt", "another session pinned", "bound in another form"],
)
async def test_a_refusal_has_a_receipt_that_says_why(
    bench: RouterBench, body: bytes, status: int, kind: str, reason: str
) -> None:
    answer = await bench.run(body)
    assert (answer.started.status, error_type(answer.body)) == (status, kind)
    receipt = bench.only_receipt()
    assert isinstance(receipt.upstream, UpstreamFailed)
    assert (receipt.upstream.required, receipt.upstream.reason) == (True, reason)
    assert receipt.forwarded is None
    assert receipt.received.body_hash == digest(body)
    assert receipt.returned.body_hash == digest(answer.body)
    assert bench.nodes[0].requests == []
    assert bench.ledger.cut == [1]


async def test_without_a_verified_node_the_refusal_names_the_reason(bench: RouterBench) -> None:
    node = bench.nodes[0]
    bench.registry.sessions.clear()
    bench.upstreams.take(bench.snapshot())
    bench.upstreams.take(bench.snapshot(node.provider(session_id=b"\x01" * 32)))
    await bench.upstreams.verify()
    answer = await bench.run(prompt())
    assert (answer.started.status, error_type(answer.body)) == (503, "upstream_verification_failed")
    assert bench.only_receipt().upstream == UpstreamFailed(True, MODEL, "SESSION_UNKNOWN")


async def test_a_tenant_whose_constraints_no_node_meets_is_refused_with_a_receipt_that_names_them(
    bench: RouterBench,
) -> None:
    abroad = TenantConstraints(regions=frozenset({"eu-1"}), gpu_required=True)
    bench.member.policy.constraints = Constraints(by_tenant={TENANT.tenant_id: abroad})
    answer = await bench.run(prompt())
    assert (answer.started.status, error_type(answer.body)) == (503, "tenant_constraints_unmet")
    reason = "tenant_constraints_unmet: hardware.gpu_required, regions"
    assert bench.only_receipt().upstream == UpstreamFailed(True, MODEL, reason)
    assert bench.nodes[0].requests == []


async def test_another_tenants_constraints_are_not_this_ones(bench: RouterBench) -> None:
    nothing = TenantConstraints(regions=frozenset())
    bench.member.policy.constraints = Constraints(by_tenant={"ee" * 16: nothing})
    assert (await bench.run(prompt())).started.status == 200


async def test_a_tenant_without_an_entry_is_under_the_default(bench: RouterBench) -> None:
    bench.member.policy.constraints = Constraints(default=TenantConstraints(regions=frozenset()))
    assert (await bench.run(prompt())).started.status == 503


async def test_the_pinned_session_serves_when_it_is_current(bench: RouterBench) -> None:
    pinned = draft_session(bench.nodes[0].lease, bench.nodes[0].target).session_id
    assert (await bench.run(prompt(provider={"aci_session_ids": [pinned]}))).started.status == 200


@pytest.mark.parametrize("fails", ["unreachable", "refuses", "another key"])
async def test_another_node_is_tried_before_the_first_byte(two_nodes: RouterBench, fails: str) -> None:
    bench = two_nodes
    for node in bench.nodes[:1]:
        node.refuses = fails == "refuses"
        bench.peer_of(node).reachable = fails != "unreachable"
        if fails == "another key":
            bench.peer_of(node).renewed = node_lease("n0", key="second")
    bench.upstreams.take(bench.snapshot(bench.nodes[0].provider(), bench.nodes[1].provider(draining=True)))
    first = bench.upstreams.choose(MODEL, CHAT, Demands(), TENANT.tenant_id, frozenset())
    assert first.candidate.spiffe_id == bench.nodes[0].lease.certificate.spiffe_id
    bench.upstreams.take(
        bench.snapshot(bench.nodes[0].provider(), bench.nodes[1].provider(load=registry_pb2.Load(running_requests=1)))
    )
    answer = await bench.run(prompt())
    assert answer.started.status == 200
    receipt = bench.only_receipt()
    second = draft_session(bench.nodes[1].lease, bench.nodes[1].target).session_id
    assert receipt.upstream == UpstreamVerified(True, MODEL, second)
    reached = [event for event in receipt.events if isinstance(event, UpstreamVerified)]
    # Who was handed the prompt is named, though another served.
    assert len(reached) == (2 if fails == "refuses" else 1)


def policy_named(receipt: Receipt) -> PolicyInForce:
    (named,) = [event for event in receipt.events if isinstance(event, PolicyInForce)]
    return named


def enacting_another_policy(bench: RouterBench) -> Callable[[], None]:
    def enact() -> None:
        bench.member.policy.version, bench.member.policy.digest = 4, b"\x04" * 32

    return enact


async def test_the_receipt_names_the_policy_under_which_the_node_was_chosen_that_serves(
    two_nodes: RouterBench,
) -> None:
    bench = two_nodes
    bench.upstreams.take(
        bench.snapshot(bench.nodes[0].provider(), bench.nodes[1].provider(load=registry_pb2.Load(running_requests=1)))
    )
    for node in bench.nodes:
        bench.peer_of(node).reachable = node is not bench.nodes[0]
    bench.peer_of(bench.nodes[0]).meanwhile = enacting_another_policy(bench)
    assert (await bench.run(prompt())).started.status == 200
    assert policy_named(bench.only_receipt()) == PolicyInForce(4, "sha256:" + "04" * 32)


@pytest.mark.parametrize("reachable", [True, False], ids=["serves", "cannot be reached"])
async def test_the_receipt_names_no_policy_under_which_nobody_was_chosen(bench: RouterBench, reachable: bool) -> None:
    bench.peer_of(bench.nodes[0]).reachable = reachable
    bench.peer_of(bench.nodes[0]).meanwhile = enacting_another_policy(bench)
    assert (await bench.run(prompt())).started.status == (200 if reachable else 502)
    assert policy_named(bench.only_receipt()) == PolicyInForce(3, "sha256:" + "03" * 32)


@pytest.mark.parametrize(
    ("asked", "required"),
    [({}, False), ({"aci_verified": False}, False), ({"aci_verified": True}, True), ({"aci_session_ids": None}, True)],
    ids=["nothing", "nothing, in words", "verified", "pinned"],
)
async def test_verification_was_required_where_the_request_asks_for_it_if_the_tenant_need_not(
    bench: RouterBench, asked: dict[str, Any], required: bool
) -> None:
    bench.member.policy.constraints = Constraints(default=TenantConstraints(verified_only=False))
    session = draft_session(bench.nodes[0].lease, bench.nodes[0].target).session_id
    provider = {name: [session] if value is None else value for name, value in asked.items()}
    assert (await bench.run(prompt(provider=provider))).started.status == 200
    assert bench.only_receipt().upstream == UpstreamVerified(required, MODEL, session)


@pytest.mark.parametrize(
    ("body", "required"),
    [
        (b"{", False),
        (prompt(model="unheard-of"), False),
        (prompt(model="unheard-of", provider={"aci_verified": True}), True),
        (prompt(provider={"aci_session_ids": ["00" * 32]}), True),
    ],
    ids=["malformed", "unknown model", "unknown model, verified", "another session pinned"],
)
async def test_a_refusal_says_whether_verification_was_required(
    bench: RouterBench, body: bytes, required: bool
) -> None:
    bench.member.policy.constraints = Constraints(default=TenantConstraints(verified_only=False))
    await bench.run(body)
    refused = bench.only_receipt().upstream
    assert isinstance(refused, UpstreamFailed)
    assert refused.required is required


async def test_a_prompt_that_reached_no_node_was_not_forwarded(bench: RouterBench) -> None:
    bench.peer_of(bench.nodes[0]).reachable = False
    answer = await bench.run(prompt())
    assert (answer.started.status, error_type(answer.body)) == (502, "upstream_error")
    receipt = bench.only_receipt()
    assert receipt.forwarded is None
    assert receipt.upstream == UpstreamFailed(True, MODEL, "engine_unavailable")


async def test_a_prompt_that_a_node_had_and_refused_was_forwarded(bench: RouterBench) -> None:
    bench.nodes[0].refuses = True
    answer = await bench.run(prompt())
    assert (answer.started.status, error_type(answer.body)) == (502, "upstream_error")
    receipt = bench.only_receipt()
    assert receipt.forwarded is not None
    assert isinstance(receipt.upstream, UpstreamVerified)
    assert aborts(receipt) == ["upstream_failed"]
    assert receipt.returned.body_hash == digest(answer.body)


async def test_a_node_that_breaks_off_a_stream_ends_it_in_an_error(bench: RouterBench) -> None:
    node = bench.nodes[0]
    node.stream()
    node.breaks_at = 1
    answer = await bench.run(prompt(stream=True))
    assert answer.parts[0] == STREAMED[0]
    assert b'"type":"upstream_error"' in answer.parts[-1]
    receipt = bench.only_receipt()
    assert receipt.returned.body_hash == digest(answer.body)
    assert aborts(receipt) == ["upstream_failed"]
    assert not [event for event in receipt.events if isinstance(event, ServedByNode)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_node_that_has_no_time_left_is_not_said_to_have_failed(bench: RouterBench, stream: bool) -> None:
    node = bench.nodes[0]
    if stream:
        node.stream()
    node.waits_at = 1
    answer = await bench.run(prompt(stream=stream), seconds=6.5)
    assert b'"upstream_error"' in answer.body
    assert aborts(bench.only_receipt()) == ["deadline_exceeded"]


async def test_a_stream_that_ends_with_its_nodes_refusal_names_the_reason(bench: RouterBench) -> None:
    node = bench.nodes[0]
    node.stream()
    node.breaks_at = 1
    bench.peer_of(node).refusal = "MEASUREMENT_REVOKED"
    answer = await bench.run(prompt(stream=True))
    assert b"MEASUREMENT_REVOKED" in answer.parts[-1]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_answer_of_a_tenant_who_is_revoked_meanwhile_is_cut(bench: RouterBench, stream: bool) -> None:
    if stream:
        bench.nodes[0].stream()

    def revoke() -> None:
        bench.member.policy.revoked = Revoked(tenants=frozenset({TENANT.tenant_id}))

    bench.nodes[0].meanwhile = revoke
    answer = await bench.run(prompt(stream=stream))
    assert b'"tenant_revoked"' in answer.body
    assert answer.started.status == (200 if stream else 403)
    receipt = bench.only_receipt()
    assert aborts(receipt) == ["tenant_revoked"]
    assert receipt.returned.body_hash == digest(answer.body)


async def test_a_node_that_breaks_off_a_buffered_response_is_not_asked_again(two_nodes: RouterBench) -> None:
    for node in two_nodes.nodes:
        node.breaks_at = 1
    answer = await two_nodes.run(prompt())
    assert (answer.started.status, error_type(answer.body)) == (502, "upstream_error")
    assert sum(len(node.requests) for node in two_nodes.nodes) == 1
    assert aborts(two_nodes.only_receipt()) == ["upstream_failed"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_node_whose_receipt_is_over_other_bytes_has_failed(bench: RouterBench, stream: bool) -> None:
    node = bench.nodes[0]
    node.forges = True
    if stream:
        node.stream(*STREAMED[:2])
    answer = await bench.run(prompt(stream=stream))
    assert b'"type":"upstream_error"' in answer.body
    assert answer.started.status == (200 if stream else 502)
    receipt = bench.only_receipt()
    assert aborts(receipt) == ["upstream_failed"]
    assert receipt.returned.body_hash == digest(answer.body)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_node_whose_receipt_is_too_long_to_be_logged_has_failed(bench: RouterBench, stream: bool) -> None:
    node = bench.nodes[0]
    node.said = {"receipt_id": "r" * MAX_PROOF_BYTES}
    if stream:
        node.stream(*STREAMED[:2])
    answer = await bench.run(prompt(stream=stream))
    assert b'"type":"upstream_error"' in answer.body
    receipt = bench.only_receipt()
    assert (aborts(receipt), receipt.returned.body_hash) == (["upstream_failed"], digest(answer.body))
    assert not [event for event in receipt.events if isinstance(event, ServedByNode)]


@pytest.mark.parametrize(
    "said", [{"body": b"another prompt"}, {"endpoint": "/v1/completions"}, {"model": "other"}], ids=str
)
async def test_a_node_whose_receipt_is_for_something_else_than_it_was_sent_has_failed(
    bench: RouterBench, said: dict[str, Any]
) -> None:
    bench.nodes[0].said = said
    answer = await bench.run(prompt())
    assert (answer.started.status, error_type(answer.body)) == (502, "upstream_error")
    assert not [event for event in bench.only_receipt().events if isinstance(event, ServedByNode)]


async def test_a_node_whose_receipt_another_key_signed_has_failed(bench: RouterBench) -> None:
    bench.nodes[0].key = Ed25519PrivateKey.generate()
    answer = await bench.run(prompt())
    assert (answer.started.status, error_type(answer.body)) == (502, "upstream_error")


async def test_an_answer_is_served_when_the_prompt_is_handed_over(tmp_path: Path) -> None:
    """A long stream may end after the session that it rests on."""
    times = iter([1_750_000_000.5])
    async with router_bench(tmp_path, clock=lambda: next(times)) as bench:
        bench.nodes[0].stream()
        assert (await bench.run(prompt(stream=True))).started.status == 200
        assert bench.only_receipt().served_at == 1_750_000_000


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"scopes": ("completions", "receipts")}, 403, "key_not_scoped"),
        ({"models": ("another",)}, 404, "not_found_error"),
    ],
)
async def test_a_key_for_something_else_gets_nothing_forwarded_and_a_receipt(
    bench: RouterBench, change: dict[str, Any], status: int, kind: str
) -> None:
    bench.tenant = replace(TENANT, key=replace(TENANT.key, **change))
    answer = await bench.run(prompt())
    assert (answer.started.status, error_type(answer.body)) == (status, kind)
    assert bench.nodes[0].requests == []
    assert bench.only_receipt().returned.body_hash == digest(answer.body)


async def test_a_key_for_this_is_served(bench: RouterBench) -> None:
    bench.tenant = replace(TENANT, key=replace(TENANT.key, scopes=("chat",), models=(MODEL,)))
    assert (await bench.run(prompt())).started.status == 200
