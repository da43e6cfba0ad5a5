"""It is responsible for looking up tenant records at the registry, which is not trusted: `tenants` verifies them."""

from __future__ import annotations

from teemesh.registry.v1 import tenants_pb2, tenants_pb2_grpc

from libs.identity.any_peer import Channels
from libs.rpc.errors import remote_errors

_CALL_SECONDS = 3.0


class TenantDirectory:
    """The registry's TenantService."""

    def __init__(self, registry: Channels) -> None:
        self._registry = registry

    async def find(self, api_key_sha256: bytes) -> bytes:
        """Return the signed record that lists a key. Raises API_KEY_UNKNOWN, or what keeps the registry away."""
        stub = tenants_pb2_grpc.TenantServiceStub(await self._registry.channel(_CALL_SECONDS))
        with remote_errors():
            response = await stub.FindTenant(
                tenants_pb2.FindTenantRequest(api_key_sha256=api_key_sha256), timeout=_CALL_SECONDS
            )
        return response.signed_record
