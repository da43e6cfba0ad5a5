"""Large bodies are read one at a time and beside the loop, and one tenant's leave the others their turn."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from libs.aci.e2ee.suites import SUITES
from libs.aci.endpoints import CHAT, EMBEDDINGS
from libs.aci.json_values import FEW_VALUES, MOST_VALUES
from libs.transparency.leaf import Kind
from services.router.e2ee.answers import cover
from services.router.e2ee.errors import DecryptionFailed
from services.router.e2ee.opening import MOST_SEALED_VALUES, Envelope, Opening
from services.router.e2ee.window import AcceptanceWindow
from services.router.errors import BodiesBusy, TooManyValues, UpstreamFailed
from services.router.exchange.withholding import BufferedResponse
from services.router.prompt import parse
from services.router.reading import Reading
from services.router.workload.generation import E2eeKey
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench, prompt
from tests.fakes.sealed_prompts import Client, ListedKeys

KEY = E2eeKey.generate(next(iter(SUITES.values())))
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


@contextmanager
def held_up(reading: Reading) -> Iterator[asyncio.Task[bool]]:
    """Keep the thread for requests busy meanwhile."""
    go_on = threading.Event()
    task = asyncio.ensure_future(reading.in_turn("other", FEW_VALUES + 1, go_on.wait))
    try:
        yield task
    finally:
        go_on.set()


async def test_many_large_encrypted_bodies_at_once_are_in_memory_one_at_a_time(opening: Opening) -> None:
    bodies = [numbers(MOST_VALUES - 100) for _ in range(6)]
    with memory() as most:
        ends = await asyncio.gather(
            *(opening.open(secrets.token_hex(16), client().headers(), EMBEDDINGS, body) for body in bodies),
            return_exceptions=True,
        )
        assert most() < MOST_BYTES
    assert {type(end) for end in ends} == {DecryptionFailed}


async def test_many_small_encrypted_bodies_wait_as_they_came(opening: Opening) -> None:
    body = numbers(FEW_VALUES - 100)
    with memory() as most:
        waiting = [opening.open("ab" * 16, client().headers(), EMBEDDINGS, body) for _ in range(300)]
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert most() < MOST_BYTES
    assert {type(end) for end in ends} == {DecryptionFailed}


async def test_an_encrypted_body_of_too_many_values_is_refused_before_they_are_made(opening: Opening) -> None:
    body = numbers(2 * MOST_VALUES)
    with memory() as most:
        with pytest.raises(TooManyValues, match=str(MOST_VALUES)):
            await opening.open("ab" * 16, client().headers(), EMBEDDINGS, body)
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
            await opening.open("ab" * 16, one.headers(), CHAT, one.sealed_chat(parts))
        assert most() < 8 << 20
    few = client()
    opened = await opening.open("ab" * 16, few.headers(), CHAT, few.sealed_chat(b'["a",0.50]'))
    assert json.loads(opened.body)["messages"][0]["content"] == ["a", 0.5]


async def test_a_large_encrypted_body_is_opened_byte_for_byte(opening: Opening) -> None:
    one = client()
    ids = [1.25, *range(2 * FEW_VALUES)]
    opened = await opening.open("ab" * 16, one.headers(), CHAT, one.chat(one.seal("messages.0.content", "é"), x=ids))
    written = json.dumps(ids, separators=(",", ":"))
    assert opened.body == f'{{"model":"m","messages":[{{"role":"user","content":"é"}}],"x":{written}}}'.encode()


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
    said = {"id": "one", "usage": {"prompt_tokens": 7, "completion_tokens": 2}, "data": [0.5] * FEW_VALUES}
    bench.nodes[0].chunks = (json.dumps(said).encode(),)
    await bench.run(prompt())
    assert threads() == {"request-reading", "answer-reading"}
    assert bench.ledger.of(Kind.RECEIPT)[-1]["chat_id"] == "one"


async def test_one_tenants_bodies_leave_the_others_their_turn(reading: Reading) -> None:
    with held_up(reading):
        mine = [asyncio.ensure_future(reading.in_turn("mine", MOST_VALUES, object)) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(BodiesBusy, match="of this tenant"):
            await reading.in_turn("mine", MOST_VALUES, object)
        theirs = asyncio.ensure_future(reading.in_turn("theirs", MOST_VALUES, object))
        assert await reading.request("mine", FEW_VALUES, lambda: "at once") == "at once"
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*mine, theirs)
    assert await reading.in_turn("mine", MOST_VALUES, lambda: "again") == "again"


async def test_all_tenants_bodies_wait_in_a_queue_of_so_many(reading: Reading) -> None:
    with held_up(reading):
        waiting = [
            asyncio.ensure_future(reading.in_turn(f"t{number // 4}", MOST_VALUES, object)) for number in range(15)
        ]
        await asyncio.sleep(0)
        with pytest.raises(BodiesBusy, match="too many large request bodies at once"):
            await reading.in_turn("late", MOST_VALUES, object)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*waiting)


async def test_who_leaves_gives_up_its_turn_and_is_not_read(reading: Reading) -> None:
    made: list[int] = []
    with held_up(reading) as busy:
        gone = [asyncio.ensure_future(reading.in_turn("mine", MOST_VALUES, lambda: made.append(1))) for _ in range(4)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        for task in gone:
            with suppress(asyncio.CancelledError):
                await task
        again = [asyncio.ensure_future(reading.in_turn("mine", MOST_VALUES, object)) for _ in range(4)]
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
    said = (
        b'{"id":"one","usage":{"prompt_tokens":7,"total_tokens":7},"data":[' + b",".join([b"0.5"] * (1 << 20)) + b"]}"
    )
    held.feed(said)
    with memory() as most:
        held.read()
        assert most() < 40 << 20
    assert (held.chat_id, held.tokens.prompt) == ("one", 7)
