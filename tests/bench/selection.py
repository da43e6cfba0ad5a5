"""Responsible for what it costs a router to choose among many verified nodes, beside reading all of them each time."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from teemesh.registry.v1 import registry_pb2 as pb

from libs.aci.endpoints import CHAT
from libs.policy.constraints import VERIFIED_ONLY
from services.router.prompt import Constraints
from services.router.routing.selection import Candidate, select
from tests.bench.report import Row
from tests.bench.samples import Samples
from tests.fakes.leases import MODEL, WEIGHTS, node_lease
from tests.fakes.peers import PeerTwin
from tests.fakes.routers import RouterBench, router_bench

_GOAL_SECONDS = 50e-6
_TIMES = 2000
_TENANT = "ab" * 16
_CAPACITY = 8
_BEGINNING_OCTETS = 2048


@dataclass(frozen=True, slots=True)
class Chosen:
    rows: tuple[Row, ...]
    note: str


@asynccontextmanager
async def _admitted(folder: Path, nodes: int, chance: random.Random) -> AsyncIterator[RouterBench]:
    """A router that has verified so many nodes, each with a load of its own."""
    async with router_bench(folder, nodes=0) as bench:
        for number in range(nodes):
            lease, target = node_lease(f"n{number}"), f"127.0.0.1:{number + 1}"
            bench.member.peers[target] = PeerTwin(target, lease)
            provider = pb.Provider(
                spiffe_id=lease.certificate.spiffe_id,
                endpoint=target,
                models=[pb.Model(id=MODEL, weights_sha256=bytes.fromhex(WEIGHTS))],
                spki_sha256=lease.certificate.spki_sha256,
                session_id=bench.publish_session(lease, target),
                lease_until_ms=int(lease.until * 1000),
                load=pb.Load(running_requests=chance.randrange(_CAPACITY), capacity=_CAPACITY),
            )
            bench.upstreams.take(pb.WatchResponse(changed=provider))
        await bench.upstreams.verify()
        if len(bench.upstreams.candidates()) != nodes:
            raise RuntimeError(f"only {len(bench.upstreams.candidates())} of {nodes} nodes were admitted")
        yield bench


async def measure_selection(folder: Path, nodes: int) -> Chosen:
    """Choose again and again; each time a request takes its place and leaves it."""
    chance = random.Random(1)  # noqa: S311 - a seed makes the figures comparable
    async with _admitted(folder, nodes, chance) as bench:
        upstreams, policy = bench.upstreams, bench.member.policy

        def whole() -> Candidate:
            return select(
                upstreams.candidates(),
                model=MODEL,
                endpoint=CHAT,
                constraints=Constraints(),
                tenant=VERIFIED_ONLY.of(_TENANT),
                allowed_models=policy.models,
                now_ms=int(time.time() * 1000),
                choice=chance,
            )

        def choose() -> None:
            with upstreams.using(upstreams.choose(MODEL, CHAT, Constraints(), _TENANT, frozenset())):
                pass

        def go_on() -> None:
            beginning = chance.randbytes(_BEGINNING_OCTETS)
            chosen = upstreams.choose(MODEL, CHAT, Constraints(), _TENANT, frozenset(), beginning=beginning)
            with upstreams.using(chosen):
                pass

        base, ours, alike = _times(whole, _TIMES // 10), _times(choose, _TIMES), _times(go_on, _TIMES)
    within = "within" if max(ours.p50, alike.p50) < _GOAL_SECONDS else "BEYOND"
    return Chosen(
        (
            Row(f"choosing among {nodes} nodes, beside reading all of them", base, ours),
            Row(f"choosing among {nodes} nodes where the prompt's beginning counts, beside the same", base, alike),
        ),
        f"choosing a node, p50: {ours.p50 * 1e6:.1f} us, by beginnings {alike.p50 * 1e6:.1f} us, {within} the goal of"
        f" {_GOAL_SECONDS * 1e6:g} us",
    )


def _times(act: Callable[[], object], count: int) -> Samples:
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return Samples(taken, elapsed=sum(taken))
