"""It is responsible for how much of one engine a tenant may have at once, whichever routers its requests come through.

A router bounds what a tenant asks of that router. The engine's places are bounded here, where all of them meet. What
takes a place is a sequence: a request may be several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from libs.aci.node_refusals import TENANT_SHARE_TAKEN
from libs.errors import Code, MeshError


class TenantShareTaken(MeshError):
    """As many of the tenant's sequences run or wait here as may. Another node, or a later moment, has room."""

    code = Code.RESOURCE_EXHAUSTED
    reason = TENANT_SHARE_TAKEN


class TenantShares:
    """The sequences of each tenant that are here now."""

    def __init__(self, most: int) -> None:
        """`most` are one tenant's; 0: as many as come."""
        self._most = most
        self._held: Counter[str] = Counter()

    @property
    def tenants(self) -> int:
        """How many tenants have any here."""
        return len(self._held)

    @contextmanager
    def held(self, tenant_id: str) -> Iterator[Callable[[int], None]]:
        """Count one request as this tenant's while the body runs: as one sequence until the body calls what it is
        given with how many it is. Both raise `TenantShareTaken`.
        """
        mine = 0

        def hold(sequences: int) -> None:
            nonlocal mine
            if self._most and self._held[tenant_id] - mine + sequences > self._most:
                raise TenantShareTaken(f"this node takes {self._most} sequences of one tenant at once")
            self._held[tenant_id] += sequences - mine
            mine = sequences

        try:
            hold(1)
            yield hold
        finally:
            self._held[tenant_id] -= mine
            if not self._held[tenant_id]:
                del self._held[tenant_id]
