"""It is responsible for what is ordered of vaults: judged here under the policy in force, then said in the log.

What the log says decides, not what this process was asked for: of an erasure and a hold at once, the one that the log
has first counts. Nothing is answered before the entry that says it counts: what no majority of the members holds may be
lost again, and whoever was answered would know better than the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from libs.errors import Code, MeshError
from libs.events.erasure import Authority, ErasureOrdered, HoldChanged, TagKeyGiven
from libs.events.vault import vault_epoch
from libs.policy.document import Policy
from libs.policy.orders import HOLD_VAULT, RELEASE_VAULT, parse_order
from libs.policy.vault_orders import VaultPart, month_of, verify_erasure, verify_hold, verify_tag_key_gift
from services.ledger.growth import Growth
from services.ledger.storage.store import LogStore
from services.ledger.vaults.erasing import Erased, Erasing, Sayings
from services.ledger.vaults.erasures import Erasures
from services.ledger.vaults.vaults import VaultEpochUnknown, VaultErased, Vaults, VaultUnknown


class VaultHeld(MeshError):
    """The vault is under a hold: it takes an order of m of n operators to release it first."""

    reason = "VAULT_HELD"


class VaultNotHeld(MeshError):
    """There is no hold to release."""

    reason = "VAULT_NOT_HELD"


class EpochNotOver(MeshError):
    """The month is not over: what is still sealed in it would be lost unread."""

    reason = "EPOCH_NOT_OVER"


class OrderSpent(MeshError):
    """The order was carried out before, and another one since says otherwise: sign a new one."""

    reason = "ORDER_SPENT"


class TagKeyForAnother(MeshError):
    """The order gives the tag key to another public key than the caller's: draft one that names yours."""

    code = Code.PERMISSION_DENIED
    reason = "TAG_KEY_FOR_ANOTHER"


@dataclass(frozen=True, slots=True)
class TagKey:
    """What makes a vault's entries recognisable."""

    vault_id: bytes
    key: bytes = field(repr=False)
    index: int
    """Of the entry that says that it was given out."""


@dataclass(frozen=True, slots=True)
class HoldSet:
    """What holds now of a vault."""

    vault_id: bytes
    held: bool
    index: int
    """Of the entry that says so."""


class VaultOrders:
    """Takes orders. Each method may be called again with the same order and then answers the same."""

    def __init__(
        self,
        policy: Callable[[], Policy],
        store: LogStore,
        growth: Growth,
        vaults: Vaults,
        erasures: Erasures,
        erasing: Erasing,
        own: Sayings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`policy` returns the policy in force, or raises."""
        self._policy = policy
        self._store = store
        self._growth = growth
        self._vaults = vaults
        self._erasures = erasures
        self._erasing = erasing
        self._own = own
        self._clock = clock

    async def erase(self, signed: bytes) -> Erased:
        """Erase what is ordered, and return once the log says that it is done.

        Raises what `verify_erasure` does, `VaultHeld`, `VaultUnknown`, `VaultEpochUnknown`, `EpochNotOver`,
        `LedgerUnavailable`, `OutboxFull`.
        """
        policy = self._policy()
        part = verify_erasure(signed, policy, self._clock())
        if self._erasures.of(part) is None:
            await self.close(part, Authority(policy.version, parse_order(signed)))
        return await self._erasing.until_done(part)

    async def close(self, part: VaultPart, authority: Authority) -> None:
        """Close a part of a vault for ever; return once the log has it. Raises what `erase` does but for orders."""
        self._require_erasable(part)
        last_seq = self._store.index.next_vault_seq(part.vault_id) - 1
        await self._own.erasure_logged(ErasureOrdered(part, last_seq, authority))
        if self._erasures.of(part) is None:
            raise VaultHeld("the vault was held meanwhile")

    async def set_hold(self, signed: bytes) -> HoldSet:
        """Hold a vault or release it, as ordered; return once the log says so.

        Raises what `verify_hold` does, `VaultUnknown`, `VaultErased`, `VaultNotHeld`, `OrderSpent`,
        `LedgerUnavailable`, `OutboxFull`.
        """
        policy, parsed = self._policy(), parse_order(signed)
        held = parsed.order.action == HOLD_VAULT
        part = verify_hold(signed, HOLD_VAULT if held else RELEASE_VAULT, policy, self._clock())
        if not self._erasures.is_spent(parsed.order):
            self._require_holdable(part.vault_id, held=held)
            await self._own.erasure_logged(HoldChanged(part.vault_id, held, policy.version, parsed))
        hold = self._erasures.hold_of(part.vault_id)
        if hold is None or self._erasures.of(part) is not None:
            raise VaultErased("the vault was closed before the hold")
        if hold.held != held:
            raise OrderSpent("another order has changed the hold since: sign a new one")
        return HoldSet(part.vault_id, held, await self._until_it_counts(hold.entry))

    async def give_tag_key(self, signed: bytes, receiver: bytes) -> TagKey:
        """Give a vault's tag key to whom an order names, who is asking; the log has the order first.

        `receiver` is the SHA-256 of the caller's public key, which the caller MUST have shown to have. Raises what
        `verify_tag_key_gift` does, `TagKeyForAnother`, `VaultUnknown`, `VaultErased`, `LedgerUnavailable`,
        `OutboxFull`.
        """
        policy, parsed = self._policy(), parse_order(signed)
        gift = verify_tag_key_gift(signed, policy, self._clock())
        # The order stands in the log for all to read: who has it has no right by that.
        if gift.receiver != receiver:
            raise TagKeyForAnother("the order gives the key to another public key than the caller's")
        self._require_there(gift.vault_id)
        if self._erasures.gift_by(parsed.order) is None:
            await self._own.erasure_logged(TagKeyGiven(gift.vault_id, policy.version, parsed))
        entry = self._erasures.gift_by(parsed.order)
        if entry is None:
            raise RuntimeError("the log has an entry that gives out a tag key, and it is not found")
        index = await self._until_it_counts(entry)
        self._require_there(gift.vault_id)
        return TagKey(gift.vault_id, self._vaults.tag_key(gift.vault_id), index)

    async def _until_it_counts(self, entry: bytes) -> int:
        """Wait until an entry that was judged is in the log and counts, whoever had it written; return its index."""
        while True:
            size, index = self._growth.size, self._store.index.find(entry)
            if index is not None and index < size:
                return index
            await self._growth.beyond(size)

    def _require_erasable(self, part: VaultPart) -> None:
        vault = self._vaults.of(part.vault_id)
        if vault is None:
            raise VaultUnknown("no such vault in this log")
        if self._erasures.is_held(part.vault_id):
            raise VaultHeld("the vault is under a hold: have it released first")
        if part.epoch is None:
            return
        if part.epoch >= vault_epoch(self._clock()):
            raise EpochNotOver(f"{month_of(part.epoch)} is not over")
        if part.epoch not in vault.epochs:
            raise VaultEpochUnknown(f"the vault was never opened in {month_of(part.epoch)}")

    def _require_holdable(self, vault_id: bytes, *, held: bool) -> None:
        self._require_there(vault_id)
        if not held and not self._erasures.is_held(vault_id):
            raise VaultNotHeld("the vault is under no hold")

    def _require_there(self, vault_id: bytes) -> None:
        if self._erasures.of(VaultPart(vault_id, None)) is not None:
            raise VaultErased("the vault is closed for ever")
        if self._vaults.of(vault_id) is None:
            raise VaultUnknown("no such vault in this log")
