"""It is responsible for what each tenant used, in its own vault: by key and model, counts and never content.

Each router writes what came since it last wrote, once an hour and as it stops. An entry is logged exactly once, so the
sum over a tenant's entries is what its routers wrote. A router that is killed has not written its last; its receipts
have the same numbers one by one, all but those of refusals without a receipt.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import structlog

from libs.aci.usage import Tokens
from libs.errors import MeshError
from libs.events.publish import Enqueued
from libs.events.vault import VaultKey
from libs.transparency.leaf import Kind
from services.router.admission.tenants import Tenant

PERIOD_SECONDS = 3600.0
MOST_ROWS = 512
"""Of keys and models that are told apart in one entry; what comes beyond is told by key alone."""
_STOPPING_SECONDS = 10.0

log = structlog.get_logger()


class Log(Protocol):
    """What of a publisher is needed."""

    async def enqueue(self, kind: Kind, body: Mapping[str, Any], *, vault: VaultKey) -> Enqueued:
        """Return when the entry is durable here. Raises `OutboxFull`."""
        ...


Keep = Callable[[VaultKey, bytes, Mapping[str, Any]], Awaitable[None]]
"""Keeps a copy of an entry's body, by the vault that it lies in and its id. Raises a `MeshError` if it cannot."""


class Used:
    """The names of what is counted, as entries have them."""

    REQUESTS = "requests"
    REFUSED = "refused"
    UNMETERED = "unmetered"
    PROMPT_TOKENS = "prompt_tokens"
    COMPLETION_TOKENS = "completion_tokens"
    ALL = (REQUESTS, REFUSED, UNMETERED, PROMPT_TOKENS, COMPLETION_TOKENS)


@dataclass(slots=True)
class _Tally:
    """What one tenant used since the last entry."""

    since: int
    rows: dict[tuple[str, str | None], Counter[str]] = field(default_factory=dict)
    without_receipt: Counter[str] = field(default_factory=Counter)

    def row(self, key: str, model: str | None) -> Counter[str]:
        if (key, model) not in self.rows and len(self.rows) >= MOST_ROWS:
            model = None
        return self.rows.setdefault((key, model), Counter())

    def body(self, until: int) -> dict[str, Any]:
        rows = [
            {"key": key, "model": model, **{name: counts[name] for name in Used.ALL}}
            for (key, model), counts in self.rows.items()
        ]
        return {"from": self.since, "until": until, "rows": rows, "without_receipt": dict(self.without_receipt)}

    def add(self, other: _Tally) -> None:
        self.since = min(self.since, other.since)
        self.without_receipt.update(other.without_receipt)
        for (key, model), counts in other.rows.items():
            self.row(key, model).update(counts)


class Usage:
    """The counts since the last entries. It grows with the keys and models that were used, all of them signed for."""

    def __init__(
        self,
        log: Log,
        open_vault: Callable[[str], Awaitable[VaultKey]],
        keep: Keep,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`open_vault` returns the current key of a tenant's vault, by its id."""
        self._log = log
        self._open_vault = open_vault
        self._keep_copy = keep
        self._clock = clock
        self._pause = pause
        self._tallies: dict[str, _Tally] = {}

    def answered(self, tenant: Tenant, model: str, tokens: Tokens) -> None:
        """One request was served, as far as it went. The model MUST be one of the mesh's, not a client's word."""
        row = self._tally(tenant.tenant_id).row(tenant.key.id, model)
        row[Used.REQUESTS] += 1
        if tokens.stated:
            row[Used.PROMPT_TOKENS] += tokens.prompt or 0
            row[Used.COMPLETION_TOKENS] += tokens.completion or 0
        else:
            row[Used.UNMETERED] += 1

    def refused(self, tenant: Tenant) -> None:
        """One request was refused with a receipt."""
        self._tally(tenant.tenant_id).row(tenant.key.id, None).update((Used.REQUESTS, Used.REFUSED))

    def refused_without_receipt(self, tenant: Tenant, reason: str) -> None:
        """One request was refused, and this is all that the log will have of it."""
        self._tally(tenant.tenant_id).without_receipt[reason] += 1

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Write the entries every hour while the body runs, and the rest at its end."""
        try:
            async with asyncio.TaskGroup() as tasks:
                keeping = tasks.create_task(self._keep())
                try:
                    yield
                finally:
                    keeping.cancel()
        finally:
            # After the group: what was being written has been put back, or has its number.
            await self._finish()

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(_STOPPING_SECONDS):
                await self._record()
        except TimeoutError:
            log.warning("what tenants used is not written in time")
        if self._tallies:
            log.error("what tenants used is in their receipts alone", tenants=len(self._tallies))

    async def _keep(self) -> NoReturn:
        while True:
            await self._pause(PERIOD_SECONDS)
            await self._record()

    async def _record(self) -> None:
        for tenant_id in tuple(self._tallies):
            await self._write(tenant_id)

    async def _write(self, tenant_id: str) -> None:
        tally = self._tallies.pop(tenant_id)
        try:
            vault = await self._open_vault(tenant_id)
        except asyncio.CancelledError:
            self._put_back(tenant_id, tally)
            raise
        except MeshError as error:
            if error.reason != "VAULT_ERASED":  # Else nobody could read it.
                self._put_back(tenant_id, tally, error.reason)
            return
        body = tally.body(int(self._clock()))
        try:
            # From here on a cancellation changes nothing: the entry has its number, and is logged.
            enqueued = await self._log.enqueue(Kind.USAGE, body, vault=vault)
        except MeshError as error:
            self._put_back(tenant_id, tally, error.reason)
            return
        try:
            await self._keep_copy(vault, enqueued.entry_id, body)
        except MeshError as error:
            log.error("what a tenant used is in the ledger alone", tenant=tenant_id, reason=error.reason)

    def _put_back(self, tenant_id: str, tally: _Tally, reason: str | None = None) -> None:
        """It is written with what comes until the next entry."""
        if reason is not None:
            log.warning("what a tenant used is not written yet", tenant=tenant_id, reason=reason)
        meanwhile = self._tallies.setdefault(tenant_id, tally)
        if meanwhile is not tally:
            meanwhile.add(tally)

    def _tally(self, tenant_id: str) -> _Tally:
        tally = self._tallies.get(tenant_id)
        if tally is None:
            tally = self._tallies[tenant_id] = _Tally(int(self._clock()))
        return tally
