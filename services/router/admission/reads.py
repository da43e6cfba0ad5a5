"""It is responsible for how often a tenant may read what this router keeps for it: receipts, proofs, signatures, usage.

Its record's limits are for prompts. Each of these costs a look-up, and some a call to the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from libs.rpc.rates import Allowances
from services.router.admission.limits import TenantLimited
from services.router.admission.tenants import Tenant

AT_ONCE_SECONDS = 10.0
"""So many seconds' worth may come at once: who has waited for an answer asks for all that proves it."""


class TenantReadsExceeded(TenantLimited):
    """The tenant reads more than one may. It is no refusal of a prompt, and has no receipt."""

    reason = "TENANT_READS_EXCEEDED"


class Reads:
    """What each tenant may still read at this router, whichever key it uses."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._allowances = Allowances(per_second, max(1.0, per_second * AT_ONCE_SECONDS), clock)

    def require(self, tenant: Tenant) -> None:
        """Count one. Raises `TenantReadsExceeded`."""
        if not self._allowances.take(tenant.tenant_id):
            raise TenantReadsExceeded(f"at most {self._per_second:g} reads a second", 1.0 / self._per_second)
