"""It is responsible for keeping tenant records: signed by the tenant administrator that policy names, newest only."""

from __future__ import annotations

import re

from libs.errors import Code, MeshError
from libs.identity.freshness import PolicyKeeper
from libs.policy.tenant_record import TENANT_ID_BYTES, TenantRecord, TenantRecordMalformed
from libs.policy.tenants import TenantSignatureInvalid, verify_tenant, verify_tenant_successor
from services.registry.listing import PageTokenMalformed
from services.registry.store import Bucket

_DIGEST_BYTES = 32
_RECORD = "tenant."
_DEFAULT_PAGE, _MAX_PAGE = 20, 50
"""Records have up to 64 KiB, and a message has 4 MiB."""
_TENANT = re.compile(rb"[0-9a-f]{32}")


class ApiKeyUnknown(MeshError):
    """No tenant lists that key."""

    code = Code.NOT_FOUND
    reason = "API_KEY_UNKNOWN"


class TenantUnknown(MeshError):
    """No record of that tenant."""

    code = Code.NOT_FOUND
    reason = "TENANT_UNKNOWN"


class Tenants:
    """Signed records by tenant, and the tenant by API key digest."""

    def __init__(self, bucket: Bucket, policy: PolicyKeeper) -> None:
        self._bucket = bucket
        self._policy = policy

    async def put(self, signed: bytes) -> TenantRecord:
        """Store a record. Storing the current one again succeeds. Raises what verifying it raises."""
        admin_key = self._policy.current.tenant_admin_key
        record = verify_tenant(signed, admin_key)
        key = _RECORD + record.tenant_id
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
            stored = await self._bucket.get(_RECORD + index.value.decode())
            if stored is not None:
                record = verify_tenant(stored.value, self._policy.current.tenant_admin_key)
                if api_key_sha256.hex() in record.api_key_sha256:
                    return stored.value
        raise ApiKeyUnknown("no tenant lists this API key")

    async def get(self, tenant_id: bytes) -> bytes:
        """Return a tenant's record as it is stored, whoever signed it. Raises `TenantUnknown`."""
        stored = await self._bucket.get(f"{_RECORD}{tenant_id.hex()}") if len(tenant_id) == TENANT_ID_BYTES else None
        if stored is None:
            raise TenantUnknown("no tenant of that id")
        return stored.value

    async def page(self, token: str, size: int) -> tuple[list[bytes], str]:
        """Return a page of records as they are stored, in order of the tenants' ids, and the next token.

        Raises `PageTokenMalformed`. What comes or goes meanwhile shifts no page.
        """
        if size > _MAX_PAGE or (token and not _TENANT.fullmatch(token.encode())):
            raise PageTokenMalformed(f"tokens come from earlier pages, which hold at most {_MAX_PAGE}")
        size = size or _DEFAULT_PAGE
        left = [name for name in await self._bucket.names(f"{_RECORD}*") if name > _RECORD + token]
        found = [await self._bucket.get(name) for name in left[:size]]
        following = left[size - 1].removeprefix(_RECORD) if len(left) > size else ""
        return [record.value for record in found if record is not None], following


def _genuine(signed: bytes, admin_key: bytes) -> TenantRecord | None:
    """Read what is stored; what an earlier administrator signed, or nobody, stands in no new record's way."""
    try:
        return verify_tenant(signed, admin_key)
    except (TenantRecordMalformed, TenantSignatureInvalid):
        return None
