"""Clients of a router that renews its keyset: over HTTPS, with the reports of a machine, and by a clock that is set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs import jcs
from libs.aci import receipt as receipts
from libs.aci.keyset import KEYSET_HEADER
from libs.client.exchange import chat_body
from libs.client.pinning import spki_sha256
from libs.client.session import Patience, RouterSession, open_session
from libs.rpc.channel import fetch_leaf
from libs.rpc.health import Health
from libs.rpc.tls import load_client_context
from libs.transparency.leaf import Kind
from services.router.workload.settings import DAY_SECONDS
from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.foreign_routers import OtherRouter, error_type, last_receipt, other_router
from tests.fakes.https_clients import KEY
from tests.fakes.leases import MODEL
from tests.fakes.nodes import STREAMED
from tests.fakes.routers import prompt
from tests.fakes.sealed_prompts import Client

QUICK = Patience(settle=0.1, between=0.01, silence=10.0, total=30.0)
SENT = [{"role": "user", "content": "say hello"}]


@pytest.fixture(scope="module")
def mesh() -> AttestedMesh:
    return AttestedMesh.create(int(time.time()))


@pytest.fixture
async def router(mesh: AttestedMesh, tmp_path: Path) -> AsyncIterator[OtherRouter]:
    async with other_router(tmp_path / "router", mesh) as router:
        yield router


@pytest.fixture
async def https(router: OtherRouter) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=load_client_context(ca_pem=router.mesh.ca.pem))
    async with aiohttp.ClientSession(router.origin, connector=connector) as session:
        yield session


def renew(router: OtherRouter) -> str:
    """Serve under another keyset, and return the digest of the one before."""
    workload = router.bench.workload
    before = workload.keyset_digest
    workload.serve(workload.bear())
    return before


def end_first(router: OtherRouter) -> str:
    """Renew as the first keyset nears its end, and let it end."""
    router.clock.ahead_seconds = 6.9 * DAY_SECONDS
    before = renew(router)
    router.clock.ahead_seconds = 7.1 * DAY_SECONDS
    return before


def signed_under(router: OtherRouter) -> str:
    """Which keyset the newest receipt names."""
    document = jcs.dumps(dict(router.bench.ledger.of(Kind.RECEIPT)[-1]))
    return receipts.parse(document).workload_keyset_digest


async def ask(session: RouterSession, *, sealed: bool, stream: bool = False) -> list[str | None]:
    """Ask, and return the reasons of the checks that need no ledger."""
    async with session.chat(chat_body(MODEL, SENT, stream=stream), sealed=sealed) as answer:
        _ = [piece async for piece in answer]
    return [check.reason for check in (await session.verify(answer.exchange))[:6]]


@pytest.mark.parametrize("sealed", [False, True])
async def test_a_session_goes_on_under_what_it_verified_and_verifies_again_once_that_ended(
    mesh: AttestedMesh, router: OtherRouter, sealed: bool
) -> None:
    async with open_session(router.origin, KEY, mesh.trust(), patience=QUICK) as session:
        assert await ask(session, sealed=sealed) == [None] * 6
        verified = renew(router)
        assert await ask(session, sealed=sealed) == [None] * 6
        assert signed_under(router) == verified
        assert router.reports == 1
        for _ in range(3):
            renew(router)
        assert await ask(session, sealed=sealed) == [None] * 6
        assert router.reports == 1


async def test_a_reply_under_a_keyset_that_was_not_verified_is_proven_by_verifying_that(
    mesh: AttestedMesh, router: OtherRouter
) -> None:
    async with open_session(router.origin, KEY, mesh.trust(), patience=QUICK) as session:
        verified = end_first(router)
        assert await ask(session, sealed=False) == [None] * 6
        assert router.reports == 2
        assert session.attested.keyset.digest == router.bench.workload.keyset_digest == signed_under(router) != verified
        assert await ask(session, sealed=True) == [None] * 6
        assert router.reports == 2


async def test_a_session_verifies_the_next_keyset_before_the_one_it_has_ends(
    mesh: AttestedMesh, router: OtherRouter
) -> None:
    near = Patience(settle=0.1, between=0.01, total=8.0 * DAY_SECONDS)
    async with open_session(router.origin, KEY, mesh.trust(), patience=near) as session:
        renew(router)
        assert await ask(session, sealed=True) == [None] * 6
        assert session.attested.keyset.digest == router.bench.workload.keyset_digest == signed_under(router)


@pytest.mark.parametrize("named", ["the verified one", "none"])
async def test_a_stream_is_receipted_under_the_keyset_that_its_head_named_whatever_comes_meanwhile(
    router: OtherRouter, named: str
) -> None:
    node, first = router.bench.nodes[0], router.bench.workload.keyset
    node.stream(*STREAMED)
    node.meanwhile = lambda: router.bench.workload.serve(router.bench.workload.bear())
    digest = first.digest if named == "the verified one" else None
    answer = await router.bench.run(prompt(stream=True), keyset_digest=digest)
    assert answer.started.keyset_digest == first.digest != router.bench.workload.keyset_digest
    assert last_receipt(router.bench, first).workload_keyset_digest == first.digest


async def test_whoever_names_no_keyset_is_answered_under_the_newest_and_told_so(
    router: OtherRouter, https: aiohttp.ClientSession
) -> None:
    before = renew(router)
    newest = router.bench.workload.keyset_digest
    for named, serving_under in ((None, newest), (before, before), ("sha256:" + "00" * 32, newest)):
        headers = {"Authorization": f"Bearer {KEY}"} | ({} if named is None else {KEYSET_HEADER: named})
        async with https.post("/v1/chat/completions", data=prompt(), headers=headers) as response:
            assert (response.status, response.headers[KEYSET_HEADER]) == (200, serving_under)
        assert signed_under(router) == serving_under
    async with https.get("/v1/aci/attestation") as response:
        assert (await response.json())["workload_keyset_digest"] == newest == response.headers[KEYSET_HEADER]


async def test_a_prompt_for_a_keyset_that_has_ended_is_not_opened(router: OtherRouter) -> None:
    key = router.bench.workload.newest.e2ee_keys[0]
    client = Client(key, key.suite.key(), MODEL)
    renew(router)
    served = await router.bench.run(client.sealed_chat(), sealing=client.headers())
    assert served.started.status == 200
    end_first(router)
    late = Client(key, key.suite.key(), MODEL)
    refused = await router.bench.run(late.sealed_chat(), sealing=late.headers())
    assert (refused.started.status, error_type(refused)) == (400, "e2ee_model_key_mismatch")
    assert len(router.bench.nodes[0].requests) == 1


async def test_a_renewal_makes_no_encrypted_prompt_new_that_came_before(router: OtherRouter) -> None:
    key = router.bench.workload.newest.e2ee_keys[0]
    client = Client(key, key.suite.key(), MODEL)
    headers, body = client.headers(), client.sealed_chat()
    assert (await router.bench.run(body, sealing=headers)).started.status == 200
    renew(router)
    assert error_type(await router.bench.run(body, sealing=headers)) == "e2ee_replay_detected"


async def test_a_router_whose_keyset_ended_serves_nobody_until_it_has_another(
    router: OtherRouter, https: aiohttp.ClientSession
) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    router.clock.ahead_seconds = 7 * DAY_SECONDS - 60
    async with https.post("/v1/chat/completions", data=prompt(), headers=headers) as response:
        assert response.status == 503, "its receipt might be signed after the end"
        assert (await response.json())["error"]["type"] == "keyset_ended"
    router.clock.ahead_seconds = 7 * DAY_SECONDS
    for path in ("/", "/health", "/v1/aci/attestation", f"/v1/aci/attestation?nonce={'ab' * 32}"):
        async with https.get(path) as response:
            assert (response.status, (await response.json())["error"]["type"]) == (503, "keyset_ended"), path
    assert router.bench.nodes[0].requests == []
    renew(router)
    async with https.post("/v1/chat/completions", data=prompt(), headers=headers) as response:
        assert response.status == 200
    async with https.get("/health") as response:
        assert await response.json() == {"status": "ok"}


async def leaf(router: OtherRouter, port: int) -> bytes:
    """The certificate that whoever connects now is shown."""
    return await fetch_leaf(f"127.0.0.1:{port}", server_name="localhost", timeout=10, ca_pem=router.mesh.ca.pem)


async def still_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ask over a connection that is kept."""
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert await reader.readexactly(len(b'{"status": "ok"}')) == b'{"status": "ok"}'


