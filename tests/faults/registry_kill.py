"""Kill registries and nats-server at random under load: no node is lost, none that is revoked served, all see the same.

`python -m tests.faults.registry_kill --minutes 5 --seed 7` makes two registries, a nats-server, a KMS, nodes, watchers
and a router of its own, prints what happened, and exits 0 only if all held. Some nodes are revoked meanwhile. A node is
lost when its lease has been over for as long again while there was a registry with its store to ask.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from libs.aci.endpoints import CHAT
from libs.rpc.hardening import ssl_hardening

ssl_hardening()

import structlog  # noqa: E402 - gRPC comes after the hardening
from teemesh.registry.v1 import registry_pb2 as pb  # noqa: E402

from libs.errors import MeshError  # noqa: E402
from libs.identity.member import Member  # noqa: E402
from libs.policy.revocation import RevocationKind  # noqa: E402
from services.devtee.machine import Machine  # noqa: E402
from services.router.prompt import Constraints  # noqa: E402
from services.router.routing.upstreams import Upstreams  # noqa: E402
from tests.fakes.joined_mesh import JoinedMesh, measurement_of  # noqa: E402
from tests.fakes.leases import MODEL, WEIGHTS  # noqa: E402
from tests.fakes.ledgers import TENANT  # noqa: E402
from tests.faults.kms_processes import Service  # noqa: E402
from tests.faults.patience import until  # noqa: E402
from tests.faults.registry_processes import RegistryMesh  # noqa: E402
from tests.faults.registry_users import Listed, Position, Watcher, ends_at, listed_node  # noqa: E402
from tests.mesh.running import short_folder  # noqa: E402

LEASE_SECONDS = 15.0
_KINDS = ("registry", "registry", "registry as it starts", "nats-server", "both registries", "registry and nats-server")
_LONGEST_PAUSE_SECONDS = 2.0
_PATIENCE_SECONDS = 60.0
_SAMPLE_SECONDS = 0.1
_REVOKED = 3
"""How many nodes are revoked: by name, by key and by what they were measured as."""
_HEARD_SECONDS = 2.0
"""How soon a router acts on what it has heard."""


@dataclass(slots=True)
class Outcome:
    """What a run of kills did."""

    kills: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    away_seconds: float = 0.0
    """How long there was no registry with its store."""
    longest_seconds: float = 0.0
    """The longest that a lease was over while there was one."""
    nodes: int = 0
    revoked: dict[str, str] = field(default_factory=dict)
    chosen: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)
    converged: str = ""
    wrong: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return bool(self.converged) and len(self.revoked) == _REVOKED and not self.wrong

    def report(self) -> str:
        events, told = self.counted, self.counted.copy()
        for name in ("events", "snapshots", "resumed", "compared"):
            del told[name]
        lines = [
            f"kills      {self.kills.total()} in {self.seconds:.0f} s: "
            + ", ".join(f"{count} {kind}" for kind, count in self.kills.most_common()),
            f"away       no registry with its store for {self.away_seconds:.0f} s in all",
            f"nodes      {self.nodes}; the longest that one was not listed otherwise: {self.longest_seconds:.1f} s",
            "revoked    " + (", ".join(f"{name} ({kind})" for name, kind in self.revoked.items()) or "nobody"),
            f"router     chose {self.chosen.total()} times among {len(self.chosen)} nodes",
            f"watchers   {events['events']} events, {events['compared']} states compared with the registry's; "
            f"{events['resumed']} watches resumed, {events['snapshots']} begun anew",
            "meantime   " + (", ".join(f"{count} x {kind}" for kind, count in told.most_common()) or "nothing"),
            f"converged  {self.converged or 'not'}",
        ]
        return "\n".join([*lines, *self.wrong])


class Killing:
    """One run over one mesh."""

    def __init__(self, registry: RegistryMesh, nodes: Sequence[Listed], watchers: Sequence[Watcher], router: Member):
        self._registry = registry
        self._nodes = nodes
        self._watchers = watchers
        self._router = router
        self._upstreams = Upstreams(router, router.any_peer("registry", registry.addresses))
        self._serving = set(registry.registries)
        self._overdue: dict[str, float] = {}
        self._revoked_for: dict[str, float] = {}
        """How long each node has been revoked while there was a registry to say so, seconds."""
        self._known_since = 0.0
        """Since when the router has known all revocations, by the loop's clock."""
        self._settled_at: Position = ("", 0)
        """Where the watchers were when all was over."""
        self.outcome = Outcome(nodes=len(nodes))
        for watcher in watchers:
            watcher.heard = self._hear

    async def run(self, seconds: float, chance: random.Random) -> Outcome:
        outcome, began = self.outcome, time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work) for work in (self._upstreams.follow(), self._upstreams.reconcile())]
            running += [tasks.create_task(watcher.follow()) for watcher in self._watchers]
            await self._until("all nodes are listed", self._all_listed)
            running.append(tasks.create_task(self._sample()))
            revoking = list(self._revocations())
            while not outcome.wrong and ((elapsed := time.monotonic() - began) < seconds or revoking):
                if revoking and elapsed > seconds * (len(outcome.revoked) + 1) / (_REVOKED + 1):
                    self._revoke(*revoking.pop(0))
                await self._kill(chance.choice(_KINDS), chance)
                await asyncio.sleep(chance.uniform(0, _LONGEST_PAUSE_SECONDS))
            await self._until("all nodes but those revoked are listed", self._all_listed)
            self._settled_at = self._watchers[0].position
            await self._until("all watchers hold the same", self._converged)
            for task in running:
                task.cancel()
        for watcher in self._watchers:
            outcome.counted.update(watcher.counted)
            outcome.wrong += watcher.wrong
        outcome.seconds = time.monotonic() - began
        return outcome

    async def _kill(self, kind: str, chance: random.Random) -> None:
        one = chance.choice(self._registry.registries)
        self.outcome.kills[kind] += 1
        match kind:
            case "registry":
                await self._kill_registries(one)
            case "registry as it starts":
                await self._kill_registries(one, starting_for=chance.uniform(0, 3))
            case "both registries":
                await self._kill_registries(*self._registry.registries)
            case "nats-server":
                await self._registry.kill_nats()
            case _:
                await self._registry.kill_nats()
                await self._kill_registries(one)
        await self._until("nats-server answers again", self._store_answers)

    async def _store_answers(self) -> bool:
        return self._registry.nats.ready

    async def _kill_registries(self, *services: Service, starting_for: float | None = None) -> None:
        """Kill them at once, and again as they start where a time is given; return when they serve."""
        for service in services:
            self._serving.discard(service)
            await self._end(service)
        for service in services:
            await service.start()
        if starting_for is not None:
            await asyncio.sleep(starting_for)
            for service in services:
                await self._end(service)
                await service.start()
        for service in services:
            await self._until("a registry that was started serves", service.ready)
            self._serving.add(service)

    async def _end(self, service: Service) -> None:
        status = await service.kill()
        if status != -signal.SIGKILL:
            self.outcome.wrong.append(f"a registry ended with status {status}: {service.log.read_text()[-2000:]}")

    def _revocations(self) -> list[tuple[RevocationKind, str, Listed]]:
        by_name, by_key, *_, by_measurement = self._nodes
        return [
            (RevocationKind.NODE, by_name.spiffe_id, by_name),
            (RevocationKind.KEY, by_key.member.identity.current.certificate.spki_sha256.hex(), by_key),
            (RevocationKind.MEASUREMENT, by_measurement.td.compose_hash.hex(), by_measurement),
        ]

    def _revoke(self, kind: RevocationKind, value: str, node: Listed) -> None:
        """One operator revokes; the KMS states it."""
        core = self._registry.core
        core.policy.accept_revocations([self._registry.mesh.revocation(kind, value)])
        self.outcome.revoked[node.spiffe_id] = kind.value
        self._revoked_for[node.spiffe_id] = 0.0
        self._known_since = 0.0

    def _hear(self, provider: pb.Provider) -> None:
        """A registry has just listed a node."""
        if self._revoked_for.get(provider.spiffe_id, 0.0) > self._registry.lease_seconds:
            self.outcome.wrong.append(f"{provider.spiffe_id} is listed, past a lease after it was revoked")

    async def _sample(self) -> None:
        clock = asyncio.get_running_loop().time
        last = clock()
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            passed, last = clock() - last, clock()
            self._choose()
            if not self._serving or not self._registry.nats.ready:
                self.outcome.away_seconds += passed
                continue
            for name in self._revoked_for:
                self._revoked_for[name] += passed
            for node in self._nodes:
                self._look_at(node.spiffe_id, passed)

    def _look_at(self, name: str, passed: float) -> None:
        if name in self._revoked_for:
            return
        if ends_at(self._watchers, name) > time.time():
            self._overdue.pop(name, None)
            return
        overdue = self._overdue.get(name, 0.0) + passed
        self.outcome.longest_seconds = max(self.outcome.longest_seconds, overdue)
        if overdue > self._registry.lease_seconds:
            self.outcome.wrong.append(f"{name} has no lease, though there was a registry for as long as one")
            overdue = 0.0
        self._overdue[name] = overdue

    def _choose(self) -> None:
        """Do as a request would. What the router has heard is revoked, it never chooses."""
        clock = asyncio.get_running_loop().time()
        if self._router.policy.revocations.digest != self._registry.core.policy.revocations.digest:
            self._known_since = 0.0
        elif not self._known_since:
            self._known_since = clock
        with suppress(MeshError):
            chosen = self._upstreams.choose(
                MODEL, CHAT, Constraints(), TENANT.tenant_id, frozenset()
            ).candidate.spiffe_id
            self.outcome.chosen[chosen] += 1
            if chosen in self._revoked_for and self._known_since and clock - self._known_since > _HEARD_SECONDS:
                self.outcome.wrong.append(f"the router chose {chosen}, which is revoked")

    async def _all_listed(self) -> bool:
        wanted = {node.spiffe_id for node in self._nodes} - set(self._revoked_for)
        return all(set(watcher.state) == wanted for watcher in self._watchers) and all(
            ends_at([watcher], name) > time.time() for watcher in self._watchers for name in wanted
        )

    async def _converged(self) -> bool:
        """Find one position that all watchers were at since all was over; whatever they share, they held the same."""
        common = set.intersection(*(set(watcher.digests) for watcher in self._watchers))
        self.outcome.wrong += [
            f"at {position} watchers hold different states"
            for position in common
            if len({watcher.digests[position] for watcher in self._watchers}) > 1
        ]
        epoch, sequence = self._settled_at
        reached = [position for position in common if position[0] == epoch and position[1] > sequence]
        if reached:
            digest = self._watchers[0].digests[max(reached)]
            self.outcome.converged = f"all held {digest[:16]} at {max(reached)[1]} of {epoch[:8]}"
        return bool(reached)

    async def _until(self, claim: str, holds: Callable[[], Awaitable[bool]]) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await until(holds, _SAMPLE_SECONDS)
        except TimeoutError:
            self.outcome.wrong.append(f"not so after {_PATIENCE_SECONDS:.0f} s: {claim}")


