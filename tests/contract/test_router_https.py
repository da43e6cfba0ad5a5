"""The router's HTTPS face over real TLS: every answer has ACI's headers, and every error is JSON of a stable type."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from libs import jcs
from libs.aci.encoding import digest
from libs.aci.receipt import verify_receipt
from libs.aci.receipt_events import Aborted, UpstreamFailed
from libs.aci.session import verify_session
from libs.policy.tenant_record import ApiKey, Limits, TenantRecord, unrestricted
from libs.policy.tenants import api_key_digest
from libs.transparency.leaf import Kind
from services.registry.sessions import draft_session
from services.router.admission.limits import RECEIPTED_AT_ONCE, TenantConcurrencyExceeded
from services.router.admission.tenants import TTL_SECONDS
from tests.fakes.https_clients import EVIDENCE, EVIDENCE_DIGEST, KEY, MAX_BODY_BYTES, OTHER_KEY, Site, https_site
from tests.fakes.leases import MODEL
from tests.fakes.ledgers import TENANT
from tests.fakes.nodes import BUFFERED, STREAMED
from tests.fakes.routers import CHAT, PATIENCE_SECONDS, prompt, until_waiting


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with https_site(tmp_path) as running:
        yield running


def error_type(body: bytes) -> str:
    value: str = json.loads(body)["error"]["type"]
    return value


def raw_prompt(body: bytes, *more: str, version: str = "1.1") -> bytes:
    """A prompt as bytes, with more header lines."""
    head = [
        f"POST {CHAT} HTTP/{version}",
        "Host: localhost",
        f"Authorization: Bearer {KEY}",
        f"Content-Length: {len(body)}",
        *more,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def assert_aci(site: Site, response: aiohttp.ClientResponse) -> None:
    assert response.headers["X-ACI-Version"] == "aci/1"
    assert response.headers["X-ACI-Keyset-Digest"] == site.bench.workload.keyset.digest
    assert "Server" not in response.headers


@pytest.mark.parametrize(
    ("method", "path", "key", "status", "kind"),
    [
        ("GET", "/nowhere", None, 404, "not_found"),
        ("GET", "/v1/images/generations", KEY, 404, "not_found"),
        ("DELETE", "/v1/models", KEY, 405, "method_not_allowed"),
        ("GET", CHAT, KEY, 405, "method_not_allowed"),
        ("GET", "/v1/models", None, 401, "unauthorized"),
        ("GET", "/v1/models", "sk-wrong", 401, "unauthorized"),
        ("GET", "/v1/aci/receipts/rcpt-1", None, 401, "unauthorized"),
        ("GET", "/v1/teemesh/receipts/rcpt-1/commitment", None, 401, "unauthorized"),
        ("GET", "/v1/aci/receipts/rcpt-1", KEY, 404, "not_found"),
        ("GET", "/v1/teemesh/receipts/rcpt-1/commitment", KEY, 404, "not_found"),
        ("GET", "/v1/aci/sessions/" + "00" * 32, None, 404, "not_found"),
        ("GET", "/v1/aci/sessions/" + "AA" * 32, None, 404, "not_found"),
        ("GET", "/v1/aci/sessions/short", None, 404, "not_found"),
        ("GET", "/v1/teemesh/evidence/" + "00" * 32, None, 404, "not_found"),
        ("GET", "/v1/aci/attestation?nonce=00", None, 400, "invalid_request_error"),
        ("GET", "/v1/aci/attestation?nonce=" + "AB" * 32, None, 400, "invalid_request_error"),
        ("GET", "/v1/aci/attestation?nonce=", None, 400, "invalid_request_error"),
        ("GET", "/v1/aci/attestation?nonce=%ff%00", None, 400, "invalid_request_error"),
        ("GET", f"/v1/aci/attestation?nonce={'ab' * 32}&nonce={'cd' * 32}", None, 400, "invalid_request_error"),
        ("GET", f"/v1/aci/attestation?nonce={'ab' * 32}&nonce=", None, 400, "invalid_request_error"),
    ],
)
async def test_an_error_is_json_of_a_stable_type(
    site: Site, method: str, path: str, key: str | None, status: int, kind: str
) -> None:
    response, body = await site.ask(method, path, key=key)
    assert (response.status, error_type(body)) == (status, kind)
    assert response.content_type == "application/json"
    assert_aci(site, response)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/", None),
        ("/health", None),
        ("/v1/models", KEY),
        ("/v1/aci/attestation", None),
        ("/v1/aci/attestation?nonce=" + "ab" * 32, None),
        ("/v1/aci/sessions", None),
        ("/v1/teemesh/evidence/" + EVIDENCE_DIGEST, None),
    ],
)
async def test_an_answer_carries_the_headers_of_aci(site: Site, path: str, key: str | None) -> None:
    response, body = await site.ask("GET", path, key=key)
    assert (response.status, response.content_type) == (200, "application/json")
    assert isinstance(json.loads(body), dict)
    assert_aci(site, response)


async def test_a_prompt_is_answered_and_its_receipt_is_the_tenants_alone(site: Site) -> None:
    response, body = await site.ask("POST", CHAT, key=KEY, body=prompt())
    assert (response.status, body) == (200, b"".join(BUFFERED))
    assert response.content_length == len(body)
    assert_aci(site, response)
    receipt_id = response.headers["X-Receipt-Id"]
    for identifier in (receipt_id, "chatcmpl-1"):
        fetched, document = await site.ask("GET", f"/v1/aci/receipts/{identifier}", key=KEY)
        assert fetched.status == 200
        receipt = verify_receipt(document, site.bench.workload.keyset)
        assert (receipt.receipt_id, receipt.returned.body_hash) == (receipt_id, digest(body))
        others, refusal = await site.ask("GET", f"/v1/aci/receipts/{identifier}", key=OTHER_KEY)
        assert (others.status, error_type(refusal)) == (404, "not_found")
    committed, _ = await site.ask("GET", f"/v1/teemesh/receipts/{receipt_id}/commitment", key=KEY)
    others, _ = await site.ask("GET", f"/v1/teemesh/receipts/{receipt_id}/commitment", key=OTHER_KEY)
    assert (committed.status, others.status) == (200, 404)


@pytest.mark.parametrize("path", ["/v1/aci/receipts/{}", "/v1/teemesh/receipts/{}/commitment"])
@pytest.mark.parametrize("wrong", ["sk-wrong", OTHER_KEY, "revoked", "disabled"])
async def test_a_key_that_opens_no_receipt_learns_nothing_of_it(site: Site, path: str, wrong: str) -> None:
    """What is there and what is not is refused alike, for a key of nobody, of another, and of one who may no longer."""
    response, _ = await site.ask("POST", CHAT, key=KEY, body=prompt())
    _, missing = await site.ask("GET", path.format("rcpt-none"), key=OTHER_KEY)
    if wrong == "revoked":
        site.directory.revoked = {TENANT.tenant_id}
    if wrong == "disabled":
        site.directory.store(
            TenantRecord(TENANT.tenant_id, 2, "Acme", unrestricted(api_key_digest(KEY)), disabled=True)
        )
        site.directory.now += TTL_SECONDS
    own = wrong in ("revoked", "disabled")
    for identifier in (response.headers["X-Receipt-Id"], "rcpt-none"):
        refused, body = await site.ask("GET", path.format(identifier), key=KEY if own else wrong)
        assert (refused.status, error_type(body), body) == (404, "not_found", missing)


async def test_receipts_stay_reachable_under_the_next_key_and_not_under_the_one_withdrawn(site: Site) -> None:
    response, _ = await site.ask("POST", CHAT, key=KEY, body=prompt())
    path = f"/v1/aci/receipts/{response.headers['X-Receipt-Id']}"
    old, new = unrestricted(api_key_digest(KEY), api_key_digest("sk-next"))
    site.directory.store(TenantRecord(TENANT.tenant_id, 2, "Acme", (old, new)))
    for key in (KEY, "sk-next"):
        assert (await site.ask("GET", path, key=key))[0].status == 200
    site.directory.store(TenantRecord(TENANT.tenant_id, 3, "Acme", (new,)))
    site.directory.now += TTL_SECONDS
    assert (await site.ask("GET", path, key=KEY))[0].status == 404
    assert (await site.ask("GET", path, key="sk-next"))[0].status == 200


@pytest.mark.parametrize("scope", [None, "receipts", "chat"])
async def test_a_key_opens_what_its_scopes_name(site: Site, scope: str | None) -> None:
    response, _ = await site.ask("POST", CHAT, key=KEY, body=prompt())
    key = ApiKey("laptop", api_key_digest("sk-next"), scopes=None if scope is None else (scope,), models=())
    site.directory.store(TenantRecord(TENANT.tenant_id, 2, "Acme", (key,)))
    fetched, _ = await site.ask("GET", f"/v1/aci/receipts/{response.headers['X-Receipt-Id']}", key="sk-next")
    assert fetched.status == (404 if scope == "chat" else 200)
    asked, body = await site.ask("POST", CHAT, key="sk-next", body=prompt())
    assert asked.status == (403 if scope == "receipts" else 404)
    assert error_type(body) == ("key_not_scoped" if scope == "receipts" else "not_found_error")
    _, models = await site.ask("GET", "/v1/models", key="sk-next")
    assert json.loads(models)["data"] == []


async def test_what_was_used_is_its_tenants_alone(site: Site) -> None:
    await site.ask("POST", CHAT, key=KEY, body=prompt())
    async with site.bench.usage.recording():
        pass
    asked, body = await site.ask("GET", "/v1/teemesh/usage", key=KEY)
    assert asked.status == 200
    (entry,) = json.loads(body)["entries"]
    (logged,) = site.bench.ledger.of(Kind.USAGE)
    assert entry == {"entry_id": entry["entry_id"], **logged}
    assert len(bytes.fromhex(entry["entry_id"])) == 32
    _, others = await site.ask("GET", "/v1/teemesh/usage", key=OTHER_KEY)
    assert json.loads(others) == {"entries": [], "before": None}
    assert json.loads((await site.ask("GET", "/v1/teemesh/usage?before=1", key=KEY))[1])["entries"] == []
    assert (await site.ask("GET", "/v1/teemesh/usage?before=x", key=KEY))[0].status == 400
    assert (await site.ask("GET", "/v1/teemesh/usage"))[0].status == 401
    key = ApiKey("chat-only", api_key_digest("sk-next"), scopes=("chat",))
    site.directory.store(TenantRecord(TENANT.tenant_id, 2, "Acme", (key,)))
    assert (await site.ask("GET", "/v1/teemesh/usage", key="sk-next"))[0].status == 403


async def test_a_tenant_beyond_its_rate_is_refused_unread_with_a_receipt(site: Site) -> None:
    site.directory.limit(Limits(requests_per_minute=2, burst=1))
    assert (await site.ask("POST", CHAT, key=KEY, body=prompt()))[0].status == 200
    refused, body = await site.ask("POST", CHAT, key=KEY, body=prompt())
    assert (refused.status, refused.headers["Retry-After"]) == (429, "30")
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("rate_limited", "rate_limit_exceeded")
    fetched, document = await site.ask("GET", f"/v1/aci/receipts/{refused.headers['X-Receipt-Id']}", key=KEY)
    assert fetched.status == 200
    receipt = verify_receipt(document, site.bench.workload.keyset)
    assert receipt.upstream == UpstreamFailed(True, "none", "tenant_rate_exceeded")
    assert (receipt.received.body_hash, receipt.returned.body_hash) == (digest(b""), digest(body))
    site.directory.now += 30
    assert (await site.ask("POST", CHAT, key=KEY, body=prompt()))[0].status == 200


async def test_a_flood_of_refusals_leaves_a_few_receipts_and_a_number(site: Site) -> None:
    site.directory.limit(Limits(requests_per_minute=1))
    await site.ask("POST", CHAT, key=KEY, body=prompt())
    without = 0
    for _ in range(15):
        refused, _ = await site.ask("POST", CHAT, key=KEY, body=prompt())
        assert (refused.status, refused.headers["Retry-After"]) == (429, "60")
        without += "X-Receipt-Id" not in refused.headers
    assert without == 15 - RECEIPTED_AT_ONCE
    assert len(site.bench.ledger.of(Kind.RECEIPT)) == 1 + RECEIPTED_AT_ONCE
    assert site.bench.metrics.refusals.numbers == {"TENANT_RATE_EXCEEDED": 15}
    site.directory.now += 1
    refused, _ = await site.ask("POST", CHAT, key=KEY, body=prompt())
    assert "X-Receipt-Id" in refused.headers


async def test_a_place_among_those_that_run_is_free_again_when_an_answer_ends(site: Site) -> None:
    site.directory.limit(Limits(concurrent=1))
    site.bench.nodes[0].stream()
    site.bench.ledger.waits = True
    first = asyncio.ensure_future(site.ask("POST", CHAT, key=KEY, body=prompt(stream=True)))
    await until_waiting(site.bench.ledger.asked)
    with site.bench.gates.entered(replace(TENANT, limits=Limits(concurrent=1))) as refused:
        assert isinstance(refused, TenantConcurrencyExceeded)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    site.bench.ledger.waits = False
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await site.ask("POST", CHAT, key=KEY, body=prompt()))[0].status == 429:
            pass
    assert (await site.ask("POST", CHAT, key=KEY, body=prompt()))[0].status == 200


def parted(answer: bytes) -> tuple[bytes, bytes]:
    """The head of a response, and its body without the marks of chunks."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"\r\nTransfer-Encoding: chunked" in head:
        chunked, body = body, b""
        while chunked:
            size, _, chunked = chunked.partition(b"\r\n")
            body, chunked = body + chunked[: int(size, 16)], chunked[int(size, 16) + 2 :]
    return head, body


