"""Responsible for how long a revoked node goes on: from one operator's call until its channels and streams are gone.

Two watch it: a router of this process, which is attested by the router's own virtual TD and streams from the node, and
a client that streams through the mesh's own router. After each time the operators lift what was revoked.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import grpc.aio
from teemesh.inference.v1 import inference_pb2, inference_pb2_grpc
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.config import load
from libs.errors import MeshError
from libs.identity.member import join
from libs.identity.peers import Peer
from libs.policy.document import Policy
from libs.policy.revocation import RevocationKind
from libs.policy.signatures import parse_signed
from libs.rpc.channel import open_channel
from libs.rpc.errors import remote_errors
from services.cli.mesh.layout import Layout
from services.cli.mesh.ports import HOST
from services.router.config import Config
from tests.bench.chat import PATH, chat_request, router_client
from tests.bench.report import Row, Section
from tests.bench.samples import Samples, percentile
from tests.mesh.operating import revocation, successor
from tests.mesh.running import RunningMesh

_ROUNDS = 5
_BOUND_SECONDS = 5.0
_MANY_TOKENS = 1500
"""More than the model makes in the time that a revocation takes."""
_SECONDS = 60.0
_AGAIN_SECONDS = 0.1


@dataclass(slots=True)
class _Taken:
    """Seconds from the operator's call on, each time."""

    confirmed: list[float] = field(default_factory=list)
    cut: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)


class _Stream:
    """Something that streams, and when it ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended_at = 0.0

    def end(self) -> None:
        self.ended_at = time.perf_counter()


@asynccontextmanager
async def _one_more_router(mesh: RunningMesh, folder: Path) -> AsyncIterator[Peer]:
    """Join as a router; return its peer, the node."""
    config = load(Layout(mesh.state).config("router"), Config)
    settings = replace(config.member, instance="watcher", listen=f"{HOST}:0", state_dir=folder / "member")
    async with join(settings, "router", {}) as member:
        yield member.peer("node", f"{HOST}:{mesh.ports['node']}")


@asynccontextmanager
async def _operator(mesh: RunningMesh) -> AsyncIterator[kms_pb2_grpc.KmsServiceStub]:
    described = mesh.mesh
    async with open_channel(
        described["kms_grpc"][0],
        root_pem=mesh.file("mesh_ca"),
        server_name=f"kms.{described['trust_domain']}",
        key_pem=mesh.file("operator_key"),
        certificate_pem=mesh.file("operator_cert"),
    ) as channel:
        yield kms_pb2_grpc.KmsServiceStub(channel)


def _endless(model: str) -> bytes:
    return json.dumps(
        json.loads(chat_request(model, stream=True, max_tokens=_MANY_TOKENS)) | {"ignore_eos": True}
    ).encode()


async def _from_the_node(channel: grpc.aio.Channel, body: bytes, stream: _Stream) -> None:
    """Stream from the node as a router does, until that is cut."""
    call = inference_pb2_grpc.InferenceServiceStub(channel).Infer(
        inference_pb2.InferRequest(
            endpoint=PATH, body=body, request_id=secrets.token_hex(16), tenant_id=secrets.token_hex(16)
        ),
        timeout=_SECONDS,
    )
    try:
        while True:
            with remote_errors():
                part = await call.read()
            if not isinstance(part, inference_pb2.InferResponse):
                raise RuntimeError("the node ended its stream before it was revoked: it must stream for longer")
            if part.HasField("chunk"):
                stream.begun.set()
    except MeshError:
        stream.end()
    finally:
        call.cancel()


async def _through_the_router(client: aiohttp.ClientSession, body: bytes, stream: _Stream) -> None:
    received = bytearray()
    async with client.post(PATH, data=body) as response:
        async for chunk in response.content.iter_any():
            stream.begun.set()
            received += chunk
    stream.end()
    if b"MEASUREMENT_REVOKED" not in received:
        raise RuntimeError(f"the client's stream ended without the reason: {bytes(received[-500:])!r}")


async def _admitted(client: aiohttp.ClientSession, peer: Peer, body: bytes) -> grpc.aio.Channel:
    """Wait until both routers use the node; return the channel to it."""
    async with asyncio.timeout(_SECONDS):
        while True:
            async with client.post(PATH, data=body) as response:
                served = response.status == 200
            try:
                if served:
                    return await peer.channel(5)
            except MeshError:
                served = False
            await asyncio.sleep(_AGAIN_SECONDS)


async def _policy(kms: kms_pb2_grpc.KmsServiceStub) -> tuple[bytes, Policy]:
    answer = await kms.GetPolicy(kms_pb2.GetPolicyRequest(), timeout=10)
    return answer.signed_policy, parse_signed(answer.signed_policy).policy


async def _round(
    mesh: RunningMesh, kms: kms_pb2_grpc.KmsServiceStub, peer: Peer, client: aiohttp.ClientSession, taken: _Taken
) -> None:
    model = mesh.mesh["model"]
    channel = await _admitted(client, peer, chat_request(model, stream=False, max_tokens=1))
    current, policy = await _policy(kms)
    (measurement,) = policy.roles["node"].measurements
    ours, clients = _Stream(), _Stream()
    async with asyncio.timeout(_SECONDS), asyncio.TaskGroup() as tasks:
        tasks.create_task(_from_the_node(channel, _endless(model), ours))
        tasks.create_task(_through_the_router(client, _endless(model), clients))
        await ours.begun.wait()
        await clients.begun.wait()
        signed = revocation(mesh, RevocationKind.MEASUREMENT, measurement.compose_hash)
        began = time.perf_counter()
        await kms.Revoke(kms_pb2.RevokeRequest(signed_revocation=signed.document), timeout=10)
        taken.confirmed.append(time.perf_counter() - began)
    if peer.live_lease() is not None:
        raise RuntimeError("the stream ended and the channel did not")
    taken.cut.append(ours.ended_at - began)
    taken.ended.append(clients.ended_at - began)
    lifted = [identifier.hex() for identifier in (*policy.lifted_revocations, signed.revocation.id)]
    following = successor(mesh, current, {"lifted_revocations": lifted})
    await kms.PublishPolicy(kms_pb2.PublishPolicyRequest(signed_policy=following), timeout=10)


async def measure(mesh: RunningMesh, folder: Path) -> Section:
    taken = _Taken()
    async with (
        _one_more_router(mesh, folder) as peer,
        _operator(mesh) as kms,
        router_client(mesh) as client,
    ):
        for _ in range(_ROUNDS):
            await _round(mesh, kms, peer, client, taken)
        await _admitted(client, peer, chat_request(mesh.mesh["model"], stream=False, max_tokens=1))
    slowest = percentile([*taken.cut, *taken.ended], 100)
    verdict = "within" if slowest < _BOUND_SECONDS else "BEYOND"
    confirmed = _samples(taken.confirmed)
    return Section(
        "revocation",
        "the KMS's answer to the operator: verified, logged, durable",
        "from the same call on, a running node's measurement being revoked",
        [
            Row("a router's channel to the node closed, its stream cancelled", confirmed, _samples(taken.cut)),
            Row("a client's stream through the router ended, with the reason", confirmed, _samples(taken.ended)),
        ],
        [f"slowest of {2 * _ROUNDS}: {slowest * 1000:.1f} ms, {verdict} the bound of {_BOUND_SECONDS:.0f} s"],
    )


def _samples(seconds: list[float]) -> Samples:
    return Samples(seconds, elapsed=sum(seconds))
