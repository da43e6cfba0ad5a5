"""A node is found, stays found, comes back when forgotten, and leaves in order; against a registry over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.gpu_watch import GpuStanding
from libs.rpc.errors import STATUS_DETAILS_KEY, status_of
from services.node.engine import EngineLoad
from services.node.registration import Registration, ServedModel, keep_registered, registered

PATIENCE_SECONDS = 10.0


class LeaseUnknown(MeshError):
    code = Code.NOT_FOUND
    reason = "LEASE_UNKNOWN"


class Registry(registry_pb2_grpc.ProviderRegistryServiceServicer):
    """Notes every call; forgets the node, or is away, when told."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[Any] = asyncio.Queue()
        self.forget = False
        self.away = 0
        self.hang = asyncio.Event()
        self.hanging = asyncio.Event()

    async def Register(self, request: Any, context: Any) -> registry_pb2.RegisterResponse:  # noqa: N802
        if self.away:
            self.away -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        self.calls.put_nowait(request)
        return registry_pb2.RegisterResponse(lease_until_ms=1, session_id=bytes(32))

    async def Renew(self, request: Any, context: Any) -> registry_pb2.RenewResponse:  # noqa: N802
        if self.forget:
            self.forget = False
            status = status_of(LeaseUnknown("no such lease"))
            details = ((STATUS_DETAILS_KEY, status.SerializeToString()),)
            await context.abort(grpc.StatusCode.NOT_FOUND, status.message, details)
        if self.hang.is_set():
            self.hanging.set()
            await asyncio.Event().wait()
        self.calls.put_nowait(request)
        return registry_pb2.RenewResponse(lease_until_ms=2)

    async def Deregister(self, request: Any, context: Any) -> registry_pb2.DeregisterResponse:  # noqa: N802
        self.calls.put_nowait(request)
        return registry_pb2.DeregisterResponse()

    async def Drain(self, request: Any, context: Any) -> registry_pb2.DrainResponse:  # noqa: N802
        return registry_pb2.DrainResponse()

    async def Resume(self, request: Any, context: Any) -> registry_pb2.ResumeResponse:  # noqa: N802
        return registry_pb2.ResumeResponse()

    async def ListProviders(self, request: Any, context: Any) -> registry_pb2.ListProvidersResponse:  # noqa: N802
        return registry_pb2.ListProvidersResponse()

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[registry_pb2.WatchResponse]:  # noqa: N802
        yield registry_pb2.WatchResponse()

    async def ListSessions(self, request: Any, context: Any) -> registry_pb2.ListSessionsResponse:  # noqa: N802
        return registry_pb2.ListSessionsResponse()

    async def GetPolicy(self, request: Any, context: Any) -> registry_pb2.GetPolicyResponse:  # noqa: N802
        return registry_pb2.GetPolicyResponse()

    async def GetSession(self, request: Any, context: Any) -> registry_pb2.GetSessionResponse:  # noqa: N802
        return registry_pb2.GetSessionResponse()

    async def called(self) -> Any:
        return await asyncio.wait_for(self.calls.get(), PATIENCE_SECONDS)


class Peer:
    def __init__(self, target: str) -> None:
        self._target = target
        self._channel = grpc.aio.insecure_channel(target)

    async def channel(self, timeout: float) -> grpc.aio.Channel:
        return self._channel

    async def replace(self) -> None:
        old, self._channel = self._channel, grpc.aio.insecure_channel(self._target)
        await old.close()

    async def close(self) -> None:
        await self._channel.close()


class Engine:
    """Ready from the start; the test says what it is busy with."""

    def __init__(self) -> None:
        self.load = EngineLoad(running=1, waiting=2, capacity=4)
        self._ready, self._away = asyncio.Event(), asyncio.Event()
        self.turn(ready=True)

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    def turn(self, *, ready: bool) -> None:
        came, went = (self._ready, self._away) if ready else (self._away, self._ready)
        came.set()
        went.clear()

    async def until_ready(self) -> None:
        await self._ready.wait()

    async def until_away(self) -> None:
        await self._away.wait()


class Node:
    def __init__(
        self, registry: Registry, server: grpc.aio.Server, peer: Peer, registration: Registration, engine: Engine
    ) -> None:
        self.registry = registry
        self.server = server
        self.peer = peer
        self.registration = registration
        self.engine = engine