def assert_refused_unread(site: Site, reason: str, answer: bytes) -> None:
    """Whoever has a key gets a receipt also for what nobody read."""
    receipt = site.bench.only_receipt()
    assert receipt.upstream == UpstreamFailed(True, "none", reason)
    assert (receipt.received.body_hash, receipt.returned.body_hash) == (digest(b""), digest(answer))
    assert site.bench.nodes[0].requests == []


@pytest.mark.parametrize("encoding", ["gzip", "identity, deflate", "br"])
async def test_a_body_that_is_encoded_is_refused(site: Site, encoding: str) -> None:
    """A receipt is over what came, and nobody but the listener would have seen that."""
    answer = await site.raw(raw_prompt(gzip.compress(prompt()), f"Content-Encoding: {encoding}", "Connection: close"))
    head, body = parted(answer)
    assert (head.split()[1], error_type(body)) == (b"415", "unsupported_media_type")
    assert b"\r\nAccept-Encoding: identity" in head
    assert_refused_unread(site, "content_encoding_not_supported", body)


async def test_a_body_that_says_it_is_not_encoded_is_hashed_as_it_came(site: Site) -> None:
    _, answer = await site.ask("POST", CHAT, key=KEY, body=prompt(), **{"Content-Encoding": "identity"})
    assert answer == b"".join(BUFFERED)
    assert site.bench.only_receipt().received.body_hash == digest(prompt())


