"""Each request that nobody should send gets its refusal, and the router serves on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.fakes.hostile_http import Hostile, hostile_requests
from tests.fakes.https_clients import KEY, Site, https_site
from tests.fakes.routers import PATIENCE_SECONDS, prompt

HOSTILE = hostile_requests(KEY, prompt())


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with https_site(tmp_path) as running:
        yield running


async def one_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read one response; return its head and its body without the marks of chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
    if b"content-length" in fields:
        return head, await reader.readexactly(int(fields[b"content-length"]))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    assert await reader.readexactly(2) == b"\r\n"
    return head, body


async def converse(site: Site, hostile: Hostile) -> tuple[bytes, bytes]:
    """Send it, and see what becomes of the connection."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=site.tls)
        try:
            writer.write(hostile.data)
            answer = await one_answer(reader)
            if hostile.keeps:
                writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                head, _ = await one_answer(reader)
                assert head.startswith(b"HTTP/1.1 200 ")
            else:
                assert await reader.read() == b""
            return answer
        finally:
            writer.transport.abort()


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_nobody_should_send_is_refused_clearly(
    site: Site, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    hostile = HOSTILE[name]
    with capture_logs() as logs:
        head, body = await converse(site, hostile)
    version, status = head.split()[0], int(head.split()[1])
    assert version in (b"HTTP/1.0", b"HTTP/1.1")
    assert (status, json.loads(body)["error"]["type"]) == hostile.refusal
    assert b"\r\nContent-Type: application/json" in head
    assert b"\r\nX-ACI-Version: aci/1\r\n" in head
    assert b"\r\nX-ACI-Keyset-Digest: " + site.bench.workload.keyset.digest.encode() in head
    assert b"\r\nServer:" not in head
    assert site.bench.nodes[0].requests == []
    assert not any("bug" in entry["event"] for entry in logs)
    assert "Traceback" not in caplog.text
    response, _ = await site.ask("GET", "/health")
    assert response.status == 200


def test_there_are_many_of_them_and_no_two_alike() -> None:
    assert len({hostile.data for hostile in HOSTILE.values()}) == len(HOSTILE) >= 100
