"""When a mesh is whole again: the process is back, everyone serves, and a new answer is logged and provable."""

from __future__ import annotations

import asyncio
import time

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.errors import MeshError
from libs.rpc.channel import open_channel
from libs.tee.dstack import Guest
from tests.faults.load import Client, Record
from tests.faults.patience import until
from tests.faults.targets import Target
from tests.mesh.running import RunningMesh

SERVING = ("attestation", "kms", "broker", "ledger", "registry", "node", "router")
_LONGEST_SECONDS = 100.0


async def until_whole(mesh: RunningMesh, client: Client, target: Target, killed: int, probe: Record) -> float:
    """Wait until the mesh is whole without the killed process; return how long that took, in seconds."""
    began = time.monotonic()
    waiting = "the process"
    try:
        async with asyncio.timeout(_LONGEST_SECONDS):
            await until(lambda: _is_another(mesh, target, killed))
            waiting = "everyone to serve"
            await until(lambda: everyone_serves(mesh))
            waiting = "an answer"
            completion = None
            while completion is None:
                completion = await client.ask(-probe.sent - 1, probe, stream=probe.sent % 2 == 0)
            waiting = f"a proof of {completion.receipt_id}"
            receipt_id = completion.receipt_id
            await until(lambda: _is_proven(client, receipt_id))
    except TimeoutError as error:
        raise AssertionError(
            f"{target.name}: waited {_LONGEST_SECONDS:.0f} s for {waiting}; {dict(probe.errors)}\n{mesh.logs()}"
        ) from error
    return time.monotonic() - began


async def everyone_serves(mesh: RunningMesh) -> bool:
    """Ask every service over mutual TLS, and the software TEE on a socket of its."""
    answers = await asyncio.gather(_platform_answers(mesh), *(_serves(mesh, role) for role in SERVING))
    return all(answers)


async def _is_another(mesh: RunningMesh, target: Target, killed: int) -> bool:
    return target.pid(mesh) not in (None, killed)


async def _serves(mesh: RunningMesh, role: str) -> bool:
    async with open_channel(
        f"127.0.0.1:{mesh.ports[role]}",
        root_pem=mesh.file("mesh_ca"),
        server_name=f"{role}.{mesh.mesh['trust_domain']}",
        key_pem=mesh.file("operator_key"),
        certificate_pem=mesh.file("operator_cert"),
    ) as channel:
        stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=3)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _platform_answers(mesh: RunningMesh) -> bool:
    try:
        async with Guest(mesh.state / "sockets" / "router.sock", timeout_seconds=3) as guest:
            await guest.info()
    except MeshError:
        return False
    return True


async def _is_proven(client: Client, receipt_id: str) -> bool:
    return (await client.get(f"/v1/teemesh/receipts/{receipt_id}/commitment")).status == 200
