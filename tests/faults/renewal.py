"""Renew every service's certificate again and again under load, and count what failed: no call and no stream may.

`python -m tests.faults.renewal --renewals 10` makes a mesh of its own whose certificates live 20 seconds, prints what
happened, and exits 0 only if everything held.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from libs.rpc.hardening import ssl_hardening

ssl_hardening()

import grpc.aio  # noqa: E402 - gRPC comes after the hardening
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc  # noqa: E402
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc  # noqa: E402

from libs.config import load  # noqa: E402
from libs.errors import MeshError  # noqa: E402
from libs.identity.member import Member, join  # noqa: E402
from libs.identity.peers import Peer  # noqa: E402
from libs.rpc.channel import fetch_leaf  # noqa: E402
from libs.rpc.errors import remote_errors  # noqa: E402
from services.router.config import Config  # noqa: E402
from tests.faults.load import Record, loading, open_client  # noqa: E402
from tests.faults.patience import until  # noqa: E402
from tests.mesh.running import RunningMesh, running_mesh, short_folder  # noqa: E402

LIFE_SECONDS = 20
PER_SECOND = 210.0
CHATS_PER_SECOND = 1.0
_CALL_SECONDS = 5.0
_SILENCE_SECONDS = 25.0
_POLL_SECONDS = 0.5
_LISTENERS = ("attestation", "kms", "broker", "nats", "ledger", "registry", "node", "router")
"""Whatever shows a certificate of the mesh; `nats` is nats-server's own listener, under the broker's name."""

Ask = Callable[[grpc.aio.Channel], Awaitable[object]]


@dataclass(slots=True)
class Calls:
    """What came of the unary calls to one service."""

    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Stream:
    """What came of one stream that was begun before the first renewal."""

    messages: int = 0
    end: str | None = None


@dataclass(slots=True)
class Outcome:
    """What a run of renewals did."""

    shown: dict[str, dict[bytes, None]]
    """The leaves that each listener has shown, in order."""
    calls: dict[str, Calls] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    chats: Record = field(default_factory=Record)
    kills: int = 0
    """Of the first KMS."""
    began_at: float = field(default_factory=time.monotonic)
    ended_at: float = 0.0

    def renewals(self, listener: str) -> int:
        return max(len(self.shown[listener]) - 1, 0)

    @property
    def fewest_renewals(self) -> int:
        return min(self.renewals(listener) for listener in self.shown)

    @property
    def per_second(self) -> float:
        return sum(len(calls.seconds) for calls in self.calls.values()) / (self.ended_at - self.began_at)

    @property
    def holds(self) -> bool:
        failed = any(calls.failures for calls in self.calls.values()) or bool(self.chats.errors)
        cut = any(stream.end is not None or not stream.messages for stream in self.streams.values())
        return bool(self.calls and self.streams and self.chats.completions) and not failed and not cut

    def report(self) -> str:
        lines = [
            f"calls         {sum(len(calls.seconds) for calls in self.calls.values())} in "
            f"{self.ended_at - self.began_at:.0f} s, {self.per_second:.0f} per second",
            f"chats         {len(self.chats.completions)} of {self.chats.sent}, failed: {_counted(self.chats.errors)}",
            "renewals      " + ", ".join(f"{self.renewals(name)} {name}" for name in self.shown),
            "",
            f"{'called':<10} {'calls':>8} {'p50 ms':>8} {'p99 ms':>8} {'longest':>8}  failed",
        ]
        for name, calls in self.calls.items():
            ordered = sorted(calls.seconds) or [0.0]
            p50, p99 = (ordered[int(len(ordered) * share)] * 1000 for share in (0.5, 0.99))
            longest = ordered[-1] * 1000
            failed = _counted(calls.failures)
            lines.append(f"{name:<10} {len(calls.seconds):>8} {p50:>8.1f} {p99:>8.1f} {longest:>8.1f}  {failed}")
        if self.kills:
            lines.append(f"first KMS  killed {self.kills} times")
        for name, stream in self.streams.items():
            lines.append(f"stream     {name}: {stream.messages} messages, {stream.end or 'unbroken'}")
        return "\n".join(lines)


async def renew_all(
    mesh: RunningMesh, folder: Path, *, renewals: int, per_second: float = PER_SECOND, first_kms: bool = True
) -> Outcome:
    """Put a mesh under load until every listener has shown so many new certificates after its first.

    The load begins once each service has answered; from then on every failure counts. Without the first KMS, that one
    is killed as soon as the load runs, and again whenever it comes back.
    """
    listeners = [name if first_kms or name != "kms" else "kms-2" for name in _LISTENERS]
    async with _joined(mesh, folder) as member, open_client(mesh.mesh) as client:
        peers = {name: member.peer(name, f"127.0.0.1:{mesh.ports[name]}") for name in ("router", "registry", "ledger")}
        for name, peer in peers.items():
            await until(lambda peer=peer, ask=_ASKING[name]: _answers(peer, ask))  # type: ignore[misc]
        outcome = Outcome(
            shown={name: {} for name in listeners},
            calls={name: Calls() for name in peers},
            streams={name: Stream() for name in peers},
        )
        async with loading(client, CHATS_PER_SECOND) as outcome.chats, asyncio.TaskGroup() as tasks:
            background = [
                *(tasks.create_task(_follow(peers[name], name, stream)) for name, stream in outcome.streams.items()),
                *(tasks.create_task(_look(mesh, name, outcome)) for name in listeners),
                *([] if first_kms else [tasks.create_task(_keep_dead(mesh, "kms", outcome))]),
            ]
            async with asyncio.TaskGroup() as calling:
                sending = [
                    calling.create_task(_send(peers[name], _ASKING[name], calls, per_second / len(peers), calling))
                    for name, calls in outcome.calls.items()
                ]
                await until(lambda: _has_renewed(outcome, renewals))
                for task in sending:
                    task.cancel()
            outcome.ended_at = time.monotonic()
            for task in background:
                task.cancel()
    return outcome


async def _answers(peer: Peer, ask: Ask) -> bool:
    """Whether a service is as far as to be asked: a fresh ledger has signed no checkpoint yet."""
    calls = Calls()
    await _call(peer, ask, calls)
    return not calls.failures


async def _has_renewed(outcome: Outcome, renewals: int) -> bool:
    return outcome.fewest_renewals >= renewals


@asynccontextmanager
async def _joined(mesh: RunningMesh, folder: Path) -> AsyncIterator[Member]:
    """Join as a second router, measured as the first one: what it calls, it calls as services do."""
    settings = load(mesh.state / "config" / "router.toml", Config).member
    own = replace(settings, instance="load", listen="127.0.0.1:0", state_dir=folder)
    async with join(own, "router", {}) as member:
        yield member


async def _ask_router(channel: grpc.aio.Channel) -> object:
    stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
    return await stub.Check(health_pb2.HealthCheckRequest(), timeout=_CALL_SECONDS)


async def _ask_registry(channel: grpc.aio.Channel) -> object:
    stub = registry_pb2_grpc.ProviderRegistryServiceStub(channel)
    return await stub.ListProviders(registry_pb2.ListProvidersRequest(), timeout=_CALL_SECONDS)


async def _ask_ledger(channel: grpc.aio.Channel) -> object:
    stub = ledger_pb2_grpc.LedgerServiceStub(channel)
    return await stub.GetCheckpoint(ledger_pb2.GetCheckpointRequest(), timeout=_CALL_SECONDS)


_ASKING: Mapping[str, Ask] = {"router": _ask_router, "registry": _ask_registry, "ledger": _ask_ledger}


async def _send(peer: Peer, ask: Ask, calls: Calls, per_second: float, tasks: asyncio.TaskGroup) -> None:
    """Call at a steady rate, whatever becomes of the calls before."""
    due = time.monotonic()
    while True:
        tasks.create_task(_call(peer, ask, calls))
        due += 1 / per_second
        await asyncio.sleep(due - time.monotonic())


async def _call(peer: Peer, ask: Ask, calls: Calls) -> None:
    began = time.monotonic()
    try:
        channel = await peer.channel(_CALL_SECONDS)
        with remote_errors():
            await ask(channel)
    except MeshError as error:
        calls.failures[f"{error.reason}: {error}"] += 1
    calls.seconds.append(time.monotonic() - began)


async def _follow(peer: Peer, name: str, stream: Stream) -> None:
    """Read one stream, begun once. The router's says something only when its health changes."""
    call = _STREAMING[name](await peer.channel(_CALL_SECONDS))
    silence = None if name == "router" else _SILENCE_SECONDS
    try:
        with remote_errors():
            while True:
                async with asyncio.timeout(silence):
                    message = await call.read()
                if message is grpc.aio.EOF:
                    stream.end = "ended"
                    return
                stream.messages += 1
    except TimeoutError:
        stream.end = "fell silent"
    except MeshError as error:
        stream.end = f"{error.reason}: {error}"


