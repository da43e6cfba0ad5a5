"""Answers that nodes give in one message: what is proven of them is what is proven of those that come in parts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.aci.encoding import digest
from libs.aci.receipt_events import ServedByNode
from libs.policy.tenant_record import Limits
from tests.fakes.nodes import BUFFERED, STREAMED
from tests.fakes.routers import RouterBench, aborts, prompt, router_bench, until_waiting


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[RouterBench]:
    async with router_bench(tmp_path, nodes=2, whole=True) as bench:
        yield bench


def asked(bench: RouterBench) -> int:
    return sum(len(node.requests) for node in bench.nodes)


async def test_what_is_not_streamed_comes_in_one_message(two: RouterBench) -> None:
    answer = await two.run(prompt())
    assert (answer.started.status, answer.body) == (200, b"".join(BUFFERED))
    assert [node.asked_whole for node in two.nodes if node.requests] == [1]
    receipt = two.only_receipt()
    assert receipt.returned.body_hash == digest(answer.body)
    assert [type(event) for event in receipt.events].count(ServedByNode) == 1
    assert aborts(receipt) == []


async def test_a_stream_comes_in_parts(two: RouterBench) -> None:
    for node in two.nodes:
        node.stream()
    assert (await two.run(prompt(stream=True))).body == b"".join(STREAMED)
    assert (asked(two), sum(node.asked_whole for node in two.nodes)) == (1, 0)


async def test_a_node_that_does_not_claim_to_is_asked_in_parts(tmp_path: Path) -> None:
    async with router_bench(tmp_path) as bench:
        assert (await bench.run(prompt())).body == b"".join(BUFFERED)
        assert (len(bench.nodes[0].requests), bench.nodes[0].asked_whole) == (1, 0)


@pytest.mark.parametrize("status", [400, 502])
async def test_an_engines_refusal_is_an_answer_of_its_status(two: RouterBench, status: int) -> None:
    for node in two.nodes:
        node.status, node.chunks = status, [b'{"error":{"type":"e"}}']
    answer = await two.run(prompt())
    assert (answer.started.status, answer.body, asked(two)) == (status, b'{"error":{"type":"e"}}', 1)


@pytest.mark.parametrize(
    "said", [{"body": b"another prompt"}, {"endpoint": "/v1/completions"}, {"model": "other"}, "bytes", "key"], ids=str
)
async def test_a_receipt_that_does_not_cover_it_keeps_it_back(two: RouterBench, said: Any) -> None:
    for node in two.nodes:
        match said:
            case "bytes":
                node.forges = True
            case "key":
                node.key = Ed25519PrivateKey.generate()
            case _:
                node.said = said
    answer = await two.run(prompt())
    assert (answer.started.status, json.loads(answer.body)["error"]["type"]) == (502, "upstream_error")
    receipt = two.only_receipt()
    assert not [event for event in receipt.events if isinstance(event, ServedByNode)]
    assert (aborts(receipt), receipt.returned.body_hash) == (["upstream_failed"], digest(answer.body))
    assert asked(two) == 1


@pytest.mark.parametrize("omitted", ["head", "conclusion"])
async def test_one_that_lacks_a_part_is_none(two: RouterBench, omitted: Literal["head", "conclusion"]) -> None:
    for node in two.nodes:
        node.omits = omitted
    assert (await two.run(prompt())).started.status == 502
    assert asked(two) == 1
    assert aborts(two.only_receipt()) == ["upstream_failed"]


async def test_one_that_is_too_long_is_asked_of_no_other_node(two: RouterBench) -> None:
    for node in two.nodes:
        node.refuses_as_too_long = True
    two.tenant = replace(two.tenant, limits=Limits(tokens_per_day=10_000))
    answer = await two.run(prompt(max_tokens=100))
    assert (answer.started.status, answer.started.headers["X-Should-Retry"]) == (502, "false")
    assert asked(two) == 1
    assert aborts(two.only_receipt()) == ["answer_undeliverable"]
    assert two.metrics.ends.numbers == {"answer_undeliverable": 1}
    assert two.metrics.refusals.numbers == {"ANSWER_UNDELIVERABLE": 1}
    assert two.quotas.counted(two.tenant.tenant_id).day_tokens > 100


@pytest.mark.parametrize("at", [0, 1])
async def test_a_node_that_breaks_off_gave_nothing_so_another_may(two: RouterBench, at: int) -> None:
    def only_once() -> None:
        for node in two.nodes:
            node.breaks_at = at if asked(two) == 1 else None

    for node in two.nodes:
        node.meanwhile = only_once
    answer = await two.run(prompt())
    assert (answer.started.status, answer.body, asked(two)) == (200, b"".join(BUFFERED), 2)
    assert aborts(two.only_receipt()) == []


async def test_a_client_that_leaves_ends_the_call(two: RouterBench) -> None:
    for node in two.nodes:
        node.waits_at = 1
    client = asyncio.create_task(two.run(prompt()))
    async with two.issuance.recording():
        waiting = [asyncio.create_task(node.waiting.wait()) for node in two.nodes]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        node = next(node for node in two.nodes if node.waiting.is_set())
        for task in waiting:
            task.cancel()
        client.cancel()
        await until_waiting(node.left)
        await two.logged()
    assert aborts(two.only_receipt()) == ["client_disconnected"]


async def test_one_that_does_not_come_in_time_is_late(two: RouterBench) -> None:
    for node in two.nodes:
        node.waits_at = 1
    assert (await two.run(prompt(), seconds=6.5)).started.status in (502, 504)
    await until_waiting(next(node for node in two.nodes if node.requests).left)
