"""It is responsible for what this router hears from the registry of nodes: which there are, as one of them says it.

All of it is the registry's word. What a node is, others find out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs.errors import MeshError
from libs.identity.any_peer import Channels
from libs.rpc.errors import remote_errors

_WATCH_AGAIN_SECONDS = 1.0
_CALL_SECONDS = 5.0
_WATCH_SILENCE_SECONDS = 30.0

log = structlog.get_logger()


class Registry:
    """The registry as it answers now."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def follow(self, take: Callable[[registry_pb2.WatchResponse], None]) -> None:
        """Hand over everything that the watch says, for ever. When the registry is away nothing is said."""
        while True:
            try:
                await self._watch(take)
            except MeshError as error:
                log.warning("no watch on the registry", reason=error.reason, detail=str(error))
            await asyncio.sleep(_WATCH_AGAIN_SECONDS)

    async def _watch(self, take: Callable[[registry_pb2.WatchResponse], None]) -> None:
        channel = await self._channels.channel(_CALL_SECONDS)
        call = registry_pb2_grpc.ProviderRegistryServiceStub(channel).Watch(registry_pb2.WatchRequest())
        try:
            while True:
                with remote_errors():
                    async with asyncio.timeout(_WATCH_SILENCE_SECONDS):
                        event = await call.read()
                if not isinstance(event, registry_pb2.WatchResponse):
                    return  # The end of the stream.
                take(event)
        except TimeoutError:
            log.warning("the registry's watch fell silent")
            # The next watch is to be another instance's, where there is one.
            channel.is_away = True
        finally:
            call.cancel()
