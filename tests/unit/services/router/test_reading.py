"""What takes long to read is read one at a time and beside the loop, tenants in turn, within its request's time."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import pytest

from libs.aci.e2ee.suites import SECP256K1_ALGO, SUITES
from libs.aci.endpoints import CHAT, EMBEDDINGS, Endpoint
from libs.aci.json_values import FEW_VALUES, MOST_VALUES
from libs.aci.receipt_events import UpstreamFailed as NoUpstream
from libs.transparency.leaf import Kind
from services.router.e2ee.answers import cover
from services.router.e2ee.errors import DecryptionFailed
from services.router.e2ee.opening import MOST_FIELDS, MOST_SEALED_VALUES, Envelope, Opened, Opening
from services.router.e2ee.window import AcceptanceWindow
from services.router.errors import BodiesBusy, TooManyValues, UpstreamFailed
from services.router.exchange.withholding import BufferedResponse
from services.router.prompt import parse
from services.router.reading import LITTLE, Reading
from services.router.workload.generation import E2eeKey
from tests.fakes.held_up import Line, held_up
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench, aborts, prompt
from tests.fakes.sealed_prompts import Client, ListedKeys

T = TypeVar("T")

KEY = E2eeKey.generate(SUITES[SECP256K1_ALGO])
MOST_BYTES = 96 << 20
"""One body's values take 30 MB, two writings of it a few; of six at once they would be 180."""


@pytest.fixture
async def reading() -> AsyncIterator[Reading]:
    async with Reading() as reading:
        yield reading


@pytest.fixture
def opening(reading: Reading) -> Opening:
    return Opening(ListedKeys(KEY), AcceptanceWindow(), reading)


def client() -> Client:
    return Client(KEY, KEY.suite.key())


def numbers(count: int, **members: object) -> bytes:
    """A body of about so many values."""
    return prompt(input=[], **members).replace(b'"input":[]', b'"input":[' + b",".join([b"0"] * count) + b"]")


