"""It is responsible for how many tokens each tenant may use in a day and in a month of UTC, as this router counts them.

A prompt counts as what it may cost until its answer says what it did. Each router counts by itself and tells no other,
so a tenant gets at most as many times its quota as there are routers. What was counted is written down a few seconds
later: a router that is killed forgets no more than that.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import NoReturn, Protocol

import structlog

from libs.policy.tenant_record import Limits
from services.router.admission.limits import TenantLimited
from services.router.admission.quota_file import Counted
from services.router.admission.tenants import Tenant
from services.router.errors import AnswerUndeliverable, RouterError, UpstreamFailed
from services.router.prompt import Prompt

OCTETS_PER_TOKEN = 2
"""By which a prompt is estimated: no usual text has more tokens than half its bytes."""
UNSAID_COMPLETION = 4096
"""What a request that bounds no answer is counted as."""
WRITE_SECONDS = 5.0
_RESERVED_SECONDS = 1.0

log = structlog.get_logger()


class TenantQuotaExceeded(TenantLimited):
    """The request may cost more tokens than are left of the tenant's quota."""

    type = "insufficient_quota"
    error_code = "insufficient_quota"
    reason = "TENANT_QUOTA_EXCEEDED"


class Kept(Protocol):
    """What of a file is needed."""

    def write(self, counted: dict[str, Counted]) -> None:
        """Replace what is kept. Raises `OSError`."""
        ...


class Quotas:
    """The counts of this day and this month. `counted` is what was kept of them."""

    def __init__(
        self,
        kept: Kept,
        counted: dict[str, Counted],
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._kept = kept
        self._pause = pause
        self._counted = counted
        self._reserved: dict[str, int] = {}
        self._clock = clock
        self._now = clock()
        self._changed = False
        self._writing = threading.Lock()

    @contextmanager
    def reserved(
        self, tenant: Tenant, prompt: Prompt, cost: Callable[[], int | None], came: Callable[[], int] = lambda: 0
    ) -> Iterator[None]:
        """Reserve what a prompt may cost, and count what it did when the context ends. Raises `TenantQuotaExceeded`.

        `cost` is asked then: what nobody knows is what was reserved, or the prompt and as much of an answer as `came`,
        if that is more; and a refusal is nothing, unless it is one for want of time or for an answer that cannot be
        given: how much there is of either, clients say. Of a tenant without a quota nothing is counted.
        """
        limits, name, tokens = tenant.limits, tenant.tenant_id, estimate(prompt)
        if not limits.has_quota:
            yield
            return
        self._require(name, limits, tokens)
        self._reserved[name] = self._reserved.get(name, 0) + tokens
        refused = False
        try:
            yield
        except RouterError as error:
            refused = not (isinstance(error, AnswerUndeliverable) or (isinstance(error, UpstreamFailed) and error.late))
            raise
        finally:
            self._release(name, tokens)
            known = 0 if refused else cost()
            self._count(name, max(tokens, _of_prompt(prompt) + came()) if known is None else known)

    def _release(self, name: str, tokens: int) -> None:
        left = self._reserved.pop(name) - tokens
        if left:
            self._reserved[name] = left

    @asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        """Write down what was counted while the body runs, and the rest at its end."""
        try:
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(self._keep())
                try:
                    yield
                finally:
                    writing.cancel()
        finally:
            await self._write()

    def _require(self, name: str, limits: Limits, tokens: int) -> None:
        used, reserved, now = self.counted(name), self._reserved.get(name, 0), self._moment()
        day_end = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)
        month_end = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
        for quota, so_far, end, period in (
            (limits.tokens_per_month, used.month_tokens, month_end, "month"),
            (limits.tokens_per_day, used.day_tokens, day_end, "day"),
        ):
            if quota is None or so_far + reserved + tokens <= quota:
                continue
            # What only runs may leave some over; what is used is so until the period ends.
            wait = (end - now).total_seconds() if so_far + tokens > quota else _RESERVED_SECONDS
            left = max(quota - so_far - reserved, 0)
            raise TenantQuotaExceeded(
                f"{left} of {quota} tokens are left this {period}, and this request may take {tokens}: "
                "ask for a shorter answer, or later",
                wait,
            )

    def _count(self, name: str, tokens: int) -> None:
        if tokens:
            self._counted[name] = self.counted(name).plus(tokens)
            self._changed = True

    def counted(self, name: str) -> Counted:
        """Return what a tenant used this day and this month, as far as it is counted."""
        day, month = self._periods()
        return self._counted.get(name, Counted(day, 0, month, 0)).at(day, month)

    def _periods(self) -> tuple[str, str]:
        day = self._moment().date().isoformat()
        return day, day[: len("2026-03")]

    def _moment(self) -> datetime:
        # The host's clock may go back, and a day that is over must not begin again.
        self._now = max(self._now, self._clock())
        return datetime.fromtimestamp(self._now, UTC)

    async def _keep(self) -> NoReturn:
        while True:
            await self._pause(WRITE_SECONDS)
            await self._write()

    async def _write(self) -> None:
        if not self._changed:
            return
        self._changed = False
        _, month = self._periods()
        # Whoever used nothing this month has nothing to be kept.
        self._counted = {name: counted for name, counted in self._counted.items() if counted.month == month}
        try:
            await asyncio.to_thread(self._write_whole)
        except OSError as error:
            self._changed = True
            log.error("tokens that were used are not written down", problem=error.strerror)

    def _write_whole(self) -> None:
        # A write whose caller was cancelled goes on in its thread. What comes after it MUST hold no less.
        with self._writing:
            self._kept.write(dict(self._counted))


def estimate(prompt: Prompt) -> int:
    """Return how many tokens a prompt and its answer may be."""
    asked = UNSAID_COMPLETION if prompt.most_completion is None else prompt.most_completion
    return _of_prompt(prompt) + asked * prompt.completions


def _of_prompt(prompt: Prompt) -> int:
    return -(-len(prompt.forwarded) // OCTETS_PER_TOKEN)