@pytest.mark.parametrize("second", [KEY, OTHER_KEY, "sk-wrong"])
async def test_two_keys_are_refused_whosever_they_are(site: Site, second: str) -> None:
    answer = await site.raw(raw_prompt(prompt(), f"Authorization: Bearer {second}", "Connection: close"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert (head.split()[1], error_type(body)) == (b"400", "invalid_request_error")
    assert site.bench.nodes[0].requests == []


async def test_a_stream_is_an_event_stream_that_nothing_on_the_way_holds_up(site: Site) -> None:
    site.bench.nodes[0].stream()
    response, body = await site.ask("POST", CHAT, key=KEY, body=prompt(stream=True))
    assert (response.content_type, body) == ("text/event-stream", b"".join(STREAMED))
    assert (response.headers["Cache-Control"], response.headers["X-Accel-Buffering"]) == ("no-cache", "no")
    assert_aci(site, response)


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"{", 400, "invalid_request_error"),
        (prompt(model="unheard-of"), 404, "not_found_error"),
        (prompt(provider={"aci_session_ids": ["00" * 32]}), 412, "session_not_accepted"),
    ],
)
async def test_a_refused_prompt_has_a_receipt_to_fetch(site: Site, body: bytes, status: int, kind: str) -> None:
    response, answer = await site.ask("POST", CHAT, key=KEY, body=body)
    assert (response.status, error_type(answer)) == (status, kind)
    assert_aci(site, response)
    fetched, document = await site.ask("GET", "/v1/aci/receipts/" + response.headers["X-Receipt-Id"], key=KEY)
    assert fetched.status == 200
    assert verify_receipt(document, site.bench.workload.keyset).returned.body_hash == digest(answer)