_STREAMING: Mapping[str, Callable[[grpc.aio.Channel], grpc.aio.UnaryStreamCall[Any, Any]]] = {
    "router": lambda channel: health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()),  # type: ignore[no-untyped-call]
    "registry": lambda channel: registry_pb2_grpc.ProviderRegistryServiceStub(channel).Watch(
        registry_pb2.WatchRequest()
    ),
    "ledger": lambda channel: ledger_pb2_grpc.LedgerServiceStub(channel).Tail(ledger_pb2.TailRequest(follow=True)),
}


async def _look(mesh: RunningMesh, listener: str, outcome: Outcome) -> None:
    """Note every certificate that a listener shows to whoever connects now."""
    role = {"nats": "broker", "kms-2": "kms"}.get(listener, listener)
    while True:
        leaf = await fetch_leaf(
            f"127.0.0.1:{mesh.ports[listener]}",
            server_name=f"{role}.{mesh.mesh['trust_domain']}",
            timeout=_CALL_SECONDS,
            ca_pem=mesh.file("mesh_ca"),
            key_pem=mesh.file("operator_key"),
            certificate_pem=mesh.file("operator_cert"),
        )
        outcome.shown[listener][leaf] = None
        await asyncio.sleep(_POLL_SECONDS)


async def _keep_dead(mesh: RunningMesh, name: str, outcome: Outcome) -> None:
    while True:
        pid = json.loads((mesh.state / "mesh.json").read_text())["services"][name]["pid"]
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                outcome.kills += 1
        await asyncio.sleep(_POLL_SECONDS / 2)


def _counted(errors: Counter[str]) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in errors.most_common()) or "none"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.renewal", description=__doc__)
    parser.add_argument("--renewals", type=int, default=10, help="how often each service renews (default: 10)")
    parser.add_argument("--without-first-kms", action="store_true", help="keep the first of two KMS instances dead")
    parser.add_argument("--per-second", type=float, default=PER_SECOND, help="calls a second (default: %(default)s)")
    arguments = parser.parse_args()
    options = ["--certificate-seconds", str(LIFE_SECONDS)]
    if arguments.without_first_kms:
        options.append("--kms-replica")
    with short_folder() as folder, running_mesh(folder, *options) as mesh:
        outcome = asyncio.run(
            renew_all(
                mesh,
                folder / "load",
                renewals=arguments.renewals,
                per_second=arguments.per_second,
                first_kms=not arguments.without_first_kms,
            )
        )
    sys.stdout.write(outcome.report() + "\n")
    return 0 if outcome.holds and outcome.per_second >= arguments.per_second * 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
