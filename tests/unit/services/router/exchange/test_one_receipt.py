"""Whatever a request ends in, it leaves one receipt that verifies and says what happened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from libs.aci.encoding import digest
from libs.aci.endpoints import CHAT, MESSAGES, Endpoint
from libs.aci.receipt_events import UpstreamFailed, UpstreamVerified
from libs.policy.tenant_record import Limits
from libs.transparency.leaf import Kind
from services.router.admission.limits import TenantConcurrencyExceeded, TenantLimited, TenantRateExceeded
from services.router.e2ee.window import AcceptanceWindow
from services.router.exchange.course import Started
from services.router.exchange.ends import End
from services.router.exchange.withholding import MAX_WITHHELD_BYTES
from tests.fakes.leases import MODEL
from tests.fakes.ledgers import TENANT
from tests.fakes.nodes import STREAMED
from tests.fakes.routers import PATIENCE_SECONDS, Answer, RouterBench, aborts, prompt, router_bench, until_waiting
from tests.fakes.sealed_prompts import Client


def assert_refused(bench: RouterBench, answer: Answer, reason: str) -> None:
    """One receipt says why, over what went out; nobody was handed anything, and nothing is amended."""
    receipt = bench.only_receipt()
    assert isinstance(receipt.upstream, UpstreamFailed)
    assert (receipt.upstream.reason, receipt.forwarded, aborts(receipt)) == (reason, None, [])
    assert receipt.returned.body_hash == digest(answer.body)
    assert [len(node.requests) for node in bench.nodes] == [0]
    assert bench.ledger.of(Kind.AMENDMENT) == []


@dataclass(frozen=True, slots=True)
class Sealed:
    """An encrypted request that is refused."""

    reason: str
    headers: dict[str, str | None]
    body: Callable[[Client], bytes] = Client.sealed_chat
    endpoint: Endpoint = CHAT


def sealed_with_tools(client: Client) -> bytes:
    return client.chat(client.seal("messages.0.content", "a"), tools=[{}])


SEALED = [
    Sealed("e2ee_header_missing", {"x_e2ee_nonce": None}),
    Sealed("e2ee_invalid_version", {"x_e2ee_version": "3"}),
    Sealed("e2ee_invalid_nonce", {"x_e2ee_nonce": "ab"}),
    Sealed("e2ee_invalid_timestamp", {"x_e2ee_timestamp": "1"}),
    Sealed("e2ee_model_key_mismatch", {"x_model_pub_key": "ab" * 32}),
    Sealed("e2ee_invalid_public_key", {"x_client_pub_key": "ab"}),
    Sealed("e2ee_invalid_payload_model", {}, lambda client: b'{"messages":[]}'),
    Sealed("e2ee_decryption_failed", {}, lambda client: client.chat("in clear")),
    Sealed("e2ee_unsupported_endpoint", {}, endpoint=MESSAGES),
    Sealed(
        "e2ee_content_without_place", {}, lambda client: client.chat(client.seal("messages.0.content", "a"), tools=[{}])
    ),
]


@pytest.mark.parametrize("sealed", SEALED, ids=lambda sealed: sealed.reason)
async def test_what_came_encrypted_and_is_refused(bench: RouterBench, sealed: Sealed) -> None:
    key = bench.workload.newest.e2ee_keys[0]
    client = Client(key, key.suite.key(), MODEL)
    answer = await bench.run(sealed.body(client), sealing=client.headers(**sealed.headers), endpoint=sealed.endpoint)
    assert_refused(bench, answer, sealed.reason)


@pytest.mark.parametrize(
    "changed",
    [
        lambda client: {},
        lambda client: {"x_client_pub_key": client.key.suite.key().public.hex()},
        lambda client: {"x_e2ee_nonce": client.nonce.swapcase()},
    ],
    ids=["as it was", "for another client's key", "with its nonce in other letters"],
)
async def test_what_came_encrypted_before(bench: RouterBench, changed: Callable[[Client], dict[str, str]]) -> None:
    key = bench.workload.newest.e2ee_keys[0]
    client = Client(key, key.suite.key(), MODEL, nonce="ab" * 32)
    body = client.sealed_chat()
    assert (await bench.run(body, sealing=client.headers())).started.status == 200
    answer = await bench.run(body, sealing=client.headers(**changed(client)))
    first, second = bench.ledger.of(Kind.RECEIPT)
    assert first["receipt_id"] != second["receipt_id"] == answer.started.receipt_id
    assert "e2ee_replay_detected" in str(second)
    assert [len(node.requests) for node in bench.nodes] == [1]


async def test_what_came_encrypted_and_cannot_be_remembered(tmp_path: Path) -> None:
    async with router_bench(tmp_path, window=AcceptanceWindow(most=0)) as bench:
        key = bench.workload.newest.e2ee_keys[0]
        client = Client(key, key.suite.key(), MODEL)
        answer = await bench.run(client.sealed_chat(), sealing=client.headers())
        assert_refused(bench, answer, "e2ee_replay_memory_full")


@pytest.mark.parametrize("limited", [TenantRateExceeded, TenantConcurrencyExceeded], ids=lambda limited: limited.reason)
async def test_a_tenant_beyond_its_limits(bench: RouterBench, limited: type[TenantLimited]) -> None:
    request = replace(bench.request(b""), unread=limited("too many", 1.0))
    answer = await answered(bench, request)
    assert_refused(bench, answer, limited.reason.lower())


async def answered(bench: RouterBench, request: Any) -> Answer:
    async with asyncio.timeout(PATIENCE_SECONDS), aclosing(bench.exchanges.run(request)) as exchange:
        started, *parts = [part async for part in exchange]
    assert isinstance(started, Started)
    return Answer(started, tuple(part for part in parts if isinstance(part, bytes)))


async def test_a_tenant_beyond_its_quota(bench: RouterBench) -> None:
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=1))
    assert_refused(bench, await bench.run(prompt(max_tokens=100)), "tenant_quota_exceeded")


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
async def test_a_node_that_is_killed_in_the_middle_of_its_answer(bench: RouterBench, stream: bool) -> None:
    node = bench.nodes[0]
    if stream:
        node.stream()
    node.waits_at = 1
    running = asyncio.create_task(bench.run(prompt(stream=stream)))
    await until_waiting(node.waiting)
    await bench.servers[0].stop(None)
    answer = await running
    receipt = bench.only_receipt()
    assert (aborts(receipt), receipt.returned.body_hash) == (["upstream_failed"], digest(answer.body))
    assert answer.body.startswith(STREAMED[0]) is stream
    assert isinstance(receipt.upstream, UpstreamVerified)
    assert bench.ledger.of(Kind.AMENDMENT) == []


async def test_a_node_that_is_killed_before_its_answer(bench: RouterBench) -> None:
    node = bench.nodes[0]
    node.waits_before_head = True
    running = asyncio.create_task(bench.run(prompt()))
    await until_waiting(node.waiting)
    await bench.servers[0].stop(None)
    answer = await running
    receipt = bench.only_receipt()
    assert (answer.started.status, aborts(receipt)) == (502, ["upstream_failed"])
    assert receipt.returned.body_hash == digest(answer.body)
    assert isinstance(receipt.upstream, UpstreamVerified)


async def test_an_answer_that_is_larger_than_may_be_withheld(bench: RouterBench) -> None:
    piece = b"x" * (1 << 20)
    bench.nodes[0].chunks = [piece] * (MAX_WITHHELD_BYTES // len(piece) + 1)
    answer = await bench.run(prompt())
    receipt = bench.only_receipt()
    assert (answer.started.status, aborts(receipt)) == (502, ["answer_undeliverable"])
    assert answer.started.headers["X-Should-Retry"] == "false"
    assert receipt.returned.body_hash == digest(answer.body)


async def test_an_engine_that_reports_an_error_within_its_stream(bench: RouterBench) -> None:
    error = b'data: {"error":{"type":"server_error","message":"out of memory"}}\n\n'
    bench.nodes[0].stream(STREAMED[0], error)
    answer = await bench.run(prompt(stream=True))
    receipt = bench.only_receipt()
    assert answer.body == STREAMED[0] + error
    assert receipt.returned.body_hash == digest(answer.body)
    assert bench.ledger.cut == [1]


@pytest.mark.parametrize("handed", [False, True], ids=["before a node has it", "within its stream"])
async def test_a_defect_of_the_routers_own(bench: RouterBench, handed: bool) -> None:
    """What nobody foresaw ends the answer, and is in the receipt as that."""
    node = bench.nodes[0]
    node.stream()

    def defect() -> None:
        bench.member.policy.revoked = None

    if handed:
        node.meanwhile = defect
    else:
        bench.peer_of(node).meanwhile = defect
    async with bench.issuance.recording():
        with pytest.raises(AttributeError):
            await bench.run(prompt(stream=True))
        await bench.logged()
    receipt = bench.only_receipt()
    assert (aborts(receipt), receipt.forwarded is not None) == ([End.INTERNAL_ERROR.value], handed)
