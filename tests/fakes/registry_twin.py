"""A registry over gRPC that lists what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs.errors import Code, MeshError
from libs.rpc.errors import STATUS_DETAILS_KEY, status_of


class SessionUnknown(MeshError):
    code = Code.NOT_FOUND
    reason = "SESSION_UNKNOWN"


class RegistryTwin(registry_pb2_grpc.ProviderRegistryServiceServicer):
    """Holds sessions; whatever it lists is the test's word."""

    def __init__(self) -> None:
        self.sessions: dict[bytes, bytes] = {}
        self.events: asyncio.Queue[registry_pb2.WatchResponse] = asyncio.Queue()

    async def GetSession(self, request: Any, context: Any) -> registry_pb2.GetSessionResponse:  # noqa: N802
        document = self.sessions.get(request.session_id)
        if document is None:
            status = status_of(SessionUnknown("no session of that id"))
            await context.abort(grpc.StatusCode.NOT_FOUND, "", ((STATUS_DETAILS_KEY, status.SerializeToString()),))
        return registry_pb2.GetSessionResponse(document=document or b"")

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[registry_pb2.WatchResponse]:  # noqa: N802
        while True:
            yield await self.events.get()


def registry_twin() -> RegistryTwin:
    return RegistryTwin()  # type: ignore[abstract]  # The other methods stay unimplemented.
