"""The router's face over HTTP/2, for a client that many use: the same answers as over HTTP/1.1."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from libs.aci.encoding import digest
from libs.aci.receipt import verify_receipt
from libs.aci.receipt_events import Aborted, UpstreamFailed
from services.router.admission.tenants import STRANGERS_AT_ONCE
from tests.fakes.https_clients import KEY, MAX_BODY_BYTES, Site, https_site
from tests.fakes.nodes import BUFFERED, STREAMED
from tests.fakes.raw_http2 import get, post, raw_http2
from tests.fakes.routers import CHAT, PATIENCE_SECONDS, prompt

BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with https_site(tmp_path) as running:
        yield running


@pytest.fixture
async def client(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with http2_client(site) as opened:
        yield opened


def http2_client(site: Site) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        http1=False, http2=True, verify=site.tls, base_url=f"https://127.0.0.1:{site.port}", timeout=PATIENCE_SECONDS
    )


def assert_aci(site: Site, response: httpx.Response) -> None:
    assert response.http_version == "HTTP/2"
    assert response.headers["x-aci-version"] == "aci/1"
    assert response.headers["x-aci-keyset-digest"] == site.bench.workload.keyset.digest


async def test_a_client_that_speaks_both_is_given_http_2(site: Site) -> None:
    async with httpx.AsyncClient(http2=True, verify=site.tls) as client:
        response = await client.get(site.url("/health"))
    assert (response.http_version, response.json()) == ("HTTP/2", {"status": "ok"})


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "kind"),
    [
        ("GET", "/nowhere", {}, 404, "not_found"),
        ("DELETE", "/v1/models", BEARER, 405, "method_not_allowed"),
        ("GET", "/v1/models", {}, 401, "unauthorized"),
        ("GET", "/v1/aci/attestation?nonce=00", {}, 400, "invalid_request_error"),
        ("POST", CHAT, {**BEARER, "Expect": "miracles"}, 417, "expectation_failed"),
        ("POST", CHAT, {**BEARER, "Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
    ],
)
async def test_an_error_is_the_same_json(
    site: Site, client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    response = await client.request(method, path, headers=headers)
    assert (response.status_code, response.json()["error"]["type"]) == (status, kind)
    assert_aci(site, response)


async def test_what_is_no_request_is_late_or_comes_at_the_end_of_a_connection_has_acis_headers(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, body_seconds=0.2, max_connection_requests=2) as site,
        raw_http2(site.port, site.tls_h2) as client,
    ):
        client.ask(1, get(authority="nobody@localhost"))
        unreadable = await client.answer(1)
        client.send(client.head(3, post(CHAT, KEY)))  # Its body does not come.
        client.ask(5, get())
        refused, late = await client.answer(5), await client.answer(3)
        assert unreadable.refusal == (400, "invalid_request_error")
        assert refused.refusal == (503, "service_unavailable")
        assert late.refusal == (408, "request_timeout")
        for answer in (unreadable, refused, late):
            assert answer.headers["x-aci-version"] == "aci/1"
            assert answer.headers["x-aci-keyset-digest"] == site.bench.workload.keyset.digest


async def test_a_prompt_is_answered_and_its_receipt_is_over_what_came(site: Site, client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, content=prompt(), headers=BEARER)
    assert (response.status_code, response.content) == (200, b"".join(BUFFERED))
    assert_aci(site, response)
    fetched = await client.get("/v1/aci/receipts/" + response.headers["x-receipt-id"], headers=BEARER)
    receipt = verify_receipt(fetched.content, site.bench.workload.keyset)
    assert receipt.received.body_hash == digest(prompt())
    assert receipt.returned.body_hash == digest(response.content)


async def test_a_stream_comes_event_by_event(site: Site, client: httpx.AsyncClient) -> None:
    site.bench.nodes[0].stream()
    async with client.stream("POST", CHAT, content=prompt(stream=True), headers=BEARER) as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert b"".join([part async for part in response.aiter_raw()]) == b"".join(STREAMED)


async def test_requests_run_beside_each_other_on_one_connection(site: Site, client: httpx.AsyncClient) -> None:
    """The first waits at its node until the others have been answered."""
    node = site.bench.nodes[0]
    node.waits_at = 0
    waiting = asyncio.create_task(client.post(CHAT, content=prompt(), headers=BEARER))
    await node.waiting.wait()
    answers = await asyncio.gather(*(client.get("/health") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert site.bench.metrics.connections.open.numbers[""] == 1
    node.go_on.set()
    assert (await waiting).content == b"".join(BUFFERED)


async def test_a_head_is_an_answer_without_its_body(site: Site, client: httpx.AsyncClient) -> None:
    response = await client.head("/health")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == str(len((await client.get("/health")).content))
    assert_aci(site, response)


async def test_a_body_over_the_limit_is_refused_with_a_receipt(site: Site, client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, content=b"x" * (MAX_BODY_BYTES + 1), headers=BEARER)
    assert (response.status_code, response.json()["error"]["type"]) == (413, "request_too_large")
    assert_aci(site, response)
    assert site.bench.only_receipt().upstream == UpstreamFailed(True, "none", "body_too_large")


async def test_a_body_of_unknown_length_is_bounded_too(site: Site, client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 1024

    response = await client.post(CHAT, content=endless(), headers=BEARER)
    assert (response.status_code, response.json()["error"]["type"]) == (413, "request_too_large")
    assert (await client.get("/health")).status_code == 200


async def test_an_answer_larger_than_every_window_comes_whole(site: Site, client: httpx.AsyncClient) -> None:
    large = b'{"id":"chatcmpl-1","x":"' + b"x" * (3 << 20) + b'"}'
    site.bench.nodes[0].chunks = [large[at : at + (1 << 16)] for at in range(0, len(large), 1 << 16)]
    response = await client.post(CHAT, content=prompt(), headers=BEARER)
    assert response.content == large
    assert site.bench.ledger.cut == [1]


async def test_a_router_that_stops_lets_a_stream_end_and_takes_no_other(tmp_path: Path) -> None:
    async with https_site(tmp_path, drain_seconds=PATIENCE_SECONDS) as site, http2_client(site) as client:
        node = site.bench.nodes[0]
        node.stream()
        node.waits_at = 1
        async with client.stream("POST", CHAT, content=prompt(stream=True), headers=BEARER) as response:
            parts = response.aiter_raw()
            assert await anext(parts) == STREAMED[0]
            stopping = asyncio.create_task(site.stop())
            await site.refusing()
            node.go_on.set()
            assert b"".join([part async for part in parts]) == b"".join(STREAMED[1:])
        await stopping
    assert site.bench.only_receipt().returned.body_hash == digest(b"".join(STREAMED))


async def test_a_router_that_stops_cuts_what_does_not_end_and_says_so(site: Site, client: httpx.AsyncClient) -> None:
    node = site.bench.nodes[0]
    node.stream()
    node.waits_at = 1
    async with client.stream("POST", CHAT, content=prompt(stream=True), headers=BEARER) as response:
        parts = response.aiter_raw()
        assert await anext(parts) == STREAMED[0]
        await site.stop()
        with pytest.raises(httpx.TransportError):
            await anext(parts)
    await site.bench.logged()
    receipt = site.bench.only_receipt()
    assert [event for event in receipt.events if isinstance(event, Aborted)] == [Aborted("shutdown")]


async def test_a_bug_after_the_first_byte_does_not_look_like_an_end(site: Site, client: httpx.AsyncClient) -> None:
    site.bench.nodes[0].stream()
    site.bench.ledger.broken = RuntimeError("bug")
    with pytest.raises(httpx.RemoteProtocolError):
        await client.post(CHAT, content=prompt(stream=True), headers=BEARER)


async def test_a_connection_ends_after_its_requests_and_the_client_makes_another(tmp_path: Path) -> None:
    async with https_site(tmp_path, max_connection_requests=3) as site, http2_client(site) as client:
        for _ in range(10):
            assert json.loads((await client.get("/health")).content) == {"status": "ok"}


async def test_keys_that_are_made_up_on_one_connection_keep_no_key_on_another_waiting(
    site: Site, client: httpx.AsyncClient
) -> None:
    wrong = 60
    site.directory.answers.clear()
    async with asyncio.timeout(PATIENCE_SECONDS), http2_client(site) as another, asyncio.TaskGroup() as tasks:
        for number in range(wrong):
            tasks.create_task(client.get("/v1/models", headers={"Authorization": f"Bearer sk-{number}"}))
        while site.directory.asked < STRANGERS_AT_ONCE:  # noqa: ASYNC110 - the twin tells nobody
            await asyncio.sleep(0.01)
        assert (await another.get("/health")).status_code == 200
        right = tasks.create_task(another.get("/v1/models", headers=BEARER))
        await asyncio.sleep(0)
        assert (await another.get("/health")).status_code == 200  # so the request before it is there, too
        assert site.directory.asked == STRANGERS_AT_ONCE
        site.directory.answers.set()
        response = await right
        assert (response.status_code, len(site.directory.refused) < wrong) == (200, True)
    assert site.directory.refused == ["API_KEY_INVALID"] * wrong
