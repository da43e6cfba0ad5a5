"""What one tenant's requests left behind does not exist for another."""

from __future__ import annotations

import secrets

import pytest

from libs.policy.tenant_record import TenantRecord, unrestricted
from libs.policy.tenants import api_key_digest
from tests.faults.load import Client, open_client
from tests.mesh.operating import put_tenant
from tests.mesh.running import RunningMesh

pytestmark = pytest.mark.mesh


async def test_a_second_tenant_cannot_fetch_the_firsts_receipts(mesh: RunningMesh, client: Client) -> None:
    api_key = "sk-teemesh-" + secrets.token_urlsafe(32)
    record = TenantRecord(secrets.token_hex(16), version=1, name="second", keys=unrestricted(api_key_digest(api_key)))
    await put_tenant(mesh, record)
    answer = await client.reply(client.body(1, stream=False))
    assert answer.status == 200
    async with open_client(mesh.mesh | {"api_key": api_key}) as other:
        own = await other.reply(other.body(2, stream=False))
        assert own.status == 200
        for path in (f"/v1/aci/receipts/{answer.receipt_id}", f"/v1/teemesh/receipts/{answer.receipt_id}/commitment"):
            refused = await other.get(path)
            assert (refused.status, refused.error_type) == (404, "not_found")
        chat_id = answer.json["id"]
        assert (await client.get(f"/v1/aci/receipts/{chat_id}")).status == 200
        assert (await other.get(f"/v1/aci/receipts/{chat_id}")).status == 404
        assert (await other.get(f"/v1/aci/receipts/{own.receipt_id}")).status == 200
        assert (await client.get(f"/v1/aci/receipts/{own.receipt_id}")).status == 404
