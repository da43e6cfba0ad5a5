"""It is responsible for being found: registering this node, renewing its lease with its load, and leaving in order.

The registry may be away at any time; nothing here ever ends the node.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import grpc
import structlog
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs.errors import MeshError
from libs.rpc.errors import remote_errors
from services.node.engine import EngineLoad

RENEW_SECONDS = 5.0
_FIRST_RETRY_SECONDS = 0.2
_CALL_SECONDS = 4.0

log = structlog.get_logger()


class RegistryPeer(Protocol):
    """Where the registry is reached; a `libs.identity` peer is one."""

    async def channel(self, timeout: float) -> grpc.aio.Channel: ...


class Standing(Protocol):
    """Whether this node may be listed; `libs.identity.gpu_watch` says it of its GPUs."""

    outdated: frozenset[bytes]
    """Keys under which it may not be listed again, by SHA-256."""

    @property
    def is_judged(self) -> bool: ...

    async def until_judged(self) -> None: ...

    async def until_doubted(self) -> None: ...


class Busyness(Protocol):
    """What a lease reports; an engine is one."""

    @property
    def ready(self) -> bool: ...

    @property
    def load(self) -> EngineLoad: ...

    async def until_ready(self) -> None: ...

    async def until_away(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model, as claimed in this node's evidence."""

    model_id: str
    weights_sha256: bytes


@dataclass(frozen=True, slots=True)
class Registration:
    """What this node tells the registry about itself."""

    peer: RegistryPeer
    endpoint: str
    """host:port of the mesh listener, as routers reach it."""
    models: Sequence[ServedModel]
    busyness: Busyness
    gpus: Standing
    key: Callable[[], bytes]
    """Names the key that the registry is shown. Its session is sealed for one key, so a new key registers again."""


async def keep_registered(registration: Registration, *, renew_seconds: float = RENEW_SECONDS) -> None:
    """Register once the engine answers and renew for ever, at once when the engine goes or comes back; begin again when
    the registry has forgotten this node.

    While its GPUs are doubted it is not listed, nor after that by a key whose evidence shows others.
    """
    await registration.busyness.until_ready()
    delay = _FIRST_RETRY_SECONDS
    registered: bytes | None = None
    while True:
        if not registration.gpus.is_judged:
            if registered is not None:
                await _deregister(registration)
                registered = None
            await registration.gpus.until_judged()
            continue
        key = registration.key()
        if key in registration.gpus.outdated:
            # The connection to the registry shows the new key within a second.
            await asyncio.sleep(_FIRST_RETRY_SECONDS)
            continue
        try:
            # A registration says nothing of the engine, which was ready for it.
            told_ready = registration.busyness.ready if registered == key else True
            if registered == key:
                await _renew(registration, draining=not told_ready)
            else:
                await _register(registration)
                registered = key
            delay = _FIRST_RETRY_SECONDS
            await _until_turned(registration, told_ready, renew_seconds)
            continue
        except MeshError as error:
            if error.reason == "LEASE_UNKNOWN" and registered is not None:
                registered = None
                continue
            log.warning("registry not reached", reason=error.reason, retry_seconds=delay)
        await asyncio.sleep(delay)
        delay = min(delay * 2, renew_seconds)


@asynccontextmanager
async def registered(registration: Registration) -> AsyncIterator[None]:
    """Keep the node registered while the body runs; then take it off the list, so that routers look elsewhere."""
    async with asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(keep_registered(registration))
        try:
            yield
        finally:
            keeping.cancel()
    await _deregister(registration)


async def _register(registration: Registration) -> None:
    stub = await _stub(registration)
    request = registry_pb2.RegisterRequest(
        endpoint=registration.endpoint,
        models=[
            registry_pb2.Model(id=model.model_id, weights_sha256=model.weights_sha256) for model in registration.models
        ],
        load=_load(registration.busyness),
        request_id=secrets.token_hex(16),
    )
    with remote_errors():
        response = await stub.Register(request, timeout=_CALL_SECONDS)
    log.info("registered", endpoint=registration.endpoint, session_id=response.session_id.hex())


async def _until_turned(registration: Registration, told_ready: bool, seconds: float) -> None:
    """Wait until the engine is not what was told of it, or the GPUs are doubted, `seconds` at most."""
    busyness = registration.busyness
    async with asyncio.TaskGroup() as tasks:
        waiting = [
            tasks.create_task(busyness.until_away() if told_ready else busyness.until_ready()),
            tasks.create_task(registration.gpus.until_doubted()),
        ]
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()


async def _renew(registration: Registration, *, draining: bool) -> None:
    stub = await _stub(registration)
    # An engine that is being restarted takes no work, and comes back before the lease is worth giving up.
    request = registry_pb2.RenewRequest(load=_load(registration.busyness), draining=draining)
    with remote_errors():
        await stub.Renew(request, timeout=_CALL_SECONDS)


async def _deregister(registration: Registration) -> None:
    try:
        stub = await _stub(registration)
        with remote_errors():
            await stub.Deregister(registry_pb2.DeregisterRequest(), timeout=_CALL_SECONDS)
    except MeshError as error:
        # The lease ends by itself within seconds.
        log.info("not deregistered", reason=error.reason)


async def _stub(registration: Registration) -> registry_pb2_grpc.ProviderRegistryServiceStub:
    return registry_pb2_grpc.ProviderRegistryServiceStub(await registration.peer.channel(_CALL_SECONDS))


def _load(busyness: Busyness) -> registry_pb2.Load:
    load = busyness.load
    return registry_pb2.Load(
        running_requests=load.running,
        waiting_requests=load.waiting,
        capacity=load.capacity,
        kv_cache_permille=load.kv_cache_permille,
    )
