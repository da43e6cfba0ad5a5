"""What reaches an engine and what is made of its answer, with an engine that answers as it is told."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import re
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from libs.aci import endpoints, receipt
from libs.aci.encoding import digest
from libs.aci.endpoints import Endpoint
from libs.aci.json_values import FEW_VALUES, MOST_VALUES
from libs.aci.receipt_events import Generated, PolicyInForce
from libs.errors import MeshError
from libs.identity.agent_key import Secret
from libs.identity.gpu_watch import GpuStanding
from services.node.asked import CacheSaltRefused, ModelNotServed, read_body
from services.node.bodies import BodyReadTooLate
from services.node.calling import Calling
from services.node.channel import Answer, EngineUnavailable
from services.node.engine import EngineLoad
from services.node.generation import (
    MAX_BODY_BYTES,
    BodyTooLarge,
    Claimed,
    Conclusion,
    EndpointNotSupported,
    Generation,
    GpusChangedMeanwhile,
    Head,
    Part,
    Request,
    RequestMalformed,
)
from services.node.opened_with import WeightsKey
from services.node.questions import question
from services.node.receipts import ReceiptSigner, keyset_of
from services.node.refused import BodyRefused
from services.node.requests_fault import RequestsFault
from services.node.salting import SaltKeyMissing, Salts

CHAT = endpoints.CHAT.path
HI = b'[{"role":"user","content":"Hi"}]'
GOOD = b'{"model":"m","messages":%s,"temperature":0.70}' % HI
POLICY = PolicyInForce(7, "sha256:" + "ab" * 32)
SALTS = Salts(Secret(bytes(range(32)), 4))
CLAIMED = Claimed("an engine 1.0", b"\x0a" * 32, {"m": b"\x0b" * 32})


@dataclass
class ToldEngine:
    """Answers every request alike and keeps what it was sent."""

    status: int = 200
    content_type: str = "application/json"
    chunks: tuple[bytes, ...] = (b'{"choices":', b"[]}")
    salted: bool = False
    lacks: frozenset[str] = frozenset()
    requests_faults: tuple[RequestsFault, ...] = ()
    calling: Calling | None = None
    endpoints: tuple[Endpoint, ...] = endpoints.DEFINED
    ready: bool = True
    load: EngineLoad = EngineLoad(running=0, waiting=0, capacity=1)  # noqa: RUF009 - frozen
    bodies: list[bytes] = field(default_factory=list)
    granted: list[float] = field(default_factory=list)
    """How many seconds each request had left."""

    @asynccontextmanager
    async def post(
        self, endpoint: Endpoint, body: bytes, timeout_seconds: float, sequences: int = 1
    ) -> AsyncIterator[Answer]:
        self.bodies.append(body)
        self.granted.append(timeout_seconds)
        yield Answer(self.status, self.content_type, self._chunks())

    async def until_ready(self) -> None: ...

    async def _chunks(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk


async def generate(
    engine: ToldEngine, body: bytes = GOOD, fields: dict[str, str] | None = None
) -> tuple[list[Part], ReceiptSigner]:
    signer = ReceiptSigner()
    request = Request(**({"endpoint": CHAT, "request_id": "r-1", "tenant_id": "t_1"} | (fields or {})), body=body)
    generation = Generation(
        engine, CLAIMED, signer, lambda: POLICY, GpuStanding(), salts=SALTS if engine.salted else None
    )
    async with aclosing(generation.generate(request, 5.0)) as parts:
        return [part async for part in parts], signer


async def test_the_body_reaches_the_engine_byte_for_byte() -> None:
    engine = ToldEngine()
    parts, _ = await generate(engine)
    assert engine.bodies == [GOOD]
    assert parts[:3] == [Head(200, "application/json"), b'{"choices":', b"[]}"]


async def test_an_engine_that_heeds_no_names_is_shown_the_named_tool_alone_and_the_receipt_says_what_it_got() -> None:
    engine = ToldEngine(calling=Calling())
    tools = b'[{"type":"function","function":{"name":"a"}},{"type":"function","function":{"name":"b"}}]'
    body = b'{"model":"m","messages":%s,"tools":%s,"tool_choice":{"type":"function","function":{"name":"b"}}}' % (
        HI,
        tools,
    )
    parts, _ = await generate(engine, body)
    shown = b'{"model":"m","messages":%s,"tools":[{"type":"function","function":{"name":"b"}}],' % HI
    shown += b'"tool_choice":"required","parallel_tool_calls":false}'
    assert engine.bodies == [shown]
    assert isinstance(parts[-1], Conclusion)
    signed = receipt.parse(parts[-1].receipt)
    assert signed.forwarded is not None
    assert (signed.received.body_hash, signed.forwarded.body_hash) == (digest(body), digest(shown))


async def test_a_choice_that_an_engine_would_not_heed_reaches_none() -> None:
    engine = ToldEngine(calling=Calling())
    choice = b'{"type":"function","function":{"name":"b"}}'
    parts, _ = await generate(engine, b'{"model":"m","messages":%s,"tool_choice":%s}' % (HI, choice))
    assert parts[0] == Head(400, "application/json")
    assert isinstance(parts[1], bytes)
    assert b"tool_choice" in parts[1]
    assert engine.bodies == []


async def test_a_body_of_many_values_is_read_beside_the_loop_and_reaches_the_engine_as_it_came() -> None:
    def is_read_aside() -> bool:
        return any(thread.name.startswith("body-reading") for thread in threading.enumerate())

    engine = ToldEngine()
    generation = Generation(engine, CLAIMED, ReceiptSigner(), lambda: POLICY, GpuStanding())
    bodies = [GOOD, b'{"model":"m","messages":%s,"metadata":{"a":[' % HI + b"0.50," * FEW_VALUES + b"0]}}"]
    aside = []
    for body in bodies:
        async with aclosing(generation.generate(Request(CHAT, body, "r", "t"), 5.0)) as parts:
            assert await anext(parts) == Head(200, "application/json")
        aside.append(is_read_aside())
    assert engine.bodies == bodies
    assert aside == [False, True]


@pytest.mark.parametrize(("seconds", "left"), [(2.0, 3.0), (5.0, None), (9.0, None)])
async def test_an_engine_has_the_time_that_reading_the_body_left(seconds: float, left: float | None) -> None:
    engine, now = ToldEngine(), iter([100.0, 100.0 + seconds])
    generation = Generation(engine, CLAIMED, ReceiptSigner(), lambda: POLICY, GpuStanding(), clock=lambda: next(now))
    async with aclosing(generation.generate(Request(CHAT, GOOD, "r", "t"), 5.0)) as parts:
        if left is None:
            with pytest.raises(BodyReadTooLate):
                await anext(parts)
        else:
            assert await anext(parts) == Head(200, "application/json")
    assert engine.granted == ([] if left is None else [left])


async def test_the_receipt_verifies_under_the_keyset_that_the_claimed_key_and_the_day_give() -> None:
    parts, signer = await generate(ToldEngine())
    assert isinstance(parts[-1], Conclusion)
    served_at = receipt.parse(parts[-1].receipt).served_at
    signed = receipt.verify_receipt(parts[-1].receipt, keyset_of(signer.public_key, served_at))
    assert signed.returned.body_hash == "sha256:" + hashlib.sha256(b'{"choices":[]}').hexdigest()
    assert POLICY in signed.events


async def test_a_key_to_a_cache_reaches_no_engine_and_the_receipt_is_for_what_did() -> None:
    for salted in (False, True):
        engine = ToldEngine(salted=salted)
        body = GOOD[:-1] + b',"prompt_cache_key":"of another tenant"}'
        parts, _ = await generate(engine, body)
        assert engine.bodies[0].endswith(GOOD[1:])
        assert isinstance(parts[-1], Conclusion)
        signed = receipt.parse(parts[-1].receipt)
        assert signed.received.body_hash == "sha256:" + hashlib.sha256(body).hexdigest()
        assert signed.forwarded is not None
        assert signed.forwarded.body_hash == "sha256:" + hashlib.sha256(engine.bodies[0]).hexdigest()


async def test_what_the_engine_lacks_is_refused_and_does_not_reach_it() -> None:
    engine = ToldEngine(lacks=frozenset({"image_url"}))
    pictured = GOOD.replace(b'"Hi"', b'[{"type":"image_url","image_url":{"url":"https://localhost/a.png"}}]')
    (head, said, _), _ = await generate(engine, pictured)
    assert head == Head(400, "application/json")
    assert isinstance(said, bytes)
    assert json.loads(said)["error"]["type"] == "invalid_request_error"
    assert engine.bodies == []


async def test_an_engine_with_a_shared_cache_gets_a_salt_for_each_tenant() -> None:
    engine = ToldEngine(salted=True)
    signer = ReceiptSigner()
    generation = Generation(engine, CLAIMED, signer, lambda: POLICY, GpuStanding(), salts=SALTS)
    for tenant in ("a", "a", "b"):
        async with aclosing(generation.generate(Request(CHAT, b" " + GOOD, "r", tenant), 5.0)) as parts:
            conclusion = [part async for part in parts][-1]
    first, again, other = (json.loads(body)["cache_salt"] for body in engine.bodies)
    assert first == again != other
    assert engine.bodies[0].endswith(GOOD[1:])
    assert isinstance(conclusion, Conclusion)
    signed = receipt.parse(conclusion.receipt)
    assert signed.forwarded is not None
    assert signed.forwarded.body_hash == "sha256:" + hashlib.sha256(engine.bodies[2]).hexdigest()
    assert signed.received.body_hash == "sha256:" + hashlib.sha256(b" " + GOOD).hexdigest()


def test_an_engine_with_a_shared_cache_is_not_served_without_salts() -> None:
    with pytest.raises(SaltKeyMissing) as refused:
        Generation(ToldEngine(salted=True), CLAIMED, ReceiptSigner(), lambda: POLICY, GpuStanding())
    assert refused.value.reason == "SALT_KEY_MISSING"


def _generated(parts: list[Part]) -> list[Generated]:
    conclusion = parts[-1]
    assert isinstance(conclusion, Conclusion)
    return [event for event in receipt.parse(conclusion.receipt).events if isinstance(event, Generated)]


async def test_the_receipt_says_what_the_engine_is_and_was_asked_for() -> None:
    body = b'{"model":"m","messages":%s,"metadata":{"temperature":3},"temperature":0.70,"seed":42}' % HI
    usage = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}'
    parts, _ = await generate(ToldEngine(chunks=(usage[:20], usage[20:])), body)
    assert _generated(parts) == [
        Generated("an engine 1.0", "0a" * 32, "0b" * 32, '{"seed":"42","temperature":"0.70"}', None, 3, 5)
    ]


async def test_the_receipt_commits_to_the_salt_that_the_engine_got() -> None:
    engine = ToldEngine(salted=True)
    (generated,) = _generated((await generate(engine))[0])
    salt = json.loads(engine.bodies[0])["cache_salt"]
    assert generated.cache_salt_sha256 == hashlib.sha256(salt.encode()).hexdigest()
    assert generated.cache_salt_key_epoch == 4


async def test_an_answer_that_no_salt_is_for_names_no_epoch_of_its_key() -> None:
    engine = ToldEngine(salted=True)
    where = {"endpoint": endpoints.COUNT_TOKENS.path}
    (counted,) = _generated((await generate(engine, b'{"model":"m","messages":%s}' % HI, where))[0])
    (bare,) = _generated((await generate(ToldEngine()))[0])
    for generated in (counted, bare):
        assert (generated.cache_salt_sha256, generated.cache_salt_key_epoch) == (None, None)


async def test_the_receipt_names_the_key_that_the_weights_were_opened_with() -> None:
    claimed = replace(CLAIMED, weights_key=WeightsKey("weights/m", 3))
    generation = Generation(ToldEngine(), claimed, ReceiptSigner(), lambda: POLICY, GpuStanding())
    (generated,) = _generated(await parts_of(generation))
    assert (generated.weights_key, generated.weights_key_epoch) == ("weights/m", 3)
    (plain,) = _generated((await generate(ToldEngine()))[0])
    assert (plain.weights_key, plain.weights_key_epoch) == (None, None)


async def parts_of(generation: Generation) -> list[Part]:
    async with aclosing(generation.generate(Request(CHAT, GOOD, "r", "t"), 5.0)) as parts:
        return [part async for part in parts]


def naming(named: Iterable[str | None]) -> Generation:
    """What names these GPUs, one after the other as it is asked."""
    told = iter(named)
    return Generation(
        ToldEngine(), CLAIMED, ReceiptSigner(), lambda: POLICY, GpuStanding(), named_gpus=lambda: next(told)
    )


async def test_the_receipt_names_the_gpus_of_the_evidence_that_the_answer_began_under() -> None:
    for named in (['["1"]', '["1"]'], ['["1"]', None]):
        (generated,) = _generated(await parts_of(naming(named)))
        assert generated.gpus == '["1"]'
    (bare,) = _generated(await parts_of(naming([None, None])))
    assert bare.gpus is None


async def test_no_receipt_is_over_an_answer_whose_gpus_became_others() -> None:
    """New evidence may come between two looks at the devices: nothing else has ended the answer then."""
    with pytest.raises(GpusChangedMeanwhile) as refused:
        await parts_of(naming(['["1"]', '["2"]']))
    assert refused.value.reason == "GPUS_CHANGED_MEANWHILE"


async def test_what_reached_no_engine_generated_nothing() -> None:
    assert _generated((await generate(ToldEngine(), b'{"model":"other"}'))[0]) == []


@pytest.mark.parametrize("before", [0, 200_000], ids=["short", "long"])
async def test_a_stream_is_asked_at_its_end_what_it_says_of_its_tokens(before: int) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n'
    chunks = (b'data: {"choices":[{}],"usage":null}\n\n',) * (1 + before // 40) + (
        usage[:30],
        usage[30:],
        b"data: [DONE]\n\n",
    )
    parts, _ = await generate(ToldEngine(content_type="text/event-stream", chunks=chunks))
    (generated,) = _generated(parts)
    assert (generated.prompt_tokens, generated.completion_tokens) == (3, 5)


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b'{"usage":7}', b'{"usage":{"prompt_tokens":-1}}', b'{"x":' + b"[" * 9999]
)
async def test_what_says_nothing_of_its_tokens_is_an_answer_all_the_same(answer: bytes) -> None:
    (generated,) = _generated((await generate(ToldEngine(chunks=(answer,))))[0])
    assert (generated.prompt_tokens, generated.completion_tokens) == (None, None)


async def test_an_unknown_model_is_a_404_with_a_receipt_and_reaches_no_engine() -> None:
    engine = ToldEngine()
    (head, body, conclusion), _ = await generate(engine, b'{"model":"other"}')
    assert head == Head(404, "application/json")
    assert isinstance(body, bytes)
    assert json.loads(body)["error"]["type"] == "not_found_error"
    assert isinstance(conclusion, Conclusion)
    signed = receipt.parse(conclusion.receipt)
    assert (signed.model, signed.forwarded) == (None, None)
    assert engine.bodies == []


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        (b'{"model":"other"}', ModelNotServed),
        (b'{"model":"m","cache_salt":"s"}', CacheSaltRefused),
        (b'{"model":7}', BodyRefused),
        (b"{}", BodyRefused),
        (b"[]", BodyRefused),
        (b"{", BodyRefused),
        (b"\xff", BodyRefused),
        (b'{"model":"m","model":"other"}', BodyRefused),
        (b'{"model":"m","temperature":NaN}', BodyRefused),
        (b'{"model":"m","messages":' + b"[" * 100_000, BodyRefused),
        (b'{"model":"m","messages":[' + b"0," * MOST_VALUES + b"0]}", BodyRefused),
    ],
)
def test_a_body_is_refused_with_its_reason(body: bytes, refusal: type[BodyRefused]) -> None:
    with pytest.raises(BodyRefused) as refused:
        read_body(body, frozenset({"m"}), endpoints.CHAT)
    assert type(refused.value) is refusal


async def test_what_names_another_tenants_image_reaches_no_engine() -> None:
    """Nor does a URL, unless the engine was measured with the domain that it may fetch from."""
    engine = ToldEngine(salted=True)
    url = {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}
    asked = []
    for part in ({"type": "image_url", "image_url": None, "uuid": "X"}, url):
        asked.append(json.dumps({"model": "m", "messages": [{"role": "user", "content": [part]}]}).encode())
        (head, said, conclusion), _ = await generate(engine, asked[-1])
        assert head == Head(400, "application/json")
        assert isinstance(said, bytes)
        assert json.loads(said)["error"]["type"] == "invalid_request_error"
        assert isinstance(conclusion, Conclusion)
        assert receipt.parse(conclusion.receipt).forwarded is None
    assert engine.bodies == []
    generation = Generation(engine, CLAIMED, ReceiptSigner(), lambda: POLICY, GpuStanding(), salts=SALTS, fetches=True)
    for body in asked:
        async with aclosing(generation.generate(Request(CHAT, body, "r", "t"), 5.0)) as parts:
            assert (await anext(parts) == Head(200, "application/json")) is (body == asked[-1])
    assert len(engine.bodies) == 1


@pytest.mark.parametrize("count", [FEW_VALUES // 4, 2 * FEW_VALUES], ids=["read at once", "read aside"])
async def test_what_was_read_of_a_refused_body_is_freed_before_anybody_is_told(count: int) -> None:
    def is_held() -> bool:
        return any(isinstance(each, list) and each[:1] == ["0.30517578125"] for each in gc.get_objects())

    body = b'{"model":"m","nobodys":[' + b"0.30517578125," * count + b"0]}"
    generation = Generation(ToldEngine(), CLAIMED, ReceiptSigner(), lambda: POLICY, GpuStanding())
    async with aclosing(generation.generate(Request(CHAT, body, "r", "t"), 5.0)) as parts:
        assert await anext(parts) == Head(400, "application/json")
        assert not is_held()


async def test_another_endpoint_is_refused() -> None:
    with pytest.raises(EndpointNotSupported):
        await generate(ToldEngine(), fields={"endpoint": "/v1/systemone"})


@pytest.mark.parametrize(
    "fields", [{"request_id": ""}, {"request_id": "a b"}, {"tenant_id": ""}, {"tenant_id": "x" * 65}]
)
async def test_a_malformed_call_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(RequestMalformed):
        await generate(ToldEngine(), fields=fields)


async def test_an_oversized_body_is_refused() -> None:
    with pytest.raises(BodyTooLarge):
        await generate(ToldEngine(), b" " * (MAX_BODY_BYTES + 1))


async def test_an_engines_failure_is_told_without_its_words() -> None:
    parts, _ = await generate(ToldEngine(status=500, chunks=(b'{"error":"/secret/path"}',)))
    assert parts[0] == Head(502, "application/json")
    assert isinstance(parts[1], bytes)
    assert json.loads(parts[1])["error"]["type"] == "upstream_error"
    assert b"secret" not in parts[1]


@pytest.mark.parametrize(
    "engine", [ToldEngine(status=401), ToldEngine(status=307), ToldEngine(content_type="text/html")]
)
async def test_an_engine_that_does_not_serve_this_node_is_unavailable(engine: ToldEngine) -> None:
    with pytest.raises(EngineUnavailable):
        await generate(engine)


async def test_an_endpoint_that_the_engine_does_not_offer_reaches_it_by_no_name() -> None:
    engine = ToldEngine(endpoints=(endpoints.CHAT,))
    for path in ("/v1/embeddings", "/v1/messages", "/v1/chat/completions/", "/v1/messages/batches"):
        with pytest.raises(EndpointNotSupported):
            await generate(engine, fields={"endpoint": path})
    assert engine.bodies == []


@pytest.mark.parametrize("endpoint", endpoints.DEFINED, ids=lambda endpoint: endpoint.path)
async def test_wherever_the_model_runs_there_is_a_salt(endpoint: Endpoint) -> None:
    engine = ToldEngine(salted=True)
    await generate(engine, json.dumps(question(endpoint, "m")).encode(), {"endpoint": endpoint.path})
    assert ("cache_salt" in json.loads(engine.bodies[0])) is endpoint.runs_model


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_an_engines_refusal_at_messages_is_in_anthropics_form_and_receipted_so(status: int) -> None:
    engine = ToldEngine(status=status, chunks=(b'{"error":{"type":"invalid', b'_request_error","message":"why"}}'))
    (head, body, conclusion), _ = await generate(engine, fields={"endpoint": "/v1/messages"})
    assert head == Head(status, "application/json")
    assert isinstance(body, bytes)
    assert (json.loads(body)["type"], json.loads(body)["error"]["message"]) == ("error", "why")
    assert isinstance(conclusion, Conclusion)
    assert receipt.parse(conclusion.receipt).returned.body_hash == "sha256:" + hashlib.sha256(body).hexdigest()


LONG = b'{"error":{"type":"invalid_request_error","message":"' + b"x" * 70_000 + b'"}}'


@pytest.mark.parametrize(
    ("endpoint", "engine"),
    [
        ("/v1/messages", ToldEngine(status=400, chunks=(LONG,))),
        (CHAT, ToldEngine(status=413, content_type="text/plain", chunks=(b"/secret/path",))),
        ("/v1/messages", ToldEngine(status=422, content_type="text/html", chunks=(b"/secret/path",))),
    ],
)
async def test_what_an_engine_refuses_at_length_or_in_another_form_is_a_refusal_in_few_words(
    endpoint: str, engine: ToldEngine
) -> None:
    """That it repeats what it was asked is no silence of the node's, for which all would avoid it."""
    (head, body, conclusion), _ = await generate(engine, fields={"endpoint": endpoint})
    assert head == Head(engine.status, "application/json")
    assert isinstance(body, bytes)
    assert (json.loads(body)["error"]["message"], len(body) < 200) == ("the request was refused", True)
    assert isinstance(conclusion, Conclusion)


