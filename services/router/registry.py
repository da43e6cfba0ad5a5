"""It is responsible for what this router hears from the registry: which nodes there are, and their sessions.

All of it is the registry's word. A session is at least the one that its id names; what a node is, others find out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs.aci.session import verify_session
from libs.errors import MeshError
from libs.identity.any_peer import Channels
from libs.rpc.errors import remote_errors

_WATCH_AGAIN_SECONDS = 1.0
_CALL_SECONDS = 5.0
_WATCH_SILENCE_SECONDS = 30.0
_MAX_SESSIONS = 10_000

log = structlog.get_logger()


class Registry:
    """The registry as it answers now, and the sessions that it gave."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._sessions: dict[str, bytes] = {}

    async def follow(self, take: Callable[[registry_pb2.WatchResponse], None]) -> None:
        """Hand over everything that the watch says, for ever. When the registry is away nothing is said."""
        while True:
            try:
                await self._watch(take)
            except MeshError as error:
                log.warning("no watch on the registry", reason=error.reason, detail=str(error))
            await asyncio.sleep(_WATCH_AGAIN_SECONDS)

    async def session(self, session_id: str) -> bytes:
        """Return a session document, current or past. Raises the registry's `SESSION_UNKNOWN`."""
        if session_id not in self._sessions:
            document = await self._fetch_session(bytes.fromhex(session_id))
            verify_session(document, session_id)
            if len(self._sessions) >= _MAX_SESSIONS:
                self._sessions.pop(next(iter(self._sessions)))
            self._sessions[session_id] = document
        return self._sessions[session_id]

    async def _watch(self, take: Callable[[registry_pb2.WatchResponse], None]) -> None:
        call = (await self._stub()).Watch(registry_pb2.WatchRequest())
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
        finally:
            call.cancel()

    async def _fetch_session(self, session_id: bytes) -> bytes:
        stub = await self._stub()
        with remote_errors():
            response = await stub.GetSession(
                registry_pb2.GetSessionRequest(session_id=session_id), timeout=_CALL_SECONDS
            )
        return response.document

    async def _stub(self) -> registry_pb2_grpc.ProviderRegistryServiceStub:
        return registry_pb2_grpc.ProviderRegistryServiceStub(await self._channels.channel(_CALL_SECONDS))
