"""It is responsible for changes of keys: the next epoch, by command or by age, and the end of a key.

A change is durable here before the log hears of it, and what the log has not confirmed is said again at the next start.
So a KMS that dies in between neither loses an epoch nor begins one twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn

import structlog

from libs.errors import MeshError
from libs.identity.freshness import PolicyKeeper
from libs.policy.orders import ERASE_VAULT, OrderOfAnotherKind, parse_order
from libs.policy.releases import is_boot_class
from libs.policy.vault_orders import verify_retirement
from services.kms.access import Access
from services.kms.book import KeyBook, KeyEpochsFixed
from services.kms.changes import Change
from services.kms.currency import Currency
from services.kms.unlogged import Unlogged

_BY_AGE = "age"
_LEDGER = "ledger"
_LOOK_SECONDS = 60.0
_DAY_MS = 86_400_000

log = structlog.get_logger()


class Rotation:
    """Makes changes, one at a time."""

    def __init__(
        self,
        kms: str,
        book: KeyBook,
        access: Access,
        policy: PolicyKeeper,
        unlogged: Unlogged,
        currency: Currency,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`kms` is this instance's SPIFFE ID."""
        self._kms = kms
        self._book = book
        self._access = access
        self._policy = policy
        self._unlogged = unlogged
        self._currency = currency
        self._clock = clock

    async def rotate(self, name: str, epoch: int, by: str) -> None:
        """Begin an epoch, the one after the newest; one that is the newest already is no error.

        Raises what `Access.look_up` does, `KeyEpochNotNext`, `KeyEpochsFixed`, `KeyBookFull`, `LedgerUnavailable`.
        """
        grant = self._access.look_up(name, 0)
        if is_boot_class(name):
            raise KeyEpochsFixed(f"{name} is of the boot class: its epochs are fixed")
        if epoch == grant.newest_epoch:
            await self._unlogged.say_again()
            return
        await self._make(Change(name, epoch, self._now_ms(), self._kms, by, grant.policy.version))

    async def retire(self, signed_order: bytes, role: str) -> None:
        """Refuse a key for ever, if m of n operators ordered it or the erasure of its vault; one that is retired
        already is no error. `role` is that of whoever brings the order.

        The order to erase a vault counts when the ledger brings it: only the ledger knows whether a hold forbids that,
        and whether a signed tree covers the vault.

        Raises what `verify_retirement` does, `KeyNameMalformed`, `KeyStateBehind`, `KeyBookFull`, `LedgerUnavailable`.
        """
        self._currency.require()
        policy = self._policy.current
        name = verify_retirement(signed_order, policy, self._clock())
        ordered = parse_order(signed_order)
        if ordered.order.action == ERASE_VAULT and role != _LEDGER:
            raise OrderOfAnotherKind("the order is to erase a vault: submit it to the ledger, which may hold the vault")
        if (page := self._book.pages.keys.get(name)) is not None and page.retired:
            await self._unlogged.say_again()
            return
        cause = f"order:{ordered.order.digest.hex()}"
        await self._make(Change(name, None, self._now_ms(), self._kms, cause, policy.version, ordered.document))

    async def keep(self) -> NoReturn:
        """Look for keys that policy holds to be too old, for ever."""
        while True:
            if self._currency.is_current:
                await self.rotate_old()
            await asyncio.sleep(_LOOK_SECONDS)

    async def rotate_old(self) -> None:
        """Begin the next epoch of every key that is too old now. One that cannot be rotated holds up no other."""
        policy = self._policy.current
        for name, page in sorted(self._book.pages.keys.items()):
            rule = policy.key_release(name)
            if page.retired or rule is None or rule.rotate_after_days is None:
                continue
            if self._now_ms() - page.since_ms < rule.rotate_after_days * _DAY_MS:
                continue
            try:
                await self.rotate(name, page.epoch + 1, _BY_AGE)
            except MeshError as error:
                log.warning("a key is old and was not rotated", name=name, reason=error.reason, detail=str(error))

    async def _make(self, change: Change) -> None:
        if not await self._book.change(change):
            await self._unlogged.say_again()
            return
        log.info("key changed", name=change.name, epoch=change.epoch, cause=change.cause)
        await self._unlogged.say(change)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)
