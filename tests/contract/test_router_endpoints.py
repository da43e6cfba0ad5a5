"""The router's other prompt endpoints over real TLS: keys and errors as their own clients have them, and receipts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from libs.aci.encoding import digest
from libs.aci.endpoints import DEFINED, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint
from libs.aci.receipt import verify_receipt
from tests.fakes.https_clients import KEY, MAX_BODY_BYTES, OTHER_KEY, SETTINGS, Site, https_site
from tests.fakes.raw_http2 import get, post, raw_http2
from tests.fakes.routers import CHAT, PATIENCE_SECONDS, prompt

MESSAGE = b'{"id":"msg_1","type":"message","role":"assistant","content":[],"stop_reason":"end_turn"}'
RESPONSE = b'{"id":"resp_1","object":"response","status":"completed","output":[]}'
STREAMED_MESSAGE = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_2"}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"a"}}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)
STREAMED_RESPONSE = (
    b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_2"},"sequence_number":0}\n\n',
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":1}\n\n',
    b'event: response.completed\ndata: {"type":"response.completed","sequence_number":2}\n\n',
)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with https_site(tmp_path) as running:
        yield running


@pytest.mark.parametrize(
    ("endpoint", "chunks", "identifier"),
    [
        (MESSAGES, (MESSAGE,), "msg_1"),
        (MESSAGES, STREAMED_MESSAGE, "msg_2"),
        (RESPONSES, (RESPONSE,), "resp_1"),
        (RESPONSES, STREAMED_RESPONSE, "resp_2"),
    ],
    ids=["message", "streamed message", "response", "streamed response"],
)
async def test_an_answer_comes_as_it_is_and_its_own_id_finds_its_receipt(
    site: Site, endpoint: Endpoint, chunks: tuple[bytes, ...], identifier: str
) -> None:
    node, streams = site.bench.nodes[0], len(chunks) > 1
    node.chunks = chunks
    if streams:
        node.stream(*chunks)
    response, body = await site.ask("POST", endpoint.path, key=KEY, body=prompt(stream=streams))
    assert (response.status, body) == (200, b"".join(chunks))
    assert node.requests[0].endpoint == endpoint.path
    for name in (identifier, response.headers["X-Receipt-Id"]):
        found, document = await site.ask("GET", f"/v1/aci/receipts/{name}", key=KEY)
        assert found.status == 200
        receipt = verify_receipt(document, site.bench.workload.keyset)
        assert (receipt.endpoint, receipt.chat_id) == (endpoint.path, identifier)
        assert receipt.returned.body_hash == digest(body)
        stranger, _ = await site.ask("GET", f"/v1/aci/receipts/{name}", key=OTHER_KEY)
        assert stranger.status == 404


@pytest.mark.parametrize(("endpoint", "chunks"), [(MESSAGES, STREAMED_MESSAGE), (RESPONSES, STREAMED_RESPONSE)])
async def test_the_end_of_a_stream_waits_for_its_receipt_in_every_protocol(
    site: Site, endpoint: Endpoint, chunks: tuple[bytes, ...]
) -> None:
    site.bench.nodes[0].stream(*chunks)
    site.bench.ledger.silent = True
    response, body = await site.ask("POST", endpoint.path, key=KEY, body=prompt(stream=True))
    assert response.status == 200
    ending = 2 if endpoint is MESSAGES else 1
    sent, _, error = body.partition(b"\n\nevent: error\ndata: ")
    assert sent + b"\n\n" == b"".join(chunks[:-ending]) + b"\n\n"
    said = json.loads(error)
    named = said["error"]["type"] if endpoint is MESSAGES else said["code"]
    assert named == ("api_error" if endpoint is MESSAGES else "ledger_unavailable")


async def test_embeddings_are_never_streamed(site: Site) -> None:
    node = site.bench.nodes[0]
    node.chunks = (b'{"object":"list","data":[]}',)
    response, body = await site.ask("POST", EMBEDDINGS.path, key=KEY, body=prompt(stream=True))
    assert (response.content_type, body) == ("application/json", node.chunks[0])


@pytest.mark.parametrize("path", [MESSAGES.path, "/v1/chat/completions"])
async def test_a_key_may_come_as_anthropics_clients_send_it(site: Site, path: str) -> None:
    site.bench.nodes[0].chunks = (MESSAGE,)
    headers: dict[str, Any] = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    response, _ = await site.ask("POST", path, body=prompt(), **headers)
    assert response.status == 200
    for document in ("/v1/models", f"/v1/aci/receipts/{response.headers['X-Receipt-Id']}"):
        fetched, _ = await site.ask("GET", document, **headers)
        assert fetched.status == 200


async def test_of_two_keys_that_differ_neither_is_taken(site: Site) -> None:
    for first, second in ((KEY, OTHER_KEY), (OTHER_KEY, KEY)):
        response, body = await site.ask("POST", MESSAGES.path, key=first, body=prompt(), **{"x-api-key": second})
        assert (response.status, json.loads(body)["error"]["type"]) == (400, "invalid_request_error")
        assert "X-Receipt-Id" not in response.headers
    assert site.bench.nodes[0].requests == []


@pytest.mark.parametrize(
    ("method", "path", "key", "body", "status", "kind"),
    [
        ("POST", MESSAGES.path, None, b"{}", 401, "authentication_error"),
        ("POST", MESSAGES.path, "sk-wrong", b"{}", 401, "authentication_error"),
        ("GET", MESSAGES.path, KEY, None, 405, "invalid_request_error"),
        ("POST", MESSAGES.path, KEY, b"{", 400, "invalid_request_error"),
        ("POST", MESSAGES.path, KEY, b'{"model":"other"}', 404, "not_found_error"),
        ("POST", MESSAGES.path, KEY, b" " * (MAX_BODY_BYTES + 1), 413, "request_too_large"),
        ("POST", f"{MESSAGES.path}/batches", KEY, b"{}", 404, "not_found_error"),
        ("POST", f"{MESSAGES.path}/count_tokens", None, b"{}", 401, "authentication_error"),
    ],
)
async def test_a_refusal_at_messages_is_in_anthropics_form(
    site: Site, method: str, path: str, key: str | None, body: bytes | None, status: int, kind: str
) -> None:
    response, said = await site.ask(method, path, key=key, body=body)
    read = json.loads(said)
    assert (response.status, read["type"], read["error"]["type"]) == (status, "error", kind)
    assert read["error"]["message"]


LONG = "x" * 20_000
TWICE = "Host: a\r\nHost: b"


@pytest.mark.parametrize(
    ("line", "fields", "status", "kind"),
    [
        (f"POST {MESSAGES.path} HTTP/1.1", f"Host: a\r\nX-Long: {LONG}", 431, "request_too_large"),
        (f"POST {MESSAGES.path}?{LONG} HTTP/1.1", "Host: a", 414, "request_too_large"),
        (f"POST {MESSAGES.path}/{LONG} HTTP/1.1", "Host: a", 414, "request_too_large"),
        (f"\r\nPOST {MESSAGES.path} HTTP/1.1", "no field", 400, "invalid_request_error"),
        (f"POST {MESSAGES.path}?a=b HTTP/1.1", TWICE, 400, "invalid_request_error"),
    ],
    ids=["head", "query", "path", "unreadable", "two hosts"],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_what_is_no_request_for_messages_is_refused_in_anthropics_form(
    site: Site, line: str, fields: str, status: int, kind: str, *, at_once: bool
) -> None:
    head = f"{line}\r\n{fields}\r\n\r\n".encode()
    async with asyncio.timeout(PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=site.tls)
        if not at_once:
            writer.write(head[:9])
            await site.ask("GET", "/health")  # The router reads this later than that.
            head = head[9:]
        writer.write(head)
        answer, _, said = (await reader.read()).partition(b"\r\n\r\n")
        writer.transport.abort()
    read = json.loads(said)
    assert int(answer.split()[1]) == status
    assert (read["type"], read["error"]["type"]) == ("error", kind)


async def test_who_asks_for_something_else_before_is_told_in_the_form_of_each(site: Site) -> None:
    first = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    answers = await site.raw(first + f"POST {MESSAGES.path} HTTP/1.1\r\nHost: b@a\r\n\r\n".encode())
    assert json.loads(answers.rpartition(b"\r\n\r\n")[2])["type"] == "error"


async def test_what_is_no_request_for_another_path_is_refused_in_openais_form(site: Site) -> None:
    for path in (f"{MESSAGES.path}{LONG}", f"/?{MESSAGES.path}/{LONG}", CHAT + LONG):
        said = (await site.raw(f"POST {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())).partition(b"\r\n\r\n")[2]
        assert json.loads(said).keys() == {"error"}
        assert json.loads(said)["error"]["type"] == "uri_too_long"


async def test_a_request_for_messages_on_a_connection_that_ends_is_refused_in_anthropics_form(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, max_connection_requests=1, body_seconds=PATIENCE_SECONDS) as site,
        raw_http2(site.port, site.tls_h2) as client,
    ):
        client.send(client.head(1, post(CHAT, KEY)))  # Its body does not come, so the connection cannot end.
        client.ask(3, get(f"{MESSAGES.path}?beta=true"))
        client.ask(5, get(CHAT))
        at_messages, elsewhere = await client.answer(3), await client.answer(5)
        assert at_messages.refusal == (529, "overloaded_error")
        assert json.loads(at_messages.body)["type"] == "error"
        assert elsewhere.refusal == (503, "service_unavailable")


async def test_a_service_that_cannot_answer_now_is_overloaded_to_anthropics_clients(site: Site) -> None:
    site.bench.member.policy.fresh = False
    response, said = await site.ask("POST", MESSAGES.path, key=KEY, body=prompt())
    assert (response.status, json.loads(said)["error"]["type"]) == (529, "overloaded_error")


@pytest.mark.parametrize("endpoint", DEFINED, ids=lambda endpoint: endpoint.path)
async def test_an_endpoint_that_no_node_offers_is_refused_with_a_receipt(tmp_path: Path, endpoint: Endpoint) -> None:
    async with https_site(tmp_path, offered=[one for one in DEFINED if one != endpoint]) as site:
        response, said = await site.ask("POST", endpoint.path, key=KEY, body=prompt())
        assert (response.status, json.loads(said)["error"]["type"]) == (404, "not_found_error")
        assert site.bench.nodes[0].requests == []
        receipt = site.bench.only_receipt()
        assert (receipt.receipt_id, receipt.forwarded) == (response.headers["X-Receipt-Id"], None)
        assert receipt.returned.body_hash == digest(said)
        _, listed = await site.ask("GET", "/v1/models", key=KEY)
        (model,) = json.loads(listed)["data"]
        assert endpoint.path not in model["endpoints"]


async def test_a_response_that_would_be_kept_is_refused_with_a_receipt(site: Site) -> None:
    response, said = await site.ask("POST", RESPONSES.path, key=KEY, body=prompt(store=True))
    assert (response.status, json.loads(said)["error"]["type"]) == (400, "invalid_request_error")
    assert site.bench.only_receipt().forwarded is None
    assert site.bench.nodes[0].requests == []


async def test_a_listed_origins_page_reads_answers_and_refusals_and_no_other_ones(tmp_path: Path) -> None:
    here = "https://chat.example.org"
    asks: dict[str, Any] = {"Access-Control-Request-Method": "POST"}
    async with https_site(tmp_path, origins=[here]) as site:
        for path in ("/health", "/nowhere", "/v1/models"):
            response, _ = await site.ask("GET", path, Origin=here)
            assert response.headers["Access-Control-Allow-Origin"] == here
            assert "X-ACI-Keyset-Digest" in response.headers["Access-Control-Expose-Headers"]
            other, _ = await site.ask("GET", path, Origin="https://elsewhere.example")
            assert "Access-Control-Allow-Origin" not in other.headers
        allowed, _ = await site.ask("OPTIONS", MESSAGES.path, Origin=here, **asks)
        refused, _ = await site.ask("OPTIONS", MESSAGES.path, Origin="https://elsewhere.example", **asks)
        assert (allowed.status, refused.status) == (204, 405)
        assert allowed.headers["X-ACI-Version"] == refused.headers["X-ACI-Version"] == "aci/1"


@pytest.mark.parametrize("origins", [["*"], ["https://chat.example.org"]])
async def test_a_page_of_any_origin_that_is_let_in_reads_why_its_request_could_not_be_read(
    tmp_path: Path, origins: list[str]
) -> None:
    """Whose page it was is in the head that nobody could read: so only where every page is let in."""
    long = "a" * SETTINGS.max_head_bytes
    unreadable = [
        f"GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n",
        f"GET /health HTTP/1.1\r\nHost: a\r\nX-Long: {long}\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: a\r\nno field\r\n\r\n",
    ]
    async with https_site(tmp_path, origins=origins) as site:
        heads = [(await site.raw(each.encode())).partition(b"\r\n\r\n")[0] for each in unreadable]
    assert [head.split()[1] for head in heads] == [b"414", b"431", b"400"]
    told = [b"Access-Control-Allow-Origin: *" in head and b"X-ACI-Version" in head for head in heads]
    assert told == [origins == ["*"]] * 3


async def test_without_configuration_no_page_of_another_origin_reads_anything(site: Site) -> None:
    asks: dict[str, Any] = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    response, _ = await site.ask("OPTIONS", MESSAGES.path, **asks)
    assert response.status == 405
    assert not [name for name in response.headers if name.startswith("Access-Control")]


async def test_a_signature_in_the_older_form_is_the_tenants_alone(site: Site) -> None:
    site.bench.nodes[0].chunks = (MESSAGE,)
    response, body = await site.ask("POST", MESSAGES.path, key=KEY, body=prompt())
    for name in ("msg_1", response.headers["X-Receipt-Id"]):
        path = f"/v1/signature/{name}?signing_algo=ed25519"
        found, said = await site.ask("GET", path, key=KEY)
        assert (found.status, json.loads(said)["text"].split(":")[1]) == (200, digest(body).removeprefix("sha256:"))
        for key, status in ((None, 401), (OTHER_KEY, 404), ("sk-wrong", 404)):
            refused, _ = await site.ask("GET", path, key=key)
            assert refused.status == status
    odd, said = await site.ask("GET", "/v1/signature/msg_1?signing_algo=rsa", key=KEY)
    assert (odd.status, json.loads(said)["error"]["type"]) == (400, "invalid_signing_algo")
