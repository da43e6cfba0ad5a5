"""It is responsible for the one tenant of a local mesh: a random id, one API key, and its record in the registry.

The record is signed by the tenant administrator; storing it again changes nothing, so that is done at every start. One
that operators have changed since stays as they made it.
"""

from __future__ import annotations

import re
import secrets
import uuid
from dataclasses import dataclass

import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.registry.v1 import tenants_pb2, tenants_pb2_grpc

from libs import jcs
from libs.files import write_durably
from libs.policy.tenant_record import TENANT_ID_BYTES, TenantRecord, unrestricted
from libs.policy.tenants import TenantVersionNotNext, api_key_digest, sign_tenant
from libs.rpc.channel import open_channel
from libs.rpc.errors import to_mesh_error
from services.cli.mesh.layout import Layout
from services.cli.mesh.operator_certificate import OperatorCredential
from services.cli.mesh.roster import TRUST_DOMAIN
from services.cli.terminal.inputs import InputUnreadable, read_json

_KEY_PREFIX = "sk-teemesh-"
_TENANT_ID = re.compile(r"[0-9a-f]{32}")
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class LocalTenant:
    """Who uses a local mesh."""

    tenant_id: str
    api_key: str

    @property
    def record(self) -> TenantRecord:
        return TenantRecord(self.tenant_id, version=1, name="local", keys=unrestricted(api_key_digest(self.api_key)))


def ensure_tenant(layout: Layout) -> LocalTenant:
    """Return the tenant, made on first use. Raises `InputUnreadable`."""
    path = layout.tenant
    if not path.exists():
        tenant = LocalTenant(secrets.token_hex(TENANT_ID_BYTES), _KEY_PREFIX + secrets.token_urlsafe(32))
        write_durably(path, jcs.dumps({"tenant_id": tenant.tenant_id, "api_key": tenant.api_key}))
        return tenant
    kept = read_json(path)
    tenant_id, api_key = kept.get("tenant_id"), kept.get("api_key")
    if not isinstance(tenant_id, str) or not _TENANT_ID.fullmatch(tenant_id) or not isinstance(api_key, str):
        raise InputUnreadable(f"{path} is not what teemesh wrote: remove it to get a new tenant and API key")
    return LocalTenant(tenant_id, api_key)


async def store_tenant(
    tenant: LocalTenant, registry: str, credential: OperatorCredential, tenant_admin: Ed25519PrivateKey
) -> None:
    """Store the tenant's record in the registry. Raises what the registry refuses with."""
    request = tenants_pb2.PutTenantRequest(
        signed_record=sign_tenant(tenant.record, tenant_admin), request_id=uuid.uuid4().hex
    )
    async with open_channel(
        registry,
        root_pem=credential.ca_pem,
        server_name=f"registry.{TRUST_DOMAIN}",
        key_pem=credential.key_pem,
        certificate_pem=credential.certificate.pem,
    ) as channel:
        try:
            await tenants_pb2_grpc.TenantServiceStub(channel).PutTenant(request, timeout=_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            refusal = to_mesh_error(error)
            # A later version of it is there: operators have changed it since.
            if refusal.reason != TenantVersionNotNext.reason:
                raise refusal from error
