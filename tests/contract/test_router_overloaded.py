"""A router whose nodes are all full, over HTTPS: who waits, who is refused, and who leaves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from teemesh.registry.v1 import registry_pb2

from libs.aci.endpoints import MESSAGES
from libs.aci.receipt_events import Aborted, UpstreamFailed
from services.router.routing.settings import RoutingSettings
from tests.fakes.https_clients import KEY, Site, https_site
from tests.fakes.leases import MODEL
from tests.fakes.nodes import BUFFERED
from tests.fakes.routers import CHAT, PATIENCE_SECONDS, prompt


def report(site: Site, running: int) -> None:
    """Have the node say how many requests of other routers' it has, of four at most."""
    (node,) = site.bench.nodes
    site.bench.upstreams.take(
        site.bench.snapshot(node.provider(load=registry_pb2.Load(running_requests=running)))
        if running
        else site.bench.snapshot(node.provider())
    )


async def until_waiting(site: Site) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not site.bench.metrics.routing.waiting.numbers[""]:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)


async def test_a_refusal_says_when_to_come_back_and_has_a_receipt(tmp_path: Path) -> None:
    async with https_site(tmp_path, routing=RoutingSettings(queue_length=0, queue_seconds=3.0)) as site:
        report(site, 4)
        response, body = await site.ask("POST", CHAT, key=KEY, body=prompt())
        assert (response.status, json.loads(body)["error"]["type"]) == (429, "overloaded")
        assert response.headers["Retry-After"] == "3"
        receipt = site.bench.only_receipt()
        assert response.headers["X-Receipt-Id"] == receipt.receipt_id
        assert receipt.upstream == UpstreamFailed(True, MODEL, "overloaded")


async def test_anthropics_clients_read_it_in_their_form(tmp_path: Path) -> None:
    async with https_site(tmp_path, routing=RoutingSettings(queue_length=0)) as site:
        report(site, 4)
        response, body = await site.ask("POST", MESSAGES.path, key=KEY, body=prompt(max_tokens=1))
        assert (response.status, json.loads(body)["error"]["type"]) == (529, "overloaded_error")
        assert response.headers["Retry-After"] == "20"


async def test_who_waits_is_answered_once_there_is_room(tmp_path: Path) -> None:
    async with https_site(tmp_path) as site:
        report(site, 4)
        asking = asyncio.create_task(site.ask("POST", CHAT, key=KEY, body=prompt()))
        await until_waiting(site)
        assert not site.bench.nodes[0].requests
        report(site, 0)
        response, body = await asking
        assert (response.status, body) == (200, b"".join(BUFFERED))


async def test_a_client_that_hangs_up_while_it_waits_is_noticed_and_leaves_a_receipt(tmp_path: Path) -> None:
    async with https_site(tmp_path) as site:
        report(site, 4)
        asking = asyncio.create_task(site.ask("POST", CHAT, key=KEY, body=prompt()))
        await until_waiting(site)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await site.bench.logged()
        assert Aborted("client_disconnected") in site.bench.only_receipt().events
        assert not site.bench.upstreams.queue._lines
        assert site.bench.metrics.routing.waiting.numbers[""] == 0


async def test_a_router_that_stops_tells_those_who_wait_in_their_receipts(tmp_path: Path) -> None:
    async with https_site(tmp_path) as site:
        report(site, 4)
        asking = asyncio.create_task(site.ask("POST", CHAT, key=KEY, body=prompt()))
        await until_waiting(site)
        await site.stop()
        await site.bench.logged()
        assert Aborted("shutdown") in site.bench.only_receipt().events
        await asyncio.gather(asking, return_exceptions=True)
