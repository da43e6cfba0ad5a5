"""Responsible for who a request belongs to: from a key's digest to a tenant, by a record that an administrator signed.

The registry only finds records; each is verified here under the key that policy names, must list the very key that was
presented, and may not be older than one this router has seen. Keys are never stored, logged or sent: only digests are.
Anybody can make up keys, and each costs a look-up: those that were nobody's an hour ago wait for a turn.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Hashable
from dataclasses import dataclass

import structlog

from libs.errors import MeshError
from libs.policy.tenant_record import UNLIMITED, ApiKey, Limits, TenantRecord
from libs.policy.tenants import api_key_digest, verify_tenant
from libs.turns import Turns
from services.router.errors import (
    KeyExpired,
    KeyNotScoped,
    RouterError,
    TenantDisabled,
    TenantRevoked,
    TenantsUnavailable,
    Unauthorized,
)

TTL_SECONDS = 30.0
NEGATIVE_TTL_SECONDS = 5.0
REMEMBERED_SECONDS = 3600.0
"""For so long after its look-up a key says whose room its calls take, and admits nobody by that."""
STRANGERS_AT_ONCE = 16
"""So many look-ups of keys that are not remembered are under way at once."""
WRONG_KEY_SECONDS = 0.1
"""For so long a key that is nobody's keeps the place of its look-up: 160 of them in a second are all there are."""
TURN_SECONDS = 15.0
"""How long such a key may wait for its turn: longer than it takes all connections that there may be to have one."""
MAX_CACHED = 10_000
MAX_KEY_CHARACTERS = 512

Find = Callable[[bytes], Awaitable[bytes]]
"""Returns the signed record that lists this SHA-256 of a key. Raises a `MeshError`, reason API_KEY_UNKNOWN for none."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who a request belongs to, and what the key that it came with is for."""

    tenant_id: str
    """Random: it may be logged."""
    name: str
    """For people."""
    key: ApiKey
    limits: Limits = UNLIMITED

    def require_scope(self, scope: str) -> None:
        """Raises `KeyNotScoped`."""
        if not self.key.allows(scope):
            raise KeyNotScoped(f"this API key is not for {scope}")


class TenantRecordOutdated(MeshError):
    """The registry shows an older record of a tenant than this router has seen."""

    reason = "TENANT_RECORD_OUTDATED"


class TenantRecordForeign(MeshError):
    """The record is genuine and does not list the key that was asked for."""

    reason = "TENANT_RECORD_FOREIGN"


@dataclass(frozen=True, slots=True)
class _Answer:
    record: TenantRecord | None
    admin_key: bytes
    until: float