@contextmanager
def memory() -> Iterator[Callable[[], int]]:
    """Give what says how many bytes more than now there were at most."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield lambda: tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


async def opened(opening: Opening, one: Client, body: bytes, endpoint: Endpoint = EMBEDDINGS) -> Opened:
    return await opening.open("ab" * 16, PATIENCE_SECONDS, one.headers(), endpoint, body)


def read(reading: Reading, tenant_id: str, work: Callable[[], T], values: int = MOST_VALUES) -> asyncio.Task[T]:
    return asyncio.ensure_future(reading.request(tenant_id, values, PATIENCE_SECONDS, work))


async def test_many_large_encrypted_bodies_at_once_are_in_memory_one_at_a_time(opening: Opening) -> None:
    bodies = [numbers(MOST_VALUES - 100) for _ in range(6)]
    with memory() as most:
        ends = await asyncio.gather(
            *(
                opening.open(secrets.token_hex(16), PATIENCE_SECONDS, client().headers(), EMBEDDINGS, body)
                for body in bodies
            ),
            return_exceptions=True,
        )
        assert most() < MOST_BYTES
    assert {type(end) for end in ends} == {DecryptionFailed}


async def test_many_small_encrypted_bodies_wait_as_they_came(opening: Opening) -> None:
    body = numbers(FEW_VALUES - 100)
    with memory() as most:
        waiting = [opened(opening, client(), body) for _ in range(200)]
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert most() < MOST_BYTES
    assert {type(end) for end in ends} == {DecryptionFailed}


async def test_an_encrypted_body_of_too_many_values_is_refused_before_they_are_made(opening: Opening) -> None:
    body = numbers(2 * MOST_VALUES)
    with memory() as most:
        with pytest.raises(TooManyValues, match=str(MOST_VALUES)):
            await opened(opening, client(), body)
        assert most() < 16 << 20


async def test_what_is_refused_keeps_no_values_until_its_receipt_is_logged(bench: RouterBench) -> None:
    bodies = [numbers(MOST_VALUES - 100, stream="no") for _ in range(4)]
    bench.ledger.waits = True
    with memory():
        before = tracemalloc.get_traced_memory()[0]
        answers = [asyncio.ensure_future(bench.run(body)) for body in bodies]
        for _ in answers:
            await bench.logged()
        assert tracemalloc.get_traced_memory()[0] - before < 16 << 20
    bench.ledger.goes_on.set()
    assert [(await answer).started.status for answer in answers] == [400] * 4


async def test_a_sealed_content_of_too_many_values_is_refused_before_they_are_made(opening: Opening) -> None:
    one = client()
    parts = b"[" + b",".join([b"0"] * MOST_SEALED_VALUES * 8) + b"]"
    with memory() as most:
        with pytest.raises(TooManyValues):
            await opened(opening, one, one.sealed_chat(parts), CHAT)
        assert most() < 8 << 20
    few = client()
    clear = await opened(opening, few, few.sealed_chat(b'["a",0.50]'), CHAT)
    assert json.loads(clear.body)["messages"][0]["content"] == ["a", 0.5]


@pytest.mark.parametrize(("contents", "refused"), [(2, False), (3, True), (15, True)])
async def test_sealed_contents_have_their_values_together(opening: Opening, contents: int, refused: bool) -> None:
    one, parts = client(), b"[" + b",".join([b"0"] * (MOST_SEALED_VALUES // 2 - 2)) + b"]"
    messages = [{"role": "user", "content": one.seal(f"messages.{place}.content", parts)} for place in range(contents)]
    body = json.dumps({"model": "m", "messages": messages}).encode()
    with memory() as most:
        if refused:
            with pytest.raises(TooManyValues):
                await opened(opening, one, body, CHAT)
        else:
            assert len((await opened(opening, one, body, CHAT)).body) > MOST_SEALED_VALUES
        assert most() < 8 << 20


async def test_a_text_that_begins_as_a_list_takes_no_values_from_others(opening: Opening) -> None:
    one, text = client(), "[1,2] and so on" + "," * (MOST_SEALED_VALUES - 100)
    messages = [{"role": "user", "content": one.seal(f"messages.{place}.content", text)} for place in range(3)]
    clear = await opened(opening, one, json.dumps({"model": "m", "messages": messages}).encode(), CHAT)
    assert [message["content"] for message in json.loads(clear.body)["messages"]] == [text] * 3


async def test_a_large_encrypted_body_is_opened_byte_for_byte(opening: Opening) -> None:
    one = client()
    ids = [1.25, *range(2 * FEW_VALUES)]
    clear = await opened(opening, one, one.chat(one.seal("messages.0.content", "é"), x=ids), CHAT)
    written = json.dumps(ids, separators=(",", ":"))
    assert clear.body == f'{{"model":"m","messages":[{{"role":"user","content":"é"}}],"x":{written}}}'.encode()


def test_a_body_of_too_many_values_is_refused_before_they_are_made() -> None:
    body = numbers(2 * MOST_VALUES)
    with memory() as most:
        with pytest.raises(TooManyValues) as refused:
            parse(body, EMBEDDINGS)
        assert most() < 16 << 20
    assert (refused.value.status, refused.value.reason) == (400, "BODY_VALUES_TOO_MANY")


def test_a_long_text_full_of_separators_is_one_value() -> None:
    text = 'a,b:{"c":[1,2]}\n' * (MOST_VALUES // 4)
    assert parse(prompt(messages=[{"role": "user", "content": text}]), CHAT).model


async def test_requests_and_answers_of_many_values_are_read_beside_the_loop(bench: RouterBench) -> None:
    def threads() -> set[str]:
        names = {thread.name.partition("_")[0] for thread in threading.enumerate()}
        return names & {"request-reading", "answer-reading"}

    assert (await bench.run(prompt())).started.status == 200
    assert threads() == set()
    assert (await bench.run(numbers(FEW_VALUES))).started.status == 200
    assert threads() == {"request-reading"}
    said = {"id": "one", "usage": {"prompt_tokens": 7, "completion_tokens": 2}, "data": [0.5] * LITTLE}
    bench.nodes[0].chunks = (json.dumps(said).encode(),)
    await bench.run(prompt())
    assert threads() == {"request-reading", "answer-reading"}
    assert bench.ledger.of(Kind.RECEIPT)[-1]["chat_id"] == "one"


async def test_one_tenants_bodies_leave_the_others_their_turn(reading: Reading) -> None:
    with held_up(reading.request):
        mine = [read(reading, "mine", object) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(BodiesBusy, match="of this tenant"):
            await read(reading, "mine", object)
        theirs = read(reading, "theirs", object)
        assert await read(reading, "mine", lambda: "at once", FEW_VALUES) == "at once"
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*mine, theirs)
    assert await read(reading, "mine", lambda: "again") == "again"


@pytest.mark.parametrize("answers", [False, True], ids=["requests", "answers"])
async def test_tenants_are_read_in_turn_however_much_each_has(reading: Reading, answers: bool) -> None:
    order: list[str] = []
    line: Line = reading.answer if answers else reading.request
    with held_up(line):
        tasks = [
            asyncio.ensure_future(line(who, LITTLE + 1, PATIENCE_SECONDS, partial(order.append, who)))
            for who in ("a", "a", "a", "b", "c")
        ]
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*tasks)
    assert order == ["a", "b", "c", "a", "a"]


async def test_a_sealed_field_counts_as_what_it_takes_to_open(opening: Opening, reading: Reading) -> None:
    """Or two hundred bodies of a thousand key agreements each wait at once, for minutes."""
    body = json.dumps({"model": "m", "input": ["ab" * KEY.suite.public_bytes] * MOST_FIELDS}).encode()
    with held_up(reading.request):
        waiting = [asyncio.ensure_future(opened(opening, client(), body)) for _ in range(8)]
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_SECONDS):
        ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(ends[0], DecryptionFailed)
    assert [type(end) for end in ends].count(BodiesBusy) >= 4


async def test_what_is_opened_soon_does_not_wait_for_what_takes_long(opening: Opening, reading: Reading) -> None:
    one = client()
    with held_up(reading.request):
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert b"secret" in (await opened(opening, one, one.sealed_chat(), CHAT)).body


async def test_what_of_an_answer_takes_little_does_not_wait_for_what_takes_long(reading: Reading) -> None:
    with held_up(reading.answer):
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_SECONDS):
            by = await reading.answer("mine", LITTLE, PATIENCE_SECONDS, lambda: threading.current_thread().name)
    assert by == "answer-passing_0"


async def test_nothing_is_opened_in_the_threads_that_keep_receipts(opening: Opening) -> None:
    one, go_on, loop = client(), threading.Event(), asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    busy = loop.run_in_executor(None, go_on.wait)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert b"secret" in (await opened(opening, one, one.sealed_chat(), CHAT)).body
    finally:
        go_on.set()
        await busy


@pytest.mark.parametrize("sealed", [False, True], ids=["in clear", "encrypted"])
async def test_whose_time_is_over_before_its_body_can_be_read_is_told_so_with_a_receipt(
    bench: RouterBench, sealed: bool
) -> None:
    """Nobody says that the client was too slow, nor is the ledger left with no time."""
    key = bench.workload.newest.e2ee_keys[0]
    sealing = Client(key, key.suite.key()).headers() if sealed else None
    with held_up(bench.exchanges._reading.request):
        await asyncio.sleep(0)
        answer = await bench.run(numbers(2 * LITTLE), seconds=6.0, sealing=sealing)
    assert (answer.started.status, answer.started.retry_seconds) == (503, 1)
    receipt = bench.only_receipt()
    assert isinstance(receipt.upstream, NoUpstream)
    assert (receipt.upstream.reason, aborts(receipt)) == ("bodies_busy", [])
    assert not bench.nodes[0].requests


async def test_who_leaves_gives_up_its_turn_and_is_not_read(reading: Reading) -> None:
    made: list[int] = []
    with held_up(reading.request) as busy:
        gone = [read(reading, "mine", lambda: made.append(1)) for _ in range(4)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        for task in gone:
            with suppress(asyncio.CancelledError):
                await task
        again = [read(reading, "mine", object) for _ in range(4)]
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(busy, *again)
    assert made == []


def _envelope() -> Envelope:
    return Envelope(KEY.suite, "k", KEY.private.public, client().binding)


def test_an_answer_of_too_many_values_is_not_sealed() -> None:
    answer = b'{"object":"list","data":[' + b",".join([b"0"] * (1 << 21)) + b"]}"
    sealing = cover(_envelope(), streams=False, status=200)
    sealing.feed(answer)
    with memory() as most:
        with pytest.raises(UpstreamFailed, match="JSON values"):
            sealing.finish()
        assert most() < 32 << 20


def test_the_numbers_of_an_answer_that_is_read_for_its_tokens_take_no_memory() -> None:
    held = BufferedResponse(EMBEDDINGS)
    body = (
        b'{"id":"one","usage":{"prompt_tokens":7,"total_tokens":7},"data":[' + b",".join([b"0.5"] * (1 << 20)) + b"]}"
    )
    held.feed(body)
    with memory() as most:
        said = held.read()
        assert most() < 40 << 20
    assert (said.chat_id, said.tokens.prompt) == ("one", 7)
