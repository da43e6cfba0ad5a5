"""Responsible for who a request belongs to: from a key's digest to a tenant, by a record that an administrator signed.

The registry only finds records; each is verified here under the key that policy names, must list the very key that was
presented, and may not be older than one this router has seen. Keys are never stored, logged or sent: only digests are.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

import structlog

from libs.errors import MeshError
from libs.policy.tenants import TenantRecord, api_key_digest, verify_tenant
from services.router.errors import RouterError, TenantRevoked, TenantsUnavailable, Unauthorized

TTL_SECONDS = 30.0
NEGATIVE_TTL_SECONDS = 5.0
MAX_CACHED = 10_000
MAX_KEY_CHARACTERS = 512

Find = Callable[[bytes], Awaitable[bytes]]
"""Returns the signed record that lists this SHA-256 of a key. Raises a `MeshError`, reason API_KEY_UNKNOWN for none."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who a request belongs to. `tenant_id` is random and may be logged; `name` is for people."""

    tenant_id: str
    name: str


class TenantRecordOutdated(MeshError):
    """The registry shows an older record of a tenant than this router has seen."""

    reason = "TENANT_RECORD_OUTDATED"


class TenantRecordForeign(MeshError):
    """The record is genuine and does not list the key that was asked for."""

    reason = "TENANT_RECORD_FOREIGN"


@dataclass(frozen=True, slots=True)
class _Answer:
    tenant: Tenant | None
    admin_key: bytes
    until: float


class Tenants:
    """Authenticates bearers. A revoked key stops working when its answer's short life ends.

    `admin_key` returns the policy's `tenant_admin_key` now: when it changes, cached answers no longer count. `revoked`
    returns the ids of the tenants that operators have withdrawn by now. `refused` is told the reason of every refusal:
    nothing else is kept of who was not let in.
    """

    def __init__(
        self,
        find: Find,
        admin_key: Callable[[], bytes],
        revoked: Callable[[], Collection[str]],
        refused: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        ttl_seconds: float = TTL_SECONDS,
        negative_ttl_seconds: float = NEGATIVE_TTL_SECONDS,
        limit: int = MAX_CACHED,
    ) -> None:
        self._find = find
        self._admin_key = admin_key
        self._revoked = revoked
        self._refused = refused
        self._clock = clock
        self._ttl = ttl_seconds
        self._negative_ttl = negative_ttl_seconds
        self._known = _Answers(limit)
        # Apart, so that a flood of wrong keys cannot push the right ones out.
        self._unknown = _Answers(limit)
        self._versions: dict[str, int] = {}

    async def authenticate(self, authorization: str | None) -> Tenant:
        """Return the tenant of an `Authorization`. Raises `Unauthorized`, `TenantRevoked`, `TenantsUnavailable`."""
        try:
            return await self._authenticate(authorization)
        except RouterError as error:
            self._refused(error.reason)
            raise

    async def _authenticate(self, authorization: str | None) -> Tenant:
        key = bearer(authorization)
        if key is None:
            raise Unauthorized("an API key is required: Authorization: Bearer <key>")
        digest = bytes.fromhex(api_key_digest(key))
        admin_key, now = self._admin_key(), self._clock()
        answer = self._known.get(digest, admin_key, now) or self._unknown.get(digest, admin_key, now)
        tenant = await self._look_up(digest, admin_key) if answer is None else answer.tenant
        if tenant is None:
            raise Unauthorized("the API key is not one of any tenant")
        if tenant.tenant_id in self._revoked():
            raise TenantRevoked("the tenant of this API key is revoked")
        return tenant

    async def _look_up(self, digest: bytes, admin_key: bytes) -> Tenant | None:
        try:
            record = self._verify(await self._find(digest), digest, admin_key)
        except MeshError as error:
            if error.reason != "API_KEY_UNKNOWN":
                _log.warning("tenant lookup failed", reason=error.reason)
                raise TenantsUnavailable("the tenant directory cannot be relied on now; try again") from error
            self._unknown.put(digest, _Answer(None, admin_key, self._clock() + self._negative_ttl))
            return None
        tenant = Tenant(record.tenant_id, record.name)
        self._known.put(digest, _Answer(tenant, admin_key, self._clock() + self._ttl))
        return tenant

    def _verify(self, signed: bytes, digest: bytes, admin_key: bytes) -> TenantRecord:
        record = verify_tenant(signed, admin_key)
        if digest.hex() not in record.api_key_sha256:
            raise TenantRecordForeign("the record does not list the key that was asked for")
        if record.version < self._versions.get(record.tenant_id, 0):
            raise TenantRecordOutdated("the record is older than one already seen")
        self._versions[record.tenant_id] = record.version
        return record


class _Answers:
    """The most recent answers, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()

    def get(self, digest: bytes, admin_key: bytes, now: float) -> _Answer | None:
        answer = self._answers.get(digest)
        if answer is None or answer.until <= now or answer.admin_key != admin_key:
            self._answers.pop(digest, None)
            return None
        return answer

    def put(self, digest: bytes, answer: _Answer) -> None:
        self._answers[digest] = answer
        self._answers.move_to_end(digest)
        if len(self._answers) > self._limit:
            self._answers.popitem(last=False)


def bearer(authorization: str | None) -> str | None:
    """Return the key of an `Authorization` value; None when there is none, or nothing that could be one."""
    scheme, _, key = (authorization or "").strip().partition(" ")
    key = key.strip()
    plausible = 0 < len(key) <= MAX_KEY_CHARACTERS and key.isascii()
    return key if scheme in ("Bearer", "bearer") and plausible else None