@asynccontextmanager
async def meeting(key: Callable[[], bytes] = lambda: b"key") -> AsyncIterator[Node]:
    registry, engine, gpus = Registry(), Engine(), GpuStanding()
    server = grpc.aio.server()
    registry_pb2_grpc.add_ProviderRegistryServiceServicer_to_server(registry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    peer = Peer(f"127.0.0.1:{port}")
    models = [ServedModel("m", bytes(range(32)))]
    yield Node(registry, server, peer, Registration(peer, "host:1", models, engine, gpus, key), engine)
    await peer.close()
    await server.stop(None)


@asynccontextmanager
async def keeping(node: Node, renew_seconds: float = 0.01) -> AsyncIterator[None]:
    task = asyncio.create_task(keep_registered(node.registration, renew_seconds=renew_seconds))
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def nothing_called(node: Node) -> bool:
    """Whether the loop, given many turns, calls nobody."""
    for _ in range(1000):
        await asyncio.sleep(0)
    return node.registry.calls.empty()


async def test_a_node_registers_and_then_renews_with_its_load() -> None:
    async with meeting() as node, keeping(node):
        first = await node.registry.called()
        assert isinstance(first, registry_pb2.RegisterRequest)
        assert (first.endpoint, first.models[0].id, first.models[0].weights_sha256) == ("host:1", "m", bytes(range(32)))
        second = await node.registry.called()
        assert isinstance(second, registry_pb2.RenewRequest)
        assert (second.load.running_requests, second.load.waiting_requests, second.load.capacity) == (1, 2, 4)
        assert not second.draining


async def test_a_cache_is_reported_when_the_engine_speaks_of_it() -> None:
    async with meeting() as node, keeping(node):
        first = await node.registry.called()
        assert not first.load.HasField("kv_cache_permille")
        node.engine.load = EngineLoad(running=0, waiting=0, capacity=4, kv_cache_permille=0)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (load := (await node.registry.called()).load).HasField("kv_cache_permille"):
                pass
        assert load.kv_cache_permille == 0


async def test_a_node_whose_engine_is_away_takes_no_work() -> None:
    async with meeting() as node, keeping(node):
        await node.registry.called()
        node.engine.turn(ready=False)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (await node.registry.called()).draining:
                pass


async def test_an_engine_that_goes_or_comes_back_is_told_of_at_once() -> None:
    """The next renewal would be an hour away."""
    async with meeting() as node, keeping(node, renew_seconds=3600.0):
        assert isinstance(await node.registry.called(), registry_pb2.RegisterRequest)
        for ready in (False, True, False):
            node.engine.turn(ready=ready)
            assert (await node.registry.called()).draining is not ready


async def test_a_forgotten_node_registers_again() -> None:
    async with meeting() as node, keeping(node):
        await node.registry.called()
        node.registry.forget = True
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not isinstance(await node.registry.called(), registry_pb2.RegisterRequest):
                pass


async def test_a_new_key_registers_again() -> None:
    keys = [b"old", b"old"]
    async with meeting(lambda: keys.pop(0) if keys else b"new") as node, keeping(node):
        kinds = [type(await node.registry.called()).__name__ for _ in range(4)]
        assert kinds == ["RegisterRequest", "RenewRequest", "RegisterRequest", "RenewRequest"]


async def test_a_node_whose_gpus_are_doubted_leaves_the_list_and_returns_by_another_key() -> None:
    shown = [b"old"]
    async with meeting(lambda: shown[0]) as node:
        gpus = node.registration.gpus
        assert isinstance(gpus, GpuStanding)
        async with registered(node.registration):
            assert isinstance(await node.registry.called(), registry_pb2.RegisterRequest)
            gpus.doubt("GPU_CHANGED", frozenset({b"old"}))
            assert isinstance(await node.registry.called(), registry_pb2.DeregisterRequest)
            gpus.settle()
            # The connection may show the old key for a moment yet: its evidence is about other GPUs.
            assert await nothing_called(node)
            shown[0] = b"new"
            assert isinstance(await node.registry.called(), registry_pb2.RegisterRequest)


async def test_a_node_whose_gpus_are_doubted_before_it_was_listed_is_not_listed() -> None:
    async with meeting() as node:
        gpus = node.registration.gpus
        assert isinstance(gpus, GpuStanding)
        gpus.doubt("GPU_CONFIDENTIAL_MODE_OFF", frozenset())
        async with registered(node.registration):
            assert await nothing_called(node)
            gpus.settle()
            assert isinstance(await node.registry.called(), registry_pb2.RegisterRequest)


async def test_a_registry_that_is_away_is_asked_again() -> None:
    async with meeting() as node:
        node.registry.away = 2
        async with keeping(node):
            assert isinstance(await node.registry.called(), registry_pb2.RegisterRequest)


async def test_a_node_leaves_when_its_body_ends() -> None:
    async with meeting() as node:
        async with registered(node.registration):
            await node.registry.called()
        assert isinstance(await node.registry.called(), registry_pb2.DeregisterRequest)


async def test_leaving_succeeds_when_the_registry_is_gone() -> None:
    async with meeting() as node, registered(node.registration):
        await node.registry.called()
        await node.server.stop(None)


async def test_a_channel_closed_under_a_call_does_not_end_the_registration() -> None:
    """What a refusal of the registry's evidence does: every call on the channel is cancelled from within."""
    async with meeting() as node, keeping(node):
        await node.registry.called()
        node.registry.hang.set()
        await asyncio.wait_for(node.registry.hanging.wait(), PATIENCE_SECONDS)
        node.registry.hang.clear()
        await node.peer.replace()
        assert await node.registry.called() is not None
