"""The first of two KMS processes is stopped: its connections stay, nothing on them is answered, the mesh goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.config import load
from libs.errors import Code, MeshError
from libs.identity.member import Member, join
from libs.rpc.errors import remote_errors
from services.router.config import Config
from tests.faults.load import Client, Record, open_client
from tests.faults.patience import until
from tests.mesh.running import RunningMesh, running_mesh, short_folder, teemesh

pytestmark = pytest.mark.mesh

CALL_SECONDS = 5.0
BOUND_SECONDS = 60
"""The KMS's silence counts after 30 s, and a mesh under test is slow to connect."""
FOLLOWERS = ("attestation", "broker", "ledger", "registry", "node", "router")
"""Whoever follows the KMS's statements."""


@contextmanager
def stopped(mesh: RunningMesh, service: str) -> Iterator[None]:
    """Its process group does nothing."""
    group = mesh.mesh["services"][service]["pid"]
    os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(group, signal.SIGCONT)


@asynccontextmanager
async def joined(mesh: RunningMesh, folder: Path) -> AsyncIterator[Member]:
    """Join as a second router."""
    settings = load(mesh.state / "config" / "router.toml", Config).member
    own = replace(settings, instance="silence", listen="127.0.0.1:0", state_dir=folder)
    async with join(own, "router", {}) as member:
        yield member


async def answering(member: Member) -> str:
    """Ask the KMS once; return which instance answered."""
    channel = await member.kms.channel(CALL_SECONDS)
    with remote_errors():
        await kms_pb2_grpc.KmsServiceStub(channel).GetStatement(kms_pb2.GetStatementRequest(), timeout=CALL_SECONDS)
    return member.kms.lease.certificate.spiffe_id


async def moved(mesh: RunningMesh, service: str) -> bool:
    """Whether a service has said that it uses the second KMS."""
    lines = (mesh.state / "logs" / f"{service}.log").read_text().splitlines()
    return any("another instance is used" in line and "/kms/kms-2" in line for line in lines)


async def answer(client: Client, number: int) -> None:
    record = Record()
    assert await client.ask(number, record, stream=False) is not None, dict(record.errors)


@pytest.mark.timeout(240)
async def test_the_mesh_goes_on_through_the_second_kms_when_the_first_falls_silent() -> None:
    with short_folder() as folder, running_mesh(folder, "--kms-replica") as mesh:
        described = mesh.state / "mesh.json"
        assert mesh.mesh["kms_grpc"] == [f"127.0.0.1:{mesh.ports[name]}" for name in ("kms", "kms-2")]
        async with joined(mesh, folder / "joined") as member, open_client(mesh.mesh) as client:
            async with asyncio.timeout(BOUND_SECONDS):
                while await client.ask(0, Record(), stream=False) is None:
                    pass
            assert (await answering(member)).endswith("/kms/local")
            with stopped(mesh, "kms"):
                # What got no answer is not sent to another instance by itself; whoever asks again is answered.
                with pytest.raises(MeshError) as error:
                    await answering(member)
                assert error.value.code is Code.DEADLINE_EXCEEDED
                for _ in range(3):
                    assert (await answering(member)).endswith("/kms/kms-2")
                await answer(client, 1)
                options = ("--mesh", str(described), "--timeout-seconds", "20")
                operator = await asyncio.to_thread(teemesh, "policy", "revocations", *options)
                assert operator.returncode == 0, operator.stderr
                assert f"no answer from the KMS at 127.0.0.1:{mesh.ports['kms']}" in operator.stderr
                async with asyncio.timeout(BOUND_SECONDS):
                    for service in FOLLOWERS:
                        await until(lambda service=service: moved(mesh, service))  # type: ignore[misc]
                await answer(client, 2)
            # The one that is used and answers stays so.
            assert (await answering(member)).endswith("/kms/kms-2")
            with stopped(mesh, "kms-2"):
                async with asyncio.timeout(BOUND_SECONDS):
                    await until(lambda: goes_on(member))
                assert (await answering(member)).endswith("/kms/local")
                await answer(client, 3)


async def goes_on(member: Member) -> bool:
    try:
        await answering(member)
    except MeshError:
        return False
    return True
