"""Clients that leave at any moment, of nodes that fail in any way: no place stays taken, and each has one receipt."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import pytest

from libs.transparency.leaf import Kind
from services.router.routing.settings import RoutingSettings
from tests.fakes.routers import PATIENCE_SECONDS, prompt, router_bench

_CLIENTS = 120


@pytest.mark.parametrize("seed", range(3))
async def test_whoever_leaves_wherever_no_place_stays_taken(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a seed makes the test repeat
    routing = RoutingSettings(queue_length=30, breaker_failures=3, breaker_seconds=0.01)
    async with router_bench(tmp_path, nodes=3, routing=routing) as bench, bench.issuance.recording():

        def misbehave() -> None:
            for node in bench.nodes:
                node.refuses = chance.random() < 0.2
                node.breaks_at = chance.choice((None, None, 0, 1))
                node.forges = chance.random() < 0.1
                node.status = chance.choice((200, 200, 400, 502))
                bench.peer_of(node).reachable = chance.random() < 0.9
                if chance.random() < 0.5:
                    node.stream()

        for node in bench.nodes:
            node.meanwhile = misbehave
        async with asyncio.timeout(2 * PATIENCE_SECONDS):
            clients = []
            for number in range(_CLIENTS):
                clients.append(asyncio.create_task(bench.run(prompt(n=number, stream=chance.random() < 0.5))))
                for _ in range(chance.randrange(20)):
                    await asyncio.sleep(0)
                if chance.random() < 0.5:
                    chance.choice(clients[-20:]).cancel()
            for client in clients:
                with suppress(asyncio.CancelledError):
                    await client
            began = [client for client in clients if not client.cancelled()]
            while len(bench.ledger.of(Kind.RECEIPT)) < len(began):
                await bench.logged()
        assert set(bench.upstreams._occupancy.own().values()) == {0}
        assert bench.metrics.routing.waiting.numbers[""] == 0
        assert not bench.upstreams.queue._lines
        assert len(bench.ledger.of(Kind.RECEIPT)) <= _CLIENTS
