"""Responsible for the cost of a warm leased call, beside the same call on plain mutual TLS without any of our code.

Both servers and both clients run in this process, so a figure is the work of both ends together.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.identity.member import Member
from libs.rpc.policies import MethodRule, ServiceBinding
from services.devtee.machine import Machine
from tests.bench.report import Row, Section
from tests.bench.samples import Action, in_pairs
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh
from tests.fakes.small_mesh import KMS, kms_servicer

_SECONDS = 5.0
_PAIRS = 10
_CALLS = 800
"""Of each kind in a pair."""
_STATEMENT = kms_pb2.GetStatementResponse(statement=bytes(300))


async def _statement() -> kms_pb2.GetStatementResponse:
    return _STATEMENT


def _add(server: grpc.aio.Server) -> None:
    kms_pb2_grpc.add_KmsServiceServicer_to_server(kms_servicer(_statement), server)


@asynccontextmanager
async def leased(client: Member, server: Member) -> AsyncIterator[Action]:
    """The call as services make it: ask the peer for its channel, then call through the middleware and the lease."""
    rule = MethodRule(roles=frozenset({client.role}))
    async with server.serve([ServiceBinding(KMS, _add, {f"/{KMS}/GetStatement": rule})]) as serving:
        peer = client.peer(server.role, f"127.0.0.1:{serving.port}")

        async def act() -> None:
            stub = kms_pb2_grpc.KmsServiceStub(await peer.channel(_SECONDS))
            await stub.GetStatement(kms_pb2.GetStatementRequest(), timeout=_SECONDS)

        yield act


@asynccontextmanager
async def plain(client: Member, server: Member) -> AsyncIterator[Action]:
    """The same servicer, keys and certificates on gRPC's own mutual TLS."""
    theirs, ours = server.identity.current, client.identity.current
    bare = grpc.aio.server()
    _add(bare)
    pair = (theirs.key_pem, theirs.certificate.pem)
    port = bare.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([pair], server.ca_pem, require_client_auth=True)
    )
    await bare.start()
    credentials = grpc.ssl_channel_credentials(server.ca_pem, ours.key_pem, ours.certificate.pem)
    named = (("grpc.ssl_target_name_override", f"{server.role}.{TRUST_DOMAIN}"),)
    try:
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=named) as channel:
            stub = kms_pb2_grpc.KmsServiceStub(channel)

            async def act() -> None:
                await stub.GetStatement(kms_pb2.GetStatementRequest(), timeout=_SECONDS)

            yield act
    finally:
        await bare.stop(None)


async def measure(folder: Path) -> Section:
    mesh = JoinedMesh(folder, Machine.create(int(time.time())))
    kms = mesh.kms()
    async with (
        mesh.member("kms", kms) as server,
        mesh.member("router", kms) as client,
        leased(client, server) as leased_call,
        plain(client, server) as plain_call,
    ):
        taken = {
            concurrency: await in_pairs(
                plain_call, leased_call, pairs=_PAIRS, in_a_row=_CALLS // concurrency, concurrency=concurrency
            )
            for concurrency in (1, 8)
        }
    return Section(
        "calls",
        "plain mutual TLS grpc.aio",
        "warm peer, lease, standard middleware; mutual TLS with the pinned leaf",
        [Row(f"unary call {at_once} at once", pairs.base, pairs.ours) for at_once, pairs in taken.items()],
        [
            f"{at_once} at once: {pairs.median_ratio:.2f}x the base's throughput, the median of {_PAIRS} pairs"
            f" ({min(pairs.ratios):.2f} to {max(pairs.ratios):.2f})"
            for at_once, pairs in taken.items()
        ],
    )
