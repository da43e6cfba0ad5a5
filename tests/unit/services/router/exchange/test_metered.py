"""What an exchange is counted as: by its receipt, and in its tenant's usage, which say the same."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from libs.aci.endpoints import COUNT_TOKENS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint
from libs.aci.receipt_events import Metered
from libs.aci.usage import Tokens
from libs.policy.tenant_record import Limits
from libs.transparency.leaf import Kind
from services.router.admission.limits import TenantRateExceeded
from services.router.admission.quotas import OCTETS_PER_TOKEN, UNSAID_COMPLETION
from services.router.errors import KeysetEnded, LedgerUnavailable
from services.router.exchange.course import Started
from services.router.exchange.volume import OCTETS_PER_COMPLETION_TOKEN
from services.router.workload.settings import DAY_SECONDS
from tests.fakes.leases import MODEL
from tests.fakes.ledgers import TENANT
from tests.fakes.nodes import STREAMED
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench, aborts, prompt, router_bench

USAGE = {"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18}
FINISHING = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
IN_STREAM = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n"


async def used(bench: RouterBench) -> Counter[str]:
    """Write what was used, and return it, all rows together."""
    async with asyncio.timeout(PATIENCE_SECONDS), bench.usage.recording():
        pass
    total: Counter[str] = Counter()
    for body in bench.ledger.of(Kind.USAGE):
        for row in body["rows"]:
            assert row["key"] == TENANT.key.id
            assert row["model"] == (None if row["refused"] else MODEL)
            total.update({name: value for name, value in row.items() if name not in ("key", "model")})
        total.update(body["without_receipt"])
    return total


def metered(bench: RouterBench) -> Metered:
    (event,) = [event for event in bench.only_receipt().events if isinstance(event, Metered)]
    return event


async def test_a_buffered_answers_tokens_are_what_it_states(bench: RouterBench) -> None:
    bench.nodes[0].chunks = (json.dumps({"id": "x", "choices": [], "usage": USAGE}).encode(),)
    await bench.run(prompt())
    assert metered(bench) == Metered("one", 7, 11)
    assert await used(bench) == Counter(requests=1, prompt_tokens=7, completion_tokens=11)


async def test_a_streams_tokens_are_what_its_end_states(bench: RouterBench) -> None:
    bench.nodes[0].stream()
    bench.nodes[0].chunks = (*STREAMED[:-1], IN_STREAM, STREAMED[-1])
    await bench.run(prompt(stream=True))
    assert metered(bench) == Metered("one", 7, 11)
    assert await used(bench) == Counter(requests=1, prompt_tokens=7, completion_tokens=11)


async def test_an_answer_that_states_none_is_counted_and_not_guessed(bench: RouterBench) -> None:
    await bench.run(prompt())
    assert metered(bench) == Metered("one")
    assert await used(bench) == Counter(requests=1, unmetered=1)


async def test_a_refusal_is_counted_as_one(bench: RouterBench) -> None:
    await bench.run(b"{}")
    assert metered(bench) == Metered("one")
    assert await used(bench) == Counter(requests=1, refused=1)


async def test_a_client_that_leaves_is_counted_too(bench: RouterBench) -> None:
    bench.nodes[0].stream()
    exchange = bench.exchanges.run(bench.request(prompt(stream=True)))
    async with asyncio.timeout(PATIENCE_SECONDS), aclosing(exchange), bench.issuance.recording():
        await anext(exchange)
        await exchange.aclose()
        await bench.logged()
    assert await used(bench) == Counter(requests=1, unmetered=1)


async def test_every_refusal_has_a_receipt_or_is_in_the_number(bench: RouterBench) -> None:
    bench.tenant = replace(TENANT, limits=Limits(requests_per_minute=1))
    refused = TenantRateExceeded("too many", 60.0)
    without = 0
    for _ in range(14):
        request = replace(bench.request(prompt()), unread=refused)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS), aclosing(bench.exchanges.run(request)) as exchange:
                async for _part in exchange:
                    pass
        except TenantRateExceeded:
            without += 1
    assert await used(bench) == Counter(requests=14 - without, refused=14 - without, TENANT_RATE_EXCEEDED=without)
    assert len(bench.ledger.of(Kind.RECEIPT)) == 14 - without
    assert without > 0


async def test_a_tenant_over_its_rate_does_not_fill_what_waits_for_the_ledger(bench: RouterBench) -> None:
    """Or it would keep the receipts of everybody else's refusals out."""
    bench.tenant = replace(TENANT, limits=Limits(requests_per_minute=1))
    bench.ledger.full = True
    told: Counter[str] = Counter()
    for _ in range(14):
        asked = replace(bench.request(prompt()), unread=TenantRateExceeded("too many", 60.0))
        try:
            async with asyncio.timeout(PATIENCE_SECONDS), aclosing(bench.exchanges.run(asked)) as exchange:
                async for _part in exchange:
                    pass
            told["LEDGER_UNAVAILABLE"] += 1
        except TenantRateExceeded:
            told["TENANT_RATE_EXCEEDED"] += 1
    waiting, without = len(await bench.store.put_off.oldest(99)), told["TENANT_RATE_EXCEEDED"]
    assert told == Counter(LEDGER_UNAVAILABLE=waiting, TENANT_RATE_EXCEEDED=without) == bench.metrics.refusals.numbers
    assert without > 0
    bench.ledger.full = False
    assert await used(bench) == Counter(requests=waiting, refused=waiting, TENANT_RATE_EXCEEDED=without)