async def test_an_engine_that_fails_in_another_form_has_failed_at_this_request() -> None:
    parts, _ = await generate(ToldEngine(status=500, content_type="text/plain", chunks=(b"Internal Server Error",)))
    assert parts[0] == Head(502, "application/json")


TOO_MANY = RequestsFault(re.compile(r"input \([0-9]+ tokens\) is too large"), "an input must be shorter")


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b'{"error":{"message":"input (9 tokens) is too large to process"}}', 400),
        (b'{"error":{"message":"bad: input (9 tokens) is too large to process"}}', 502),
        (b'{"error":{"message":["input (9 tokens) is too large to process"]}}', 502),
        (b'{"error":"input (9 tokens) is too large to process"}', 502),
        (b"input (9 tokens) is too large to process", 502),
        (b'{"error":{"message":"input (9 tokens) is too large to process ' + b"x" * 70_000 + b'"}}', 502),
        (b"[" * 9999, 502),
    ],
)
async def test_what_an_engine_says_of_a_request_that_is_at_fault_is_told_as_a_refusal(said: bytes, status: int) -> None:
    engine = ToldEngine(status=500, chunks=(said,), requests_faults=(TOO_MANY,))
    (head, body, _), _ = await generate(engine)
    assert head == Head(status, "application/json")
    assert isinstance(body, bytes)
    error = json.loads(body)["error"]
    assert (error["type"], error["message"] == TOO_MANY.told) == (
        ("invalid_request_error", True) if status == 400 else ("upstream_error", False)
    )


