"""What operators of a local mesh do with their keys: sign and publish the next policy, revoke, let tenants in."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teemesh.registry.v1 import tenants_pb2, tenants_pb2_grpc

from libs import jcs
from libs.policy.revocation import Revocation, RevocationKind, SignedRevocation, sign_revocation
from libs.policy.signatures import parse_signed
from libs.policy.tenant_record import TenantRecord
from libs.policy.tenants import sign_tenant
from libs.rpc.channel import open_channel
from services.cli.mesh.operators import load_key
from services.cli.policy.draft import sign_policy, unsigned
from tests.mesh.running import RunningMesh, teemesh


def successor(mesh: RunningMesh, current: bytes, changed: Mapping[str, Any]) -> bytes:
    """Return the signed policy after `current` with these members changed, signed by two of three operators."""
    members = jcs.loads_object(current)["policy"]
    digest = parse_signed(current).policy.digest
    signed = unsigned(members | {"version": members["version"] + 1, "previous": digest.hex()} | dict(changed))
    for operator in (1, 3):
        signed = sign_policy(signed, load_key(mesh.state / "operators" / f"operator-{operator}.pem"))
    return signed


def publish(mesh: RunningMesh, changed: Mapping[str, Any], folder: Path) -> None:
    """Sign the successor of the policy in force with these members as two of three operators, and publish it."""
    signed = successor(mesh, mesh.file("policy"), changed)
    path = folder / "next.json"
    path.write_bytes(signed)
    done = teemesh("policy", "publish", str(path), "--mesh", str(mesh.state / "mesh.json"))
    assert done.returncode == 0, done.stderr


async def put_tenant(mesh: RunningMesh, record: TenantRecord) -> None:
    """Sign a tenant's record as the tenant administrator, and store it."""
    signed = sign_tenant(record, load_key(mesh.state / "operators" / "tenant-admin.pem"))
    async with open_channel(
        mesh.mesh["registry_grpc"][0],
        root_pem=mesh.file("mesh_ca"),
        server_name=f"registry.{mesh.mesh['trust_domain']}",
        key_pem=mesh.file("operator_key"),
        certificate_pem=mesh.file("operator_cert"),
    ) as channel:
        request = tenants_pb2.PutTenantRequest(signed_record=signed, request_id=secrets.token_hex(16))
        await tenants_pb2_grpc.TenantServiceStub(channel).PutTenant(request, timeout=10)


def revocation(mesh: RunningMesh, kind: RevocationKind, value: str) -> SignedRevocation:
    """Return a revocation as of now, signed by one of three operators."""
    now = int(time.time() * 1000)
    withdrawn = Revocation(mesh.mesh["trust_domain"], kind, value, "a benchmark", now)
    return sign_revocation(withdrawn, load_key(mesh.state / "operators" / "operator-2.pem"))