async def test_a_body_over_the_limit_is_refused(site: Site) -> None:
    response, body = await site.ask("POST", CHAT, key=KEY, body=b"x" * (MAX_BODY_BYTES + 1))
    assert (response.status, error_type(body)) == (413, "request_too_large")
    assert_aci(site, response)
    assert_refused_unread(site, "body_too_large", body)


async def test_without_a_key_the_body_is_not_read(site: Site) -> None:
    """The body never comes, and the answer does."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n"
    async with asyncio.timeout(PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=site.tls)
        writer.write(head.encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        writer.close()
    assert site.directory.asked == 0


@pytest.mark.parametrize(
    ("key", "length", "status"), [("sk-wrong", 100, b"401"), (KEY, MAX_BODY_BYTES + 1, b"413")], ids=["key", "length"]
)
async def test_a_body_that_will_be_refused_is_not_asked_for(site: Site, key: str, length: int, status: bytes) -> None:
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Length: {length}\r\n"
        "Expect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    answer = await site.raw(head.encode())
    assert answer.startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("path", [CHAT, "/health", "/nowhere"])
async def test_what_cannot_be_expected_is_refused_as_json(site: Site, path: str) -> None:
    method = "POST" if path == CHAT else "GET"
    response, body = await site.ask(method, path, key=KEY, body=prompt() if path == CHAT else None, Expect="miracles")
    expected = (404, "not_found") if path == "/nowhere" else (417, "expectation_failed")
    assert (response.status, error_type(body)) == expected
    assert response.content_type == "application/json"
    assert_aci(site, response)
    assert site.bench.nodes[0].requests == []


@pytest.mark.parametrize(("path", "allowed"), [(CHAT, "POST"), ("/v1/models", "GET, HEAD")])
async def test_a_path_under_another_method_says_which_it_has(site: Site, path: str, allowed: str) -> None:
    response, _ = await site.ask("PUT", path, key=KEY)
    assert (response.status, response.headers["Allow"]) == (405, allowed)


async def test_a_head_is_an_answer_without_its_body(site: Site) -> None:
    response, body = await site.ask("HEAD", "/health")
    assert (response.status, body) == (200, b"")
    assert_aci(site, response)


@pytest.mark.parametrize(
    "path", ["/v1/models/", "//v1/models", "/v1/%6dodels", "/v1/aci/receipts/", "/v1/aci/sessions/a/b"]
)
async def test_a_path_that_is_only_like_another_is_none(site: Site, path: str) -> None:
    answer = await site.raw(
        f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 404")


async def test_sessions_are_listed_without_evidence_and_served_whole_by_id(site: Site) -> None:
    node = site.bench.nodes[0]
    session_id = draft_session(node.lease, node.target).session_id
    _, body = await site.ask("GET", "/v1/aci/sessions")
    listed = json.loads(body)
    assert listed["api_version"] == "aci/1"
    (entry,) = listed["sessions"]
    _, unfiltered = await site.ask("GET", "/v1/aci/sessions?upstream_name=&model=")
    assert json.loads(unfiltered) == listed
    assert entry["session_id"] == session_id
    assert set(entry["evidence"]) == {"digest"}
    _, document = await site.ask("GET", "/v1/aci/sessions/" + session_id)
    assert verify_session(document, session_id).evidence == node.lease.evidence.document
    for query, count in ((f"model={MODEL}", 1), ("model=other", 0), ("upstream_name=other", 0)):
        _, body = await site.ask("GET", "/v1/aci/sessions?" + query)
        assert len(json.loads(body)["sessions"]) == count


async def test_evidence_is_served_by_its_digest(site: Site) -> None:
    _, body = await site.ask("GET", "/v1/teemesh/evidence/" + EVIDENCE_DIGEST)
    assert body == EVIDENCE


async def test_a_registry_that_is_away_is_not_a_wrong_key(site: Site) -> None:
    site.directory.broken = ConnectionError("bug")
    with capture_logs() as logs:
        response, body = await site.ask("GET", "/v1/models", key=KEY)
    assert (response.status, json.loads(body)["error"]) == (
        500,
        {"message": "internal error", "type": "internal_error", "code": None, "param": None},
    )
    assert_aci(site, response)
    assert [entry["event"] for entry in logs] == ["bug in a handler"]


async def test_a_stale_policy_is_a_503_that_names_it(site: Site) -> None:
    site.bench.member.policy.fresh = False
    response, body = await site.ask("POST", CHAT, key=KEY, body=prompt())
    assert (response.status, error_type(body)) == (503, "service_unavailable")
    assert b"POLICY_STALE" in body
    assert (await site.bench.logged())["receipt_id"] == response.headers["X-Receipt-Id"]


async def test_a_client_that_leaves_mid_stream_stops_the_engine_and_leaves_one_receipt(site: Site) -> None:
    node = site.bench.nodes[0]
    node.stream()
    node.waits_at = 1
    headers = {"Authorization": f"Bearer {KEY}"}
    async with asyncio.timeout(PATIENCE_SECONDS):
        response = await site.session.post(site.url(CHAT), data=prompt(stream=True), headers=headers)
        assert await response.content.readuntil(b"\n\n") == STREAMED[0]
        response.close()
        await node.left.wait()
        document = await site.bench.logged()
    receipt = verify_receipt(jcs.dumps(dict(document)), site.bench.workload.keyset)
    assert receipt.returned.body_hash == digest(STREAMED[0])
    assert Aborted("client_disconnected") in receipt.events
    assert len(site.bench.ledger.of(Kind.RECEIPT)) == 1


async def test_a_router_that_stops_mid_stream_says_so_and_not_that_the_client_left(site: Site) -> None:
    node = site.bench.nodes[0]
    node.stream()
    node.waits_at = 1
    headers = {"Authorization": f"Bearer {KEY}"}
    async with asyncio.timeout(PATIENCE_SECONDS):
        response = await site.session.post(site.url(CHAT), data=prompt(stream=True), headers=headers)
        assert await response.content.readuntil(b"\n\n") == STREAMED[0]
        await site.stop()
        with pytest.raises(aiohttp.ClientError):
            await response.content.read()
        response.close()
        await site.bench.logged()
    receipt = site.bench.only_receipt()
    assert receipt.returned.body_hash == digest(STREAMED[0])
    assert [event for event in receipt.events if isinstance(event, Aborted)] == [Aborted("shutdown")]


async def test_a_client_that_does_not_read_is_said_to_be_slow_and_not_to_have_left(tmp_path: Path) -> None:
    event = b'data: {"choices":[{"delta":{"content":"' + b"a" * (1 << 20) + b'"}}]}\n\n'
    async with https_site(tmp_path, total_seconds=1.0) as site, asyncio.timeout(PATIENCE_SECONDS):
        site.bench.nodes[0].stream(*[event] * 15)  # More than the sockets between them take.
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=site.tls)
        writer.write(raw_prompt(prompt(stream=True)))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await site.bench.logged()
        writer.transport.abort()
    receipt = site.bench.only_receipt()
    assert [event for event in receipt.events if isinstance(event, Aborted)] == [Aborted("client_too_slow")]
    assert receipt.returned.body_hash != digest(event * 15)


async def test_a_client_that_leaves_while_the_end_is_written_is_not_said_to_have_it(site: Site) -> None:
    site.bench.nodes[0].chunks = [b"x" * (1 << 20)] * 15  # More than the sockets between them take.
    async with asyncio.timeout(PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=site.tls)
        writer.write(raw_prompt(prompt()))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.transport.abort()
        await site.bench.logged()
        amendment = await site.bench.logged()
    assert amendment["effect"] == "release_unknown"
    assert site.bench.ledger.cut == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_of_http_1_0_gets_what_its_receipt_says(site: Site, stream: bool) -> None:
    """HTTP/1.0 has no chunks: the end of the connection is the end of the answer."""
    if stream:
        site.bench.nodes[0].stream()
    answer = await site.raw(raw_prompt(prompt(stream=stream), version="1.0"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == b"200"
    assert body == b"".join(STREAMED if stream else BUFFERED)
    assert site.bench.only_receipt().returned.body_hash == digest(body)
    assert (site.bench.ledger.cut, site.bench.ledger.of(Kind.AMENDMENT)) == ([1], [])


async def test_a_bug_after_the_first_byte_does_not_look_like_an_end(site: Site) -> None:
    """The response breaks off: no second head, no final chunk."""
    site.bench.nodes[0].stream()
    site.bench.ledger.broken = RuntimeError("bug")
    with capture_logs() as logs:
        answer = await site.raw(raw_prompt(prompt(stream=True)))
    assert STREAMED[0] in answer
    assert answer.count(b"HTTP/1.1") == 1
    assert not answer.endswith(b"0\r\n\r\n")
    assert "bug in the listener" in [entry["event"] for entry in logs]


@pytest.mark.parametrize(
    ("begun", "more", "refusal", "reason"),
    [
        # That is no request: nobody's key was read.
        (b"\r\nzz\r\n", b"", (b"400", "invalid_request_error"), None),
        (b"Expect: 100-continue\r\n\r\n", b"zz\r\n", (b"400", "invalid_request_error"), "request_invalid"),
        (b"\r\n5\r\nab", b"", (b"408", "request_timeout"), "body_too_slow"),
    ],
    ids=["broken at once", "broken later", "never ends"],
)
async def test_a_body_that_cannot_be_read_is_an_error_in_time(
    site: Site, begun: bytes, more: bytes, refusal: tuple[bytes, str], reason: str | None
) -> None:
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
        "Transfer-Encoding: chunked\r\nConnection: close\r\n"
    ).encode()
    with capture_logs() as logs:
        answer = await site.raw(head + begun, more)
    first, body = parted(answer)
    assert (first.split()[1], error_type(body)) == refusal
    if reason is not None:
        assert_refused_unread(site, reason, body)
    assert "bug in a handler" not in [entry["event"] for entry in logs]


@pytest.mark.parametrize("begun", [b"", b"GET /health HTTP/1.1\r\nHost"], ids=["silent", "half a head"])
async def test_a_connection_without_a_request_is_closed_in_time(site: Site, begun: bytes) -> None:
    assert await site.raw(begun) == b""
