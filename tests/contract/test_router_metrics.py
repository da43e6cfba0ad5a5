"""The metrics port: what an operator sees of a router, over plain HTTP, and what it does not say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.router.face.listener import plain_http
from services.router.face.watching import Watched
from tests.fakes.https_clients import KEY, Site, https_site
from tests.fakes.leases import MODEL
from tests.fakes.ledgers import TENANT
from tests.fakes.routers import CHAT, PATIENCE_SECONDS, prompt


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with https_site(tmp_path) as running:
        yield running


@pytest.fixture
async def origin(site: Site) -> AsyncIterator[str]:
    async with plain_http("127.0.0.1:0", Watched(site.bench.metrics).answer) as port:
        yield f"http://127.0.0.1:{port}"


async def scrape(site: Site, origin: str) -> str:
    async with site.session.get(origin + "/metrics") as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        return await response.text()


async def test_what_was_answered_is_counted_and_nothing_says_for_whom(site: Site, origin: str) -> None:
    await site.ask("POST", CHAT, key=KEY, body=prompt())
    await site.ask("POST", CHAT, key=KEY, body=b"{")
    await site.ask("POST", CHAT, key="sk-wrong", body=prompt())
    text = await scrape(site, origin)
    for line in (
        f'teemesh_router_exchanges_total{{endpoint="{CHAT}"}} 2',
        'teemesh_router_responses_total{status="200"} 1',
        'teemesh_router_responses_total{status="400"} 1',
        'teemesh_router_http_replies_total{status="401"} 1',
        "teemesh_router_exchanges_running 0",
        "teemesh_router_commit_seconds_count 2",
    ):
        assert line in text.splitlines()
    for unsaid in (TENANT.tenant_id, TENANT.name, MODEL, KEY):
        assert unsaid not in text


async def test_an_answer_that_ended_early_is_counted_by_its_reason(site: Site, origin: str) -> None:
    node = site.bench.nodes[0]
    node.stream()
    node.waits_at = 1
    async with asyncio.timeout(PATIENCE_SECONDS):
        response = await site.session.post(
            site.url(CHAT), data=prompt(stream=True), headers={"Authorization": f"Bearer {KEY}"}
        )
        await response.content.readuntil(b"\n\n")
        assert "teemesh_router_exchanges_running 1" in await scrape(site, origin)
        response.close()
        await site.bench.logged()
    assert 'teemesh_router_ends_total{reason="client_disconnected"} 1' in await scrape(site, origin)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("GET", CHAT, 404), ("POST", "/metrics", 405)]
)
async def test_nothing_else_is_there(site: Site, origin: str, method: str, path: str, status: int) -> None:
    async with site.session.request(method, origin + path) as response:
        assert response.status == status
        assert "Server" not in response.headers


async def test_clients_do_not_see_the_metrics(site: Site) -> None:
    response, _ = await site.ask("GET", "/metrics", key=KEY)
    assert response.status == 404
