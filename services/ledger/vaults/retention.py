"""It is responsible for what policy says of age: months that are too old are erased, unless their vault is held.

The clock is the host's. It counts only while the policy in force is known to be fresh, which ties it to the KMS's
statements and to the policy's own end: a clock that is set ahead erases nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import structlog

from libs.errors import MeshError
from libs.events.erasure import Authority
from libs.events.publish import LedgerUnavailable
from libs.events.vault import vault_epoch
from libs.policy.document import Policy
from libs.policy.vault_orders import VaultPart
from services.ledger.vaults.erasures import Erasures
from services.ledger.vaults.orders import VaultOrders
from services.ledger.vaults.vaults import Vaults

_LOOK_SECONDS = 3600.0

log = structlog.get_logger()


class Retention:
    """Looks for what is too old."""

    def __init__(
        self,
        policy: Callable[[], Policy],
        vaults: Vaults,
        erasures: Erasures,
        orders: VaultOrders,
        is_logged: Callable[[bytes], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`policy` returns the policy in force, or raises where it may be stale; `is_logged` goes by an entry's id."""
        self._policy = policy
        self._vaults = vaults
        self._erasures = erasures
        self._orders = orders
        self._is_logged = is_logged
        self._clock = clock
        self._on_the_way: dict[VaultPart, bytes] = {}
        """What was ordered and lies in the outbox, by the entry that says so: said again, it would fill the outbox."""

    async def keep(self) -> NoReturn:
        """Look once an hour, for ever."""
        while True:
            await self.age_out()
            await asyncio.sleep(_LOOK_SECONDS)

    async def age_out(self) -> None:
        """Have every month that is too old now closed in the log. What cannot be now, because its vault is held for
        example, is tried the next time.
        """
        try:
            policy = self._policy()
        except MeshError as error:
            log.warning("nothing is aged out", reason=error.reason)
            return
        if policy.retention_months is None:
            return
        authority = Authority(policy.version, retention_months=policy.retention_months)
        self._on_the_way = {part: entry for part, entry in self._on_the_way.items() if not self._is_logged(entry)}
        for part in tuple(self._too_old(policy.retention_months)):
            if part in self._on_the_way:
                continue
            try:
                await self._orders.close(part, authority)
            except MeshError as error:
                if isinstance(error, LedgerUnavailable):
                    self._on_the_way[part] = error.entry_id
                log.warning("a month is too old and was not erased", vault=part.subject, reason=error.reason)

    def _too_old(self, months: int) -> Iterator[VaultPart]:
        now = vault_epoch(self._clock())
        for vault in self._vaults.all():
            for epoch in sorted(vault.epochs):
                if epoch + months < now and self._erasures.closing(vault.vault_id, epoch) is None:
                    yield VaultPart(vault.vault_id, epoch)
