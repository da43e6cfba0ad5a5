"""It is responsible for what each tenant used, in its own vault: by key and model, counts and never content.

Each router writes what came since it last wrote, once an hour and as it stops. An entry is logged exactly once, so the
sum over a tenant's entries is what its routers wrote. A router that is killed has not written its last; its receipts
have the same numbers one by one, all but those of refusals without a receipt.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from libs.aci.usage import Tokens
from libs.events.vault import VaultKey
from libs.transparency.leaf import Kind
from services.router.admission.hourly import Hourly, Keep, Log
from services.router.admission.tenants import Tenant

MOST_ROWS = 512
"""Of keys and models that are told apart in one entry; what comes beyond is told by key alone."""

PROMPT_ABANDONED = "PROMPT_ABANDONED"
"""The reason of a prompt that is not there: its client left while it was read, or this router stopped."""


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
        self._hourly = Hourly(log, Kind.USAGE, _Tally, open_vault, keep, clock, pause)

    def answered(self, tenant: Tenant, model: str, tokens: Tokens) -> None:
        """One request was served, as far as it went. The model MUST be one of the mesh's, not a client's word."""
        row = self._hourly.of(tenant.tenant_id).row(tenant.key.id, model)
        row[Used.REQUESTS] += 1
        if tokens.stated:
            row[Used.PROMPT_TOKENS] += tokens.prompt or 0
            row[Used.COMPLETION_TOKENS] += tokens.completion or 0
        else:
            row[Used.UNMETERED] += 1

    def refused(self, tenant: Tenant) -> None:
        """One request was refused with a receipt."""
        self._hourly.of(tenant.tenant_id).row(tenant.key.id, None).update((Used.REQUESTS, Used.REFUSED))

    def refused_without_receipt(self, tenant: Tenant, reason: str) -> None:
        """One request was refused, and this is all that the log will have of it."""
        self._hourly.of(tenant.tenant_id).without_receipt[reason] += 1

    def recording(self) -> AbstractAsyncContextManager[None]:
        """Write the entries every hour while the body runs, and the rest at its end."""
        return self._hourly.recording()
