"""It is responsible for the answer to "is this service ready?" in gRPC's health protocol.

One server has one answer for all its services: NOT_SERVING until it is ready and again from the moment it drains.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.errors import Code, MeshError
from libs.rpc.calls import Context

SERVICE = "grpc.health.v1.Health"
_Status = health_pb2.HealthCheckResponse


class ServiceUnknown(MeshError):
    """The health of a service was asked that is not here."""

    code = Code.NOT_FOUND
    reason = "SERVICE_UNKNOWN"


class Health(health_pb2_grpc.HealthServicer):
    """Tells and watches readiness."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset({"", SERVICE, *services})
        self._ready = False
        self._changed = asyncio.Event()

    def set(self, ready: bool) -> None:
        """Change the answer and wake the watchers."""
        self._ready = ready
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> _Status:  # noqa: N802
        if request.service not in self._services:
            raise ServiceUnknown("no such service here")
        return _Status(status=self._status(request.service))

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[_Status]:
        while True:
            changed = self._changed
            yield _Status(status=self._status(request.service))
            await changed.wait()

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if service not in self._services:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if self._ready else _Status.NOT_SERVING