async def test_a_refusal_for_which_no_receipt_can_wait_is_in_the_number(tmp_path: Path) -> None:
    async with router_bench(tmp_path, most_put_off=1) as bench:
        bench.ledger.full = True
        await bench.run(prompt())
        with pytest.raises(LedgerUnavailable):
            await bench.run(prompt())
        bench.ledger.full = False
        assert await used(bench) == Counter(requests=1, refused=1, LEDGER_UNAVAILABLE=1)
        assert bench.metrics.refusals.numbers["LEDGER_UNAVAILABLE"] == 2


async def test_a_refusal_by_a_router_whose_keyset_ends_is_in_the_number(tmp_path: Path) -> None:
    now = 1_000_000.0
    async with router_bench(tmp_path, keyset_days=1, keyset_clock=lambda: now) as bench:
        now += DAY_SECONDS
        with pytest.raises(KeysetEnded):
            await bench.run(prompt())
        assert await used(bench) == Counter(KEYSET_ENDED=1)
        assert bench.metrics.refusals.numbers["KEYSET_ENDED"] == 1


@pytest.mark.parametrize("tokens", [Tokens(), Tokens(1), Tokens(None, 1)])
def test_half_a_statement_is_none(tokens: Tokens) -> None:
    assert not tokens.stated


def used_today(bench: RouterBench) -> int:
    counted = bench.quotas.counted(TENANT.tenant_id)
    return counted.day_tokens


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_costs_what_it_states(bench: RouterBench, stream: bool) -> None:
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=10_000))
    if stream:
        bench.nodes[0].stream()
        bench.nodes[0].chunks = (*STREAMED[:-1], IN_STREAM, STREAMED[-1])
    else:
        bench.nodes[0].chunks = (json.dumps({"id": "x", "choices": [], "usage": USAGE}).encode(),)
    await bench.run(prompt(stream=stream, max_tokens=100))
    assert used_today(bench) == 18


async def test_an_answer_that_states_nothing_costs_what_it_might_have(bench: RouterBench) -> None:
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=10_000))
    body = prompt(max_tokens=100)
    await bench.run(body)
    assert used_today(bench) == -(-len(body) // OCTETS_PER_TOKEN) + 100


async def test_a_client_that_leaves_before_the_end_saves_nothing(bench: RouterBench) -> None:
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=10_000))
    bench.nodes[0].stream()
    bench.nodes[0].chunks = (*STREAMED[:-1], IN_STREAM, STREAMED[-1])
    exchange = bench.exchanges.run(bench.request(prompt(stream=True, max_tokens=100)))
    async with asyncio.timeout(PATIENCE_SECONDS), aclosing(exchange):
        await anext(exchange)
        await exchange.aclose()
    assert used_today(bench) > 100


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": None}]}).encode() + b"\n\n"


@pytest.mark.parametrize("text", ["a", "four" * 10])
async def test_a_stream_without_a_bound_costs_at_least_what_came(bench: RouterBench, text: str) -> None:
    """Engines put more than one token into an event where whoever reads is slow."""
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=1_000_000))
    bench.nodes[0].stream(event(text) * 5000, *STREAMED[-2:])
    body = prompt(stream=True)
    await bench.run(body)
    came = 5000 * max(1, len(text) // OCTETS_PER_COMPLETION_TOKEN)
    assert came <= used_today(bench) - -(-len(body) // OCTETS_PER_TOKEN) <= came + 2


async def test_a_long_stream_whose_client_leaves_costs_at_least_what_came(bench: RouterBench) -> None:
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=1_000_000))
    bench.nodes[0].stream(event("a") * 5000, *STREAMED[-2:])
    exchange = bench.exchanges.run(bench.request(prompt(stream=True)))
    async with asyncio.timeout(PATIENCE_SECONDS), aclosing(exchange):
        await anext(exchange)
        await anext(exchange)
        await exchange.aclose()
    assert used_today(bench) > 5000


async def test_a_buffered_answer_that_states_nothing_costs_at_least_what_came(bench: RouterBench) -> None:
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=1_000_000))
    bench.nodes[0].chunks = (json.dumps({"id": "x", "choices": [{"message": {"content": "four" * 5000}}]}).encode(),)
    await bench.run(prompt())
    assert used_today(bench) > 5000


