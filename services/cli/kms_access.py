"""It is responsible for an operator's calls to the KMS of a local state folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from teemesh.kms.v1 import kms_pb2_grpc

from services.cli.mesh_reading import MeshReader
from services.cli.service_access import ServiceAccess, read_service_access

TIMEOUT_SECONDS = 15.0


@asynccontextmanager
async def kms_stub(access: ServiceAccess) -> AsyncIterator[kms_pb2_grpc.KmsServiceStub]:
    """A connection to the KMS for as long as the body runs."""
    async with access.channel() as channel:
        yield kms_pb2_grpc.KmsServiceStub(channel)


def read_kms_access(state: Path) -> ServiceAccess:
    """Read mesh.json of a state folder. Raises `InputUnreadable`."""
    return read_service_access(MeshReader(state / "mesh.json"), "kms")