class Tenants:
    """Authenticates bearers. A key that is withdrawn stops when the answer's short life ends, or sooner if this router
    hears of the newer record by another key.

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
        wall: Callable[[], float] = time.time,
        ttl_seconds: float = TTL_SECONDS,
        negative_ttl_seconds: float = NEGATIVE_TTL_SECONDS,
        wrong_key_seconds: float = WRONG_KEY_SECONDS,
        turn_seconds: float = TURN_SECONDS,
        limit: int = MAX_CACHED,
    ) -> None:
        self._find = find
        self._admin_key = admin_key
        self._revoked = revoked
        self._refused = refused
        self._clock = clock
        self._wall = wall
        self._ttl = ttl_seconds
        self._negative_ttl = negative_ttl_seconds
        self._wrong_key_seconds = wrong_key_seconds
        self._turn_seconds = turn_seconds
        self._strangers = Turns(STRANGERS_AT_ONCE)
        self._known = _Answers(limit)
        # Apart, so that a flood of wrong keys cannot push the right ones out.
        self._unknown = _Answers(limit)
        self._remembered = _Answers(limit)
        self._versions: dict[str, int] = {}

    async def authenticate(self, authorization: str | None, connection: Hashable) -> Tenant:
        """Return the tenant of an `Authorization`, which came over a connection: those take turns. Raises
        `Unauthorized`, `TenantRevoked`, `TenantDisabled` or `TenantsUnavailable`. What its key is for, the caller MUST
        ask.
        """
        try:
            return await self._authenticate(authorization, connection)
        except RouterError as error:
            self._refused(error.reason)
            raise

    def remembered(self, authorization: str | None) -> str | None:
        """Return the tenant's id if this key was looked up in the last hour. It says for whom there has to be room, and
        lets nobody in.
        """
        answer = self._found(self._remembered, authorization)
        return None if answer is None or answer.record is None else answer.record.tenant_id

    def needs_look_up(self, authorization: str | None) -> bool:
        """Say whether the registry would be asked about a key that is remembered."""
        answer = self._found(self._known, authorization)
        return answer is None or self._is_outdated(answer.record)

    def _found(self, answers: _Answers, authorization: str | None) -> _Answer | None:
        key = bearer(authorization)
        if key is None:
            return None
        return answers.get(bytes.fromhex(api_key_digest(key)), self._admin_key(), self._clock())

    async def _authenticate(self, authorization: str | None, connection: Hashable) -> Tenant:
        key = bearer(authorization)
        if key is None:
            raise Unauthorized("an API key is required: Authorization: Bearer <key>")
        digest = bytes.fromhex(api_key_digest(key))
        answer = self._answer(digest)
        if answer is not None:
            record = answer.record
        elif self._remembered.get(digest, self._admin_key(), self._clock()) is not None:
            record = await self._look_up(digest, self._admin_key())
        else:
            record = await self._look_up_in_turn(digest, connection)
        # A record that is found lists the key.
        listed = None if record is None else record.key(digest.hex())
        if record is None or listed is None:
            raise Unauthorized("the API key is not one of any tenant")
        if record.tenant_id in self._revoked():
            raise TenantRevoked("the tenant of this API key is revoked")
        if record.disabled:
            raise TenantDisabled("the tenant of this API key is disabled")
        if listed.not_after is not None and self._wall() >= listed.not_after:
            raise KeyExpired("the API key has expired")
        return Tenant(record.tenant_id, record.name, listed, record.limits)

    def _answer(self, digest: bytes) -> _Answer | None:
        admin_key, now = self._admin_key(), self._clock()
        answer = self._known.get(digest, admin_key, now) or self._unknown.get(digest, admin_key, now)
        return None if answer is None or self._is_outdated(answer.record) else answer

    def _is_outdated(self, record: TenantRecord | None) -> bool:
        return record is not None and record.version < self._versions.get(record.tenant_id, 0)

    async def _look_up_in_turn(self, digest: bytes, connection: Hashable) -> TenantRecord | None:
        try:
            async with self._strangers.taken(connection, self._turn_seconds) as turn:
                answer = self._answer(digest)  # Of another request that came with it.
                if answer is not None:
                    return answer.record
                record = await self._look_up(digest, self._admin_key())
                turn.rest_seconds = self._wrong_key_seconds if record is None else 0.0
                return record
        except TimeoutError as error:
            raise TenantsUnavailable("too many unknown API keys are looked up now; try again") from error

    async def _look_up(self, digest: bytes, admin_key: bytes) -> TenantRecord | None:
        try:
            record = self._verify(await self._find(digest), digest, admin_key)
        except MeshError as error:
            if error.reason != "API_KEY_UNKNOWN":
                _log.warning("tenant lookup failed", reason=error.reason, thinned=True)
                raise TenantsUnavailable("the tenant directory cannot be relied on now; try again") from error
            self._remembered.forget(digest)
            self._unknown.put(digest, _Answer(None, admin_key, self._clock() + self._negative_ttl))
            return None
        self._known.put(digest, _Answer(record, admin_key, self._clock() + self._ttl))
        self._remembered.put(digest, _Answer(record, admin_key, self._clock() + REMEMBERED_SECONDS))
        return record

    def _verify(self, signed: bytes, digest: bytes, admin_key: bytes) -> TenantRecord:
        record = verify_tenant(signed, admin_key)
        if record.key(digest.hex()) is None:
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

    def forget(self, digest: bytes) -> None:
        self._answers.pop(digest, None)

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
