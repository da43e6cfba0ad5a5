"""It is responsible for how often and how much at once each tenant may ask, as its record says. Pure but for the clock.

Each router holds to the limits by itself and tells no other, so a tenant gets at most as many times its limits as there
are routers. Nothing is kept of a tenant that has been quiet for as long as its allowance takes to fill up again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from libs.errors import Code
from libs.policy.tenant_record import Limits
from libs.rpc.rates import Allowances
from services.router.admission.tenants import Tenant
from services.router.errors import RouterError

RECEIPTED_PER_SECOND, RECEIPTED_AT_ONCE = 1.0, 10.0
"""How many of one tenant's refusals for its limits have receipts of their own; the rest are counted."""

_SLOT_SECONDS = 1.0
_ROUNDING_SECONDS = 1e-6
LEAST_KEPT = 1024


class TenantLimited(RouterError):
    """The tenant asks more than its record allows. Nothing was forwarded."""

    status = 429
    type = "rate_limited"
    error_code = "rate_limit_exceeded"
    code = Code.RESOURCE_EXHAUSTED
    reason = "TENANT_LIMITED"

    def __init__(self, message: str, retry_seconds: float) -> None:
        super().__init__(message)
        self.retry_seconds = max(math.ceil(retry_seconds), 1)


class TenantRateExceeded(TenantLimited):
    """More requests than the record's requests per minute."""

    reason = "TENANT_RATE_EXCEEDED"


class TenantConcurrencyExceeded(TenantLimited):
    """More requests at one time than the record has."""

    error_code = "concurrency_limit_exceeded"
    reason = "TENANT_CONCURRENCY_EXCEEDED"


@dataclass(slots=True)
class _Gate:
    """One tenant's. The rate is kept as the cell rate algorithm keeps it (ITU-T I.371): one time, that of the next
    request if all came evenly.
    """

    due: float
    running: int = 0


class Gates:
    """Lets tenants' requests in."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._gates: dict[str, _Gate] = {}
        self._sweep_at = LEAST_KEPT
        self._receipted = Allowances(RECEIPTED_PER_SECOND, RECEIPTED_AT_ONCE, clock)

    @contextmanager
    def entered(self, tenant: Tenant) -> Iterator[TenantLimited | None]:
        """Take a place for one request while the context is open, or yield why there is none: then it MUST be refused.

        It is yielded and not raised, since whoever is refused is known, and has a receipt for that.
        """
        gate = self._gate(tenant.tenant_id)
        refused = self._refusal(gate, tenant.limits)
        gate.running += refused is None
        try:
            yield refused
        finally:
            gate.running -= refused is None

    def spares_receipt(self, tenant_id: str) -> bool:
        """Count one refusal for a tenant's limits; say whether it gets a receipt. Else it MUST be counted."""
        return self._receipted.take(tenant_id)

    def _refusal(self, gate: _Gate, limits: Limits) -> TenantLimited | None:
        if limits.concurrent is not None and gate.running >= limits.concurrent:
            return TenantConcurrencyExceeded(f"at most {limits.concurrent} requests at one time", _SLOT_SECONDS)
        if limits.requests_per_minute is None:
            return None
        now = self._clock()
        interval = 60.0 / limits.requests_per_minute
        burst = limits.burst or limits.requests_per_minute
        # Under limits that were tighter until now more may be due than a whole burst is.
        due = min(max(gate.due, now), now + interval * burst)
        early = due - now - interval * (burst - 1)
        if early > _ROUNDING_SECONDS:
            return TenantRateExceeded(f"at most {limits.requests_per_minute} requests a minute", early)
        gate.due = due + interval
        return None

    def _gate(self, tenant_id: str) -> _Gate:
        gate = self._gates.get(tenant_id)
        if gate is None:
            if len(self._gates) >= self._sweep_at:
                self._sweep()
            gate = self._gates[tenant_id] = _Gate(self._clock())
        return gate

    def _sweep(self) -> None:
        """Forget those of whom nothing is left to remember."""
        now = self._clock()
        self._gates = {name: gate for name, gate in self._gates.items() if gate.running or gate.due > now}
        self._sweep_at = max(LEAST_KEPT, 2 * len(self._gates))