async def test_a_short_answer_without_a_bound_costs_what_it_might_have_been(bench: RouterBench) -> None:
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=1_000_000))
    body = prompt()
    await bench.run(body)
    assert used_today(bench) == -(-len(body) // OCTETS_PER_TOKEN) + UNSAID_COMPLETION


async def test_an_embedding_that_states_nothing_costs_its_prompt(bench: RouterBench) -> None:
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=1_000_000))
    body = prompt(input="a")
    bench.nodes[0].chunks = (json.dumps({"data": [{"embedding": [0.25] * 5000}]}).encode(),)
    await bench.run(body, endpoint=EMBEDDINGS)
    assert used_today(bench) == -(-len(body) // OCTETS_PER_TOKEN)


async def test_what_a_stream_says_at_its_start_is_not_what_it_cost(bench: RouterBench) -> None:
    """Anthropic's streams begin with the count of their prompt, and of an answer that has hardly begun."""
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=10_000))
    begun = {"type": "message_start", "message": {"id": "msg_1", "usage": {"input_tokens": 3, "output_tokens": 1}}}
    said = {"type": "content_block_delta", "delta": {"text": "a"}}
    bench.nodes[0].stream(*(b"data: " + json.dumps(event).encode() + b"\n\n" for event in (begun, said, said)))
    exchange = bench.exchanges.run(replace(bench.request(prompt(stream=True, max_tokens=100)), endpoint=MESSAGES))
    async with asyncio.timeout(PATIENCE_SECONDS), aclosing(exchange):
        assert isinstance(await anext(exchange), Started)
        first = await anext(exchange)
        assert isinstance(first, bytes)
        assert b"message_start" in first
        await exchange.aclose()
    assert used_today(bench) > 100
    assert await used(bench) == Counter(requests=1, unmetered=1)


@pytest.mark.parametrize("failure", ["engine", "node", "break", "model"])
async def test_what_fails_costs_nothing(bench: RouterBench, failure: str) -> None:
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=10_000))
    node = bench.nodes[0]
    if failure == "engine":
        node.status, node.chunks = 400, (b'{"error":{}}',)
    elif failure == "node":
        node.refuses = True
    elif failure == "break":
        node.breaks_at = 1
    await bench.run(prompt(model="another" if failure == "model" else MODEL))
    assert used_today(bench) == 0


async def test_a_stream_that_breaks_off_costs_what_came_of_it(bench: RouterBench) -> None:
    """Whoever brings engines to their end with what it asks for must not have all that went out before for nothing."""
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=10_000))
    bench.nodes[0].stream(*[event("a")] * 50)
    bench.nodes[0].breaks_at = 40
    await bench.run(prompt(stream=True, max_tokens=1000))
    assert aborts(bench.only_receipt()) == ["upstream_failed"]
    assert used_today(bench) == 40


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_too_large_to_be_given_was_not_free(bench: RouterBench, stream: bool) -> None:
    """How large it is was asked for: by `n`, by log probabilities, by a stop that never comes."""
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=10**9))
    node = bench.nodes[0]
    if stream:
        node.stream(FINISHING, *[b"data: {}" + b" " * (1 << 20) + b"\n\n"] * 17)
    else:
        node.chunks = (b" " * (1 << 20),) * 17
    body = prompt(stream=stream, max_tokens=100)
    await bench.run(body)
    assert aborts(bench.only_receipt()) == ["answer_undeliverable"]
    assert used_today(bench) >= -(-len(body) // OCTETS_PER_TOKEN) + 100


@pytest.mark.parametrize("stream", [False, True])
async def test_time_that_ran_out_before_anything_came_was_not_free(bench: RouterBench, stream: bool) -> None:
    """Or nodes would work for whoever gives them a little too little time, as often as they like."""
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=10_000))
    bench.nodes[0].waits_before_head = True
    answer = await bench.run(prompt(stream=stream, max_tokens=100), seconds=1.0)
    assert (answer.started.status, len(bench.nodes[0].requests)) == (502, 1)
    assert used_today(bench) > 100


async def test_beyond_the_quota_nothing_is_forwarded(bench: RouterBench) -> None:
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=200))
    assert (await bench.run(prompt(max_tokens=100))).started.status == 200
    answer = await bench.run(prompt(max_tokens=100))
    assert answer.started.status == 429
    error = json.loads(answer.body)["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert int(answer.started.headers["Retry-After"]) == answer.started.retry_seconds
    assert len(bench.nodes[0].requests) == 1
    assert bench.metrics.refusals.numbers["TENANT_QUOTA_EXCEEDED"] == 1


async def test_counting_tokens_uses_none(bench: RouterBench) -> None:
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=10_000))
    bench.nodes[0].chunks = (b'{"input_tokens":7}',)
    assert (await bench.run(prompt(), endpoint=COUNT_TOKENS)).started.status == 200
    assert used_today(bench) == 0
    assert await used(bench) == Counter(requests=1)


@pytest.mark.parametrize("endpoint", [MESSAGES, RESPONSES])
async def test_a_refusal_for_a_limit_is_in_the_protocols_own_words(bench: RouterBench, endpoint: Endpoint) -> None:
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=10))
    answer = await bench.run(prompt(max_tokens=100), endpoint=endpoint)
    assert answer.started.status == 429
    kind = json.loads(answer.body)["error"]["type"]
    assert kind == ("rate_limit_error" if endpoint is MESSAGES else "insufficient_quota")