async def test_this_nodes_own_refusals_at_messages_are_in_anthropics_form() -> None:
    for engine, body in ((ToldEngine(), b'{"model":"other"}'), (ToldEngine(status=500), GOOD)):
        (_, said, _), _ = await generate(engine, body, {"endpoint": "/v1/messages"})
        assert isinstance(said, bytes)
        assert json.loads(said)["type"] == "error"


async def test_nothing_reaches_an_engine_whose_gpus_are_doubted() -> None:
    engine, gpus = ToldEngine(), GpuStanding()
    gpus.doubt("GPU_CONFIDENTIAL_MODE_OFF", frozenset())
    generation = Generation(engine, CLAIMED, ReceiptSigner(), lambda: POLICY, gpus)
    with pytest.raises(MeshError) as refusal:
        async with aclosing(generation.generate(Request(CHAT, GOOD, "r", "t"), 5.0)) as parts:
            await anext(parts)
    assert refusal.value.reason == "GPUS_NOT_JUDGED"
    assert engine.bodies == []


async def test_an_answer_ends_when_the_gpus_are_others_and_only_then() -> None:
    ends = asyncio.Event()

    class EndlessEngine(ToldEngine):
        async def _chunks(self) -> AsyncIterator[bytes]:
            yield b"one"
            await ends.wait()
            yield b"two"

    async def answers(gpus: GpuStanding) -> list[Part]:
        generation = Generation(EndlessEngine(), CLAIMED, ReceiptSigner(), lambda: POLICY, gpus)
        async with aclosing(generation.generate(Request(CHAT, GOOD, "r", "t"), 5.0)) as parts:
            return [part async for part in parts]

    doubted, changed = GpuStanding(), GpuStanding()
    goes_on, is_ended = asyncio.create_task(answers(doubted)), asyncio.create_task(answers(changed))
    for _ in range(10):
        await asyncio.sleep(0)
    doubted.doubt("GUEST_UNAVAILABLE", frozenset())
    changed.doubt("GPU_CHANGED", frozenset())
    changed.end_running()
    with pytest.raises(MeshError) as refusal:
        await is_ended
    assert refusal.value.reason == "GPUS_NOT_JUDGED"
    ends.set()
    assert (await goes_on)[1:3] == [b"one", b"two"]
