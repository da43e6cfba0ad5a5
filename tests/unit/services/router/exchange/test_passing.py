"""What takes long of an answer is done beside the loop, and whoever leaves meanwhile finds nothing done for it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import replace

import pytest

from libs.aci.e2ee.suites import SECP256K1_ALGO, SUITES
from libs.aci.encoding import digest
from libs.aci.endpoints import CHAT
from libs.aci.json_values import FEW_VALUES
from libs.aci.receipt_events import Metered
from libs.policy.tenant_record import Limits
from libs.transparency.leaf import Kind
from services.router.e2ee.answers import cover
from services.router.e2ee.opening import Envelope
from services.router.exchange.notices import Notice
from services.router.exchange.passing import Passing
from services.router.exchange.volume import Volume
from services.router.exchange.withholding import StreamedResponse
from services.router.reading import LITTLE, Reading
from services.router.workload.generation import E2eeKey
from tests.fakes.held_up import held_up, until_an_answer_waits
from tests.fakes.ledgers import TENANT
from tests.fakes.nodes import STREAMED
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench, aborts, prompt, until_waiting
from tests.fakes.sealed_prompts import Client

USAGE = {"prompt_tokens": 7, "completion_tokens": 2}
LARGE = json.dumps({"id": "one", "usage": USAGE, "data": [0.5] * LITTLE}).encode()
KEY = E2eeKey.generate(SUITES[SECP256K1_ALGO])


def long_event(finish: str | None) -> bytes:
    """As an engine has it that tells the probabilities of a long prompt."""
    choice = {"text": "a", "finish_reason": finish, "logprobs": {"token_logprobs": [-0.5] * LITTLE}}
    return b"data: " + json.dumps({"id": "cmpl-1", "usage": USAGE, "choices": [choice]}).encode() + b"\n\n"


@pytest.fixture
async def reading() -> AsyncIterator[Reading]:
    async with Reading() as reading:
        yield reading


@pytest.fixture
def envelope() -> Envelope:
    client = Client(KEY, KEY.suite.key())
    return Envelope(KEY.suite, KEY.key_id, client.private.public, client.binding)


async def left_while_its_answer_waits(bench: RouterBench, *, stream: bool) -> None:
    """Let a client leave while the thread for answers is busy, and its receipt be written meanwhile."""
    reading = bench.exchanges._reading
    with held_up(reading.answer):
        client = asyncio.create_task(bench.run(prompt(stream=stream)))
        await until_an_answer_waits(reading)
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client
        async with bench.issuance.recording():
            await bench.logged()


async def test_of_an_answer_whose_client_leaves_before_it_is_read_nothing_is_read(bench: RouterBench) -> None:
    """Fifty streams of one connection would be read on the loop, all at once."""
    bench.tenant = replace(TENANT, limits=Limits(tokens_per_day=1_000_000))
    bench.nodes[0].chunks = (LARGE,)
    await left_while_its_answer_waits(bench, stream=False)
    receipt = bench.only_receipt()
    assert aborts(receipt) == ["client_disconnected"]
    assert [event for event in receipt.events if isinstance(event, Metered)] == [Metered("one")]
    assert bench.ledger.of(Kind.RECEIPT)[-1].get("chat_id") is None
    assert bench.quotas.counted(TENANT.tenant_id).day_tokens >= len(LARGE) // 4


async def test_a_client_that_leaves_before_a_long_event_is_read_was_sent_what_came_before(bench: RouterBench) -> None:
    bench.nodes[0].stream(STREAMED[0], long_event(None), *STREAMED[2:])
    await left_while_its_answer_waits(bench, stream=True)
    receipt = bench.only_receipt()
    assert (aborts(receipt), receipt.returned.body_hash) == (["client_disconnected"], digest(STREAMED[0]))


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_whose_time_is_over_before_it_can_be_read_ends_so(bench: RouterBench, stream: bool) -> None:
    if stream:
        bench.nodes[0].stream(STREAMED[0], long_event(None) + STREAMED[1] + STREAMED[2][:9], STREAMED[2][9:])
    else:
        bench.nodes[0].chunks = (LARGE,)
    with held_up(bench.exchanges._reading.answer):
        answer = await bench.run(prompt(stream=stream), seconds=7.0)
    assert answer.started.status == (200 if stream else 502)
    assert answer.body.startswith(STREAMED[0] + b"\n\ndata: " if stream else b"{")
    assert b'"type":"upstream_error"' in answer.body
    receipt = bench.only_receipt()
    assert (aborts(receipt), receipt.returned.body_hash) == (["deadline_exceeded"], digest(answer.body))


class ReadBy(StreamedResponse):
    """Tells which threads read it."""

    def __init__(self) -> None:
        super().__init__(CHAT)
        self.threads: list[str] = []

    def read(self, events: Iterable[bytes]) -> list[Notice]:
        self.threads.append(threading.current_thread().name)
        return super().read(events)


async def test_a_long_event_is_read_beside_the_loop(reading: Reading) -> None:
    held = ReadBy()
    covering = cover(None, streams=True, status=200)
    passing = Passing(held, covering, Volume(), reading, "t", lambda: PATIENCE_SECONDS)
    for event in (STREAMED[0] + b"\n\n", long_event(None), STREAMED[3]):
        await passing.part(event)
    assert held.threads == ["MainThread", "answer-reading_0", "MainThread"]


async def test_a_long_event_goes_out_in_its_place(bench: RouterBench) -> None:
    chunks = (STREAMED[0], long_event(None), STREAMED[1], *STREAMED[2:])
    bench.nodes[0].stream(*chunks)
    answer = await bench.run(prompt(stream=True))
    assert answer.body == b"".join(chunks)
    receipt = bench.only_receipt()
    assert [event for event in receipt.events if isinstance(event, Metered)] == [Metered("one", 7, 2)]


async def test_a_long_event_that_is_the_end_is_withheld(bench: RouterBench) -> None:
    end = long_event("stop") + STREAMED[3]
    bench.nodes[0].stream(STREAMED[0], end)
    bench.ledger.waits = True
    out: list[bytes] = []

    async def read() -> None:
        async with aclosing(bench.exchanges.run(bench.request(prompt(stream=True)))) as exchange:
            async for part in exchange:
                if isinstance(part, bytes):
                    out.append(part)

    client = asyncio.create_task(read())
    await until_waiting(bench.ledger.asked)
    assert out == [STREAMED[0]]
    bench.ledger.goes_on.set()
    await client
    assert b"".join(out) == STREAMED[0] + end


async def test_what_an_encrypted_stream_says_is_counted_as_it_was_in_clear(
    reading: Reading, envelope: Envelope
) -> None:
    volume = Volume()
    held, covering = StreamedResponse(CHAT), cover(envelope, streams=True, status=200)
    passing = Passing(held, covering, volume, reading, "t", lambda: PATIENCE_SECONDS)
    said = b"data: " + json.dumps({"choices": [{"delta": {"content": "four" * 10}}]}).encode() + b"\n\n"
    await passing.part(said[:20])
    assert volume.tokens() == 0
    assert b"four" not in await passing.part(said[20:] + b": alive\n\n" + STREAMED[3])
    assert volume.tokens() == 10


async def test_a_small_piece_of_an_encrypted_stream_does_not_wait_for_anothers_large_answer(
    reading: Reading, envelope: Envelope
) -> None:
    covering = cover(envelope, streams=True, status=200)
    held = StreamedResponse(CHAT)
    passing = Passing(held, covering, Volume(), reading, "t", lambda: PATIENCE_SECONDS)
    said = b"data: " + json.dumps({"choices": [{"delta": {"content": "a," * 70}}]}).encode() + b"\n\n"
    assert FEW_VALUES < covering.weight(said) <= LITTLE
    with held_up(reading.answer):
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await passing.part(said)).startswith(b"data: ")


async def test_an_answer_that_takes_many_key_agreements_is_sealed_beside_the_loop(envelope: Envelope) -> None:
    entries = [{"index": place, "embedding": "AAAA"} for place in range(100)]
    body = cover(envelope, streams=False, status=200)
    body.feed(json.dumps({"object": "list", "data": entries}).encode())
    assert body.weight() > FEW_VALUES
    assert cover(envelope, streams=True, status=200).weight(STREAMED[0]) <= FEW_VALUES
