"""Responsible for what a registry bears: a thousand nodes that renew every five seconds, and fifty watchers.

The registry, the KMS, the ledger and the broker are processes of their own; nodes and watchers are this one.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.identity.certificate import Subject, key_pem, pem_of, spki_of_certificate
from libs.policy.revocation import Revocation, RevocationKind, sign_revocation
from libs.process import tethered
from libs.rpc.channel import fetch_leaf, open_channel
from services.devtee.machine import Machine
from tests.bench.processes import cpu_seconds
from tests.bench.registry_fleet import MODEL, WEIGHTS, Bearer, Fleet, Heard
from tests.bench.report import Row, Section
from tests.bench.samples import Samples
from tests.bench.selection import measure_selection
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.faults.kms_processes import ROOT, KmsMesh, Service

_NODES = 1000
_WATCHERS = 50
_SETTLE_SECONDS = 6.0
_SECONDS = 20.0
_DELTA_GOAL_SECONDS = 0.1
_CPU_GOAL = 0.6
_REVOCATION_GOAL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Load:
    """How many there are."""

    nodes: int = _NODES
    watchers: int = _WATCHERS


@dataclass(slots=True)
class Measured:
    """What one server did under the load."""

    heard: Heard = field(default_factory=Heard)
    seconds: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)
    """Share of one core, by process."""

    @property
    def deltas(self) -> Samples:
        return Samples(self.heard.taken, elapsed=self.seconds)

    @property
    def calls(self) -> Samples:
        return Samples(self.heard.calls, elapsed=self.seconds)


@dataclass(frozen=True, slots=True)
class Ground:
    """A mesh whose registry serves, and all that can be issued in it."""

    mesh: JoinedMesh
    kms: KmsMesh
    core: KmsCore
    registry: Service
    target: str
    folder: Path

    @property
    def ca_pem(self) -> bytes:
        return pem_of(self.core.ca.certificate)


@asynccontextmanager
async def _ground(folder: Path) -> AsyncIterator[Ground]:
    mesh = JoinedMesh(folder, Machine.create(int(time.time())))
    mesh.draft = {**mesh.draft, "models": {MODEL: [WEIGHTS]}}
    async with KmsMesh(mesh).prepared() as kms, mesh.guest(mesh.tds["registry"]) as guest:
        await kms.kms.start()
        if not await kms.kms.ready():
            raise RuntimeError(f"the KMS does not start: {kms.kms.log.read_text()}")
        core = mesh.kms("core", root=await kms.root_of(kms.kms))
        registry = Service("registry", "1", folder)
        with registry.heard():
            async with kms.logging(core):
                registry.configure(_configuration(kms, guest))
                await registry.start()
                if not await registry.ready():
                    raise RuntimeError(f"the registry does not start: {registry.log.read_text()}")
                try:
                    yield Ground(mesh, kms, core, registry, kms.address("second"), folder)
                finally:
                    await registry.kill()


def _configuration(kms: KmsMesh, guest: Path) -> dict[str, Any]:
    return {
        # The second KMS of this mesh is not started: its port is free.
        "member": {**kms.member("registry", "1", guest), "listen": kms.address("second")},
        "events": kms.events("registry", "1"),
        "ledger": kms.address("ledger"),
        "lease_seconds": 15.0,
    }


async def _run(fleet: Fleet, measured: Measured, pids: dict[str, int]) -> None:
    await asyncio.sleep(_SETTLE_SECONDS)
    began, before = time.perf_counter(), {name: cpu_seconds(pid) for name, pid in pids.items()}
    measured.heard.measuring = True
    await asyncio.sleep(_SECONDS)
    measured.heard.measuring = False
    measured.seconds = time.perf_counter() - began
    measured.cpu = {name: (cpu_seconds(pid) - before[name]) / measured.seconds for name, pid in pids.items()}


async def _registry(ground: Ground, nodes: list[Bearer], load: Load) -> tuple[Measured, float]:
    """Measure the registry, and at the end how long a revocation of all nodes takes."""
    measured = Measured()
    router = Bearer.make(ground.mesh, ground.core, "router", "bench")
    leaf = await _leaf(ground, router)
    fleet = Fleet(ground.target, ground.ca_pem, leaf, measured.heard)
    pids = {"registry": ground.registry.pid, "nodes and watchers": os.getpid(), "nats-server": _nats()}
    async with fleet.running(nodes, router, load.watchers, leased=True):
        await _run(fleet, measured, pids)
        began = time.perf_counter()
        await _revoke_nodes(ground)
        async with asyncio.timeout(60):
            ended = [await stream for stream in fleet.streams]
    return measured, max(ended) - began


async def _bare(ground: Ground, nodes: list[Bearer], load: Load) -> Measured:
    measured = Measured()
    router = Bearer.make(ground.mesh, ground.core, "router", "bare")
    folder = ground.folder / "bare"
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    subject = Subject(TRUST_DOMAIN, "registry", "bare", bytes(32))
    certificate = ground.core.ca.issue_svid(subject, key.public_key(), time.time())
    for name, content in (
        ("key.pem", key_pem(key)),
        ("certificate.pem", pem_of(certificate)),
        ("ca.pem", ground.ca_pem),
    ):
        (folder / name).write_bytes(content)
    command = tethered([sys.executable, "-m", "tests.bench.registry_bare", str(folder)])
    server = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        assert server.stdout is not None
        port = int(await server.stdout.readline())
        fleet = Fleet(f"127.0.0.1:{port}", ground.ca_pem, b"", measured.heard)
        pids = {"bare server": server.pid, "nodes and watchers": os.getpid()}
        async with fleet.running(nodes, router, load.watchers, leased=False):
            await _run(fleet, measured, pids)
    finally:
        server.kill()
        await server.wait()
    return measured


async def _leaf(ground: Ground, bearer: Bearer) -> bytes:
    der = await fetch_leaf(
        ground.target,
        server_name=f"registry.{TRUST_DOMAIN}",
        timeout=10,
        ca_pem=ground.ca_pem,
        key_pem=bearer.key,
        certificate_pem=bearer.certificate,
    )
    return hashlib.sha256(spki_of_certificate(der)).digest()


async def _revoke_nodes(ground: Ground) -> None:
    (measurement,) = ground.mesh.draft["roles"]["node"]["measurements"]
    value, now = measurement["compose_hash"], int(time.time() * 1000)
    revocation = Revocation(TRUST_DOMAIN, RevocationKind.MEASUREMENT, value, "a benchmark", now)
    signed = sign_revocation(revocation, ground.mesh.operators[2])
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = ground.core.ca.issue_svid(
        Subject(TRUST_DOMAIN, "operator", "bench", None), key.public_key(), time.time()
    )
    async with open_channel(
        ground.kms.address("kms"),
        root_pem=ground.ca_pem,
        server_name=f"kms.{TRUST_DOMAIN}",
        key_pem=key_pem(key),
        certificate_pem=pem_of(certificate),
    ) as channel:
        request = kms_pb2.RevokeRequest(signed_revocation=signed.document, request_id=uuid.uuid4().hex)
        await kms_pb2_grpc.KmsServiceStub(channel).Revoke(request, timeout=30)


async def measure(folder: Path, load: Load | None = None) -> Section:
    load = load or Load()
    async with _ground(folder) as ground:
        nodes = [Bearer.make(ground.mesh, ground.core, "node", f"n{number}") for number in range(load.nodes)]
        base = await _bare(ground, nodes, load)
        ours, closed = await _registry(ground, nodes, load)
    selection = await measure_selection(folder, load.nodes)
    return Section(
        "registry",
        "a bare grpc.aio server that fans the same messages out: no lease, no store, no second instance",
        f"{load.nodes} nodes renewing every 5 s, {load.watchers} watchers, one registry on {os.cpu_count()} cores",
        [
            Row("from a renewal to each watcher's delta", base.deltas, ours.deltas),
            Row("the renewal itself", base.calls, ours.calls),
            *selection.rows,
        ],
        [
            _verdict("watch delta p99", ours.deltas.p99 * 1000, _DELTA_GOAL_SECONDS * 1000, "ms"),
            _verdict("the registry's share of a core", ours.cpu["registry"] * 100, _CPU_GOAL * 100, "%"),
            _verdict("revocation to the last of all nodes' streams", closed, _REVOCATION_GOAL_SECONDS, "s"),
            selection.note,
            f"shares of a core, {_shares(ours)}; at the base, {_shares(base)}",
            f"renewals that failed: {ours.heard.failed}, at the base {base.heard.failed}",
        ],
    )


def _verdict(what: str, value: float, goal: float, unit: str) -> str:
    return f"{what}: {value:.1f} {unit}, {'within' if value < goal else 'BEYOND'} the goal of {goal:g} {unit}"


def _shares(measured: Measured) -> str:
    return ", ".join(f"{name} {share * 100:.0f} %" for name, share in measured.cpu.items())


def _nats() -> int:
    """The broker that this process started; the program's name is in /proc/PID/stat, its parent's id after it."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = stat.read_text().rpartition(")")
        if name.endswith("(nats-server") and int(rest.split()[1]) == os.getpid():
            return int(stat.parent.name)
    raise RuntimeError("no nats-server was started here")