async def test_a_new_certificate_is_shown_to_who_connects_and_cuts_nobody_off(router: OtherRouter) -> None:
    outward, member = router.bench.outward, cast(Any, router.member)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(Health([]), server)  # type: ignore[no-untyped-call]
    grpc_port = server.add_secure_port("127.0.0.1:0", outward.credentials())
    await server.start()
    credentials = grpc.ssl_channel_credentials(router.mesh.ca.pem)
    async with grpc.aio.secure_channel(f"localhost:{grpc_port}", credentials) as channel:
        reader, writer = await asyncio.open_connection(
            "localhost", router.port, ssl=load_client_context(ca_pem=router.mesh.ca.pem)
        )
        await still_answers(reader, writer)
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())  # type: ignore[no-untyped-call]
        await watching.read()
        before = [await leaf(router, port) for port in (router.port, grpc_port)]
        await outward.certify(member)
        after = [await leaf(router, port) for port in (router.port, grpc_port)]
        assert before[0] == before[1] != after[0] == after[1]
        (key,) = outward.listed
        assert {spki_sha256(each) for each in (*before, *after)} == {key.spki_sha256}
        await still_answers(reader, writer)
        writer.close()
        assert not watching.done(), "the stream was cut"
    await server.stop(None)
    assert key.spki_sha256 in router.bench.workload.keyset.pins("localhost")
