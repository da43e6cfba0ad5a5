"""It is responsible for keeping tenant records: signed by the tenant administrator that policy names, newest only."""

from __future__ import annotations

import re

from libs.errors import Code, MeshError
from libs.identity.freshness import PolicyKeeper
from libs.policy.tenant_record import TenantRecord, TenantRecordMalformed
from libs.policy.tenants import TenantSignatureInvalid, verify_tenant, verify_tenant_successor
from services.registry.store import Bucket

_DIGEST_BYTES = 32
_TENANT = re.compile(rb"[0-9a-f]{32}")


class ApiKeyUnknown(MeshError):
    """No tenant lists that key."""

    code = Code.NOT_FOUND
    reason = "API_KEY_UNKNOWN"


class Tenants:
    """Signed records by tenant, and the tenant by API key digest."""

    def __init__(self, bucket: Bucket, policy: PolicyKeeper) -> None:
        self._bucket = bucket
        self._policy = policy

    async def put(self, signed: bytes) -> TenantRecord:
        """Store a record. Storing the current one again succeeds. Raises what verifying it raises."""
        admin_key = self._policy.current.tenant_admin_key
        record = verify_tenant(signed, admin_key)
        key = f"tenant.{record.tenant_id}"
        stored = await self._bucket.get(key)
        if stored is None:
            verify_tenant_successor(None, record)
        elif stored.value != signed and (current := _genuine(stored.value, admin_key)) is not None:
            verify_tenant_successor(current, record)
        if stored is None or stored.value != signed:
            await self._bucket.put(key, signed, stored.revision if stored else 0)
        for digest in record.api_key_sha256:
            index = await self._bucket.get(f"key.{digest}")
            if index is None or index.value != record.tenant_id.encode():
                await self._bucket.put(f"key.{digest}", record.tenant_id.encode(), index.revision if index else 0)
        return record

    async def find(self, api_key_sha256: bytes) -> bytes:
        """Return the signed record that lists a key. Raises `ApiKeyUnknown`."""
        whole = len(api_key_sha256) == _DIGEST_BYTES
        index = await self._bucket.get(f"key.{api_key_sha256.hex()}") if whole else None
        if index is not None and _TENANT.fullmatch(index.value):
            stored = await self._bucket.get(f"tenant.{index.value.decode()}")
            if stored is not None:
                record = verify_tenant(stored.value, self._policy.current.tenant_admin_key)
                if api_key_sha256.hex() in record.api_key_sha256:
                    return stored.value
        raise ApiKeyUnknown("no tenant lists this API key")


def _genuine(signed: bytes, admin_key: bytes) -> TenantRecord | None:
    """Read what is stored; what an earlier administrator signed, or nobody, stands in no new record's way."""
    try:
        return verify_tenant(signed, admin_key)
    except (TenantRecordMalformed, TenantSignatureInvalid):
        return None