async def kill_registries(
    folder: Path, *, seconds: float, seed: int, nodes: int, watchers: int, lease_seconds: float = LEASE_SECONDS
) -> Outcome:
    """Kill for so long; then see whether all is as it should be."""
    mesh = JoinedMesh(folder, Machine.create(int(time.time())))
    other = mesh.boot("node", "another image")
    measurements = [measurement_of(td).to_json() for td in (mesh.tds["node"], other)]
    mesh.draft["roles"]["node"]["measurements"] = measurements
    mesh.allow_models({MODEL: [WEIGHTS]})
    registry = RegistryMesh(mesh, lease_seconds)
    async with registry.running(), AsyncExitStack() as stack:
        listed = [
            await stack.enter_async_context(
                listed_node(registry, f"n{number}", other if number == nodes - 1 else mesh.tds["node"])
            )
            for number in range(nodes)
        ]
        router = await stack.enter_async_context(registry.joined("router", "1", {}))
        watching = []
        for number in range(watchers):
            member = await stack.enter_async_context(registry.joined("router", f"w{number}", {}))
            # Every other one prefers the second instance.
            order = registry.addresses if number % 2 else registry.addresses[::-1]
            watching.append(Watcher(member.any_peer("registry", order)))
        chance = random.Random(seed)  # noqa: S311 - an order of deaths, not a secret
        return await Killing(registry, listed, watching, router).run(seconds, chance)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.registry_kill", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="of what dies and when (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=20, help="at least 4 (default: %(default)s)")
    parser.add_argument("--watchers", type=int, default=5, help="(default: %(default)s)")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with short_folder() as folder:
        outcome = asyncio.run(
            kill_registries(
                folder,
                seconds=arguments.minutes * 60,
                seed=arguments.seed,
                nodes=arguments.nodes,
                watchers=arguments.watchers,
            )
        )
    sys.stdout.write(outcome.report() + "\n")
    return 0 if outcome.holds and outcome.kills else 1


if __name__ == "__main__":
    sys.exit(main())
