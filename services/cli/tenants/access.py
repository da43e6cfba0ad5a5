"""It is responsible for tenants' records at the registry: fetched, verified before they count, and stored.

Who is tenant administrator is asked of the KMS and verified, as everything that policy says is; what the registry gives
out counts only under that key.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc.aio
from teemesh.registry.v1 import tenants_pb2 as pb
from teemesh.registry.v1 import tenants_pb2_grpc

from libs.errors import Code, MeshError
from libs.policy.tenant_record import TENANT_ID_BYTES, TenantRecord
from libs.policy.tenants import verify_tenant
from services.cli.mesh.instances import Instances
from services.cli.mesh.registry_access import ListingEndless, RegistrySilent, read_registry_access
from services.cli.policy.in_force import read_in_force

_MAX_PAGES = 10_000

T = TypeVar("T")


class TenantForeign(MeshError):
    """The registry gave out another tenant's record than was asked for."""

    code = Code.PERMISSION_DENIED
    reason = "TENANT_FOREIGN"


@dataclass(frozen=True, slots=True)
class Listed:
    """A record that the registry gave out: verified, or why not."""

    record: TenantRecord | None
    refusal: MeshError | None = None


class TenantAccess:
    """One mesh's tenants. Every method raises what the registry or the KMS refuses with."""

    def __init__(self, mesh: Path, timeout_seconds: float) -> None:
        self._mesh = mesh
        self._timeout = timeout_seconds

    async def all(self) -> list[Listed]:
        """Return every record, those too that are not genuine. Raises `ListingEndless`."""
        key, signed = await asyncio.gather(self._admin_key(), self._all())
        return [_judged(each, key) for each in signed]

    async def one(self, tenant_id: str) -> TenantRecord:
        """Return a tenant's record, verified. Raises `TenantForeign` and what `verify_tenant` raises."""
        request = pb.GetTenantRequest(tenant_id=bytes.fromhex(tenant_id))

        async def ask(stub: tenants_pb2_grpc.TenantServiceStub, seconds: float) -> bytes:
            return (await stub.GetTenant(request, timeout=seconds)).signed_record

        key, signed = await asyncio.gather(self._admin_key(), self._ask(ask))
        record = verify_tenant(signed, key)
        if record.tenant_id != tenant_id:
            raise TenantForeign("the registry gave out another tenant's record")
        return record

    async def store(self, signed: bytes) -> TenantRecord:
        """Store a signed record, once it is verified here."""
        record = verify_tenant(signed, await self._admin_key())
        request = pb.PutTenantRequest(signed_record=signed, request_id=uuid.uuid4().hex)

        async def ask(stub: tenants_pb2_grpc.TenantServiceStub, seconds: float) -> None:
            await stub.PutTenant(request, timeout=seconds)

        await self._ask(ask)
        return record

    async def _all(self) -> list[bytes]:
        async def ask(stub: tenants_pb2_grpc.TenantServiceStub, seconds: float) -> list[bytes]:
            found: list[bytes] = []
            token = ""
            for _ in range(_MAX_PAGES):
                page = await stub.ListTenants(pb.ListTenantsRequest(page_token=token), timeout=seconds)
                found.extend(page.signed_records)
                token = page.next_page_token
                if not token:
                    return found
            raise ListingEndless(f"more than {_MAX_PAGES} pages: this is not a registry of this mesh")

        return await self._ask(ask)

    async def _admin_key(self) -> bytes:
        return (await read_in_force(self._mesh, self._timeout, time.time())).policy.tenant_admin_key

    async def _ask(self, ask: Callable[[tenants_pb2_grpc.TenantServiceStub, float], Awaitable[T]]) -> T:
        async def over(channel: grpc.aio.Channel, seconds: float) -> T:
            return await ask(tenants_pb2_grpc.TenantServiceStub(channel), seconds)

        instances = read_registry_access(self._mesh).instances
        return await Instances("the registry", RegistrySilent, instances).ask(over, self._timeout)


def _judged(signed: bytes, admin_key: bytes) -> Listed:
    try:
        return Listed(verify_tenant(signed, admin_key))
    except MeshError as error:
        return Listed(None, error)


def is_tenant_id(text: str) -> bool:
    """Say whether this could be a tenant's id."""
    return len(text) == 2 * TENANT_ID_BYTES and all(letter in "0123456789abcdef" for letter in text)
