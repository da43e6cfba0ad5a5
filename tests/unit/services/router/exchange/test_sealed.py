"""An exchange that is encrypted: what goes out, what the node gets, and what its receipt is over."""

from __future__ import annotations

import hashlib
import json

import pytest

from libs.aci.encoding import digest
from libs.aci.receipt import Receipt
from libs.aci.receipt_events import Aborted, Encrypted, ServedByNode
from libs.transparency.leaf import Kind
from tests.fakes.leases import MODEL
from tests.fakes.nodes import STREAMED
from tests.fakes.routers import RouterBench
from tests.fakes.sealed_prompts import Client

PATH = "choices.0.delta.content"


@pytest.fixture
def client(bench: RouterBench) -> Client:
    key = bench.workload.newest.e2ee_keys[0]
    return Client(key, key.suite.key(), MODEL)


def sealed_stream(client: Client) -> bytes:
    return client.chat(client.seal("messages.0.content", "hi"), stream=True)


def contents(body: bytes) -> list[str]:
    events = [piece.removeprefix(b"data: ") for piece in body.split(b"\n\n")]
    found = [json.loads(event) for event in events if event.startswith(b'{"id"')]
    return [choice["delta"]["content"] for event in found for choice in event["choices"] if choice["delta"]]


def kinds(receipt: Receipt) -> list[type]:
    return [type(event) for event in receipt.events]


async def test_the_receipt_is_over_what_was_asked_and_what_goes_out(bench: RouterBench, client: Client) -> None:
    node = bench.nodes[0]
    node.stream()
    answer = await bench.run(sealed_stream(client), sealing=client.headers())
    restored = client.chat("hi", stream=True).replace(b", ", b",").replace(b": ", b":")
    assert [request.body for request in node.requests] == [restored]
    assert answer.started.sealed == client.key.suite.algo
    assert [client.open(PATH, value, "chatcmpl-2") for value in contents(answer.body)] == ["a", "b"]
    receipt = bench.only_receipt()
    assert receipt.received.body_hash == digest(restored)
    assert receipt.returned.body_hash == digest(answer.body)
    assert [event for event in receipt.events if isinstance(event, Encrypted)] == [
        Encrypted("2", client.key.suite.algo, client.key.key_id, hashlib.sha256(client.private.public).hexdigest())
    ]


async def test_what_a_node_says_of_its_engine_between_two_chunks_is_no_event(
    bench: RouterBench, client: Client
) -> None:
    bench.nodes[0].stream(b"", STREAMED[0][:20], b"", STREAMED[0][20:], b"", *STREAMED[1:], b"")
    answer = await bench.run(sealed_stream(client), sealing=client.headers())
    assert [client.open(PATH, value, "chatcmpl-2") for value in contents(answer.body)] == ["a", "b"]
    assert (b"" in answer.parts, bench.only_receipt().returned.body_hash) == (False, digest(answer.body))


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
async def test_no_hash_of_the_answer_in_clear_is_in_the_receipt(
    bench: RouterBench, client: Client, stream: bool
) -> None:
    """A short answer can be guessed by its hash, which the node's own receipt has."""
    node = bench.nodes[0]
    if stream:
        node.stream()
    answer = await bench.run(sealed_stream(client) if stream else client.sealed_chat(), sealing=client.headers())
    assert answer.started.sealed is not None
    (served,) = [event for event in bench.only_receipt().events if isinstance(event, ServedByNode)]
    assert served.receipt is None
    assert digest(b"".join(node.chunks)) not in json.dumps(bench.ledger.of(Kind.RECEIPT)[-1])


async def test_what_cannot_be_opened_is_refused_with_a_receipt_over_what_came(
    bench: RouterBench, client: Client
) -> None:
    body = client.chat("in clear")
    answer = await bench.run(body, sealing=client.headers())
    assert (answer.started.status, answer.started.sealed) == (400, None)
    assert not bench.nodes[0].requests
    receipt = bench.only_receipt()
    assert receipt.received.body_hash == digest(body)
    assert Encrypted not in kinds(receipt)


async def test_a_refusal_of_what_was_opened_is_not_called_encrypted(bench: RouterBench, client: Client) -> None:
    other = Client(client.key, client.private, "unknown")
    answer = await bench.run(other.sealed_chat(), sealing=other.headers())
    assert (answer.started.status, answer.started.sealed) == (404, None)
    assert Encrypted in kinds(bench.only_receipt())


@pytest.mark.parametrize("chunk", [b"data: what was said\n\n", b'data: {"choices":["what was said"]}\n\n'])
async def test_what_cannot_be_sealed_ends_a_stream(bench: RouterBench, client: Client, chunk: bytes) -> None:
    bench.nodes[0].stream(STREAMED[0], chunk, STREAMED[3])
    answer = await bench.run(sealed_stream(client), sealing=client.headers())
    assert [client.open(PATH, value, "chatcmpl-2") for value in contents(answer.body)] == ["a"]
    assert b"said" not in answer.body
    assert b'"type":"upstream_error"' in answer.body
    receipt = bench.only_receipt()
    assert receipt.returned.body_hash == digest(answer.body)
    assert [event.reason for event in receipt.events if isinstance(event, Aborted)] == ["answer_undeliverable"]


async def test_a_node_that_breaks_off_within_an_event_leaves_none_of_it(bench: RouterBench, client: Client) -> None:
    node = bench.nodes[0]
    node.stream(STREAMED[0], b'data: {"id":"chatcmpl-2","choices":[{"delta":{"content":"said"', b"")
    node.breaks_at = 2
    answer = await bench.run(sealed_stream(client), sealing=client.headers())
    assert b"said" not in answer.body
    assert b'"type":"upstream_error"' in answer.body
    assert bench.only_receipt().returned.body_hash == digest(answer.body)


async def test_an_answer_that_is_no_json_is_a_failure_and_not_called_encrypted(
    bench: RouterBench, client: Client
) -> None:
    bench.nodes[0].chunks = (b"what was ", b"said")
    answer = await bench.run(client.sealed_chat("hi"), sealing=client.headers())
    assert (answer.started.status, answer.started.sealed) == (502, None)
    assert b"said" not in answer.body
    assert bench.only_receipt().returned.body_hash == digest(answer.body)


async def test_the_words_of_an_engine_that_refuses_stay_here(bench: RouterBench, client: Client) -> None:
    node = bench.nodes[0]
    node.status = 400
    node.chunks = (b'{"error":{"type":"too_long","message":"hi was too long"}}',)
    answer = await bench.run(client.sealed_chat("hi"), sealing=client.headers())
    assert (answer.started.status, answer.started.sealed) == (400, None)
    assert json.loads(answer.body)["error"]["type"] == "too_long"
    assert b"hi was" not in answer.body
