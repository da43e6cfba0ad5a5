"""It is responsible for by whose word a log says what operators order: each order verified again, by its policy.

A ledger that erased, held or released a vault, said that it gave out a tag key, or let entries be pruned, without an
order that counts is found by this.
Whether an order was still in time when it was given is not judged: an entry may have waited for the log since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from libs.audit.log.entries import PublicEntry
from libs.errors import Code, MeshError
from libs.events.erasure import ErasureDone, ErasureOrdered, HoldChanged, TagKeyGiven, parse_erasure
from libs.events.pruning import parse_prune
from libs.events.vault import vault_epoch
from libs.policy.document import Policy
from libs.policy.orders import HOLD_VAULT, RELEASE_VAULT
from libs.policy.prune_orders import Pruning, verify_pruning
from libs.policy.vault_orders import VaultPart, verify_erasure, verify_hold, verify_tag_key_gift
from libs.transparency.chain import entry_id

_WHENEVER = 0.0


class VaultNotOrdered(MeshError):
    """Nothing in the log bears out what an entry says of a vault."""

    code = Code.PERMISSION_DENIED
    reason = "VAULT_NOT_ORDERED"


class PruneOrderAnother(MeshError):
    """The order that an entry shows does not allow the pruning that the entry allows."""

    code = Code.PERMISSION_DENIED
    reason = "PRUNE_ORDER_ANOTHER"


class PolicyNotLogged(MeshError):
    """The log does not hold the policy by which an order is said to have counted."""

    code = Code.PERMISSION_DENIED
    reason = "POLICY_NOT_LOGGED"


@dataclass(slots=True)
class LogAuthority:
    """Takes what a log says of vaults and of pruning, in its order."""

    origin: str
    """The log's name."""
    policies: Sequence[Policy]
    """Those that the log holds."""
    _ordered: dict[bytes, VaultPart] = field(default_factory=dict)
    """By entry id: orders that count."""
    _held: set[bytes] = field(default_factory=set)
    _spent: set[bytes] = field(default_factory=set)
    """Orders about holds, each of which counts once."""

    def take_pruning(self, entry: PublicEntry) -> None:
        """Raises `PruneMalformed`, `PruneOrderAnother`, `PolicyNotLogged`, and what an order is refused with."""
        said = parse_prune(entry.body)
        ordered = verify_pruning(said.order.document, self._policy(said.policy_version), _WHENEVER)
        if ordered != Pruning(self.origin, said.min_index):
            raise PruneOrderAnother("its order is about another log, or about other entries")

    def take_erasure(self, entry: PublicEntry, wall_ns: int) -> None:
        """Raises `ErasureMalformed`, `VaultNotOrdered`, `PolicyNotLogged`, and what an order is refused with."""
        said = parse_erasure(entry.body)
        match said:
            case ErasureOrdered():
                self._verify_erasable(said, wall_ns)
                if said.part.vault_id not in self._held:
                    self._ordered[entry_id(entry.issuer, entry.issuer_seq)] = said.part
            case ErasureDone():
                if self._ordered.get(said.ordered) != said.part:
                    raise VaultNotOrdered("it names as its order an entry that did not close the vault")
            case HoldChanged():
                self._take_hold(said)
            case TagKeyGiven():
                gift = verify_tag_key_gift(said.order.document, self._policy(said.policy_version), _WHENEVER)
                if gift.vault_id != said.vault_id:
                    raise VaultNotOrdered("its order is about another vault")

    def _verify_erasable(self, said: ErasureOrdered, wall_ns: int) -> None:
        authority, policy = said.authority, self._policy(said.authority.policy_version)
        if authority.order is not None:
            if verify_erasure(authority.order.document, policy, _WHENEVER) != said.part:
                raise VaultNotOrdered("its order is about another vault or month")
            return
        months, epoch = policy.retention_months, said.part.epoch
        if months is None or authority.retention_months != months or epoch is None:
            raise VaultNotOrdered(f"version {policy.version} has no such rule of age")
        if epoch + months >= vault_epoch(wall_ns / 10**9):
            raise VaultNotOrdered(f"the month is not older than the {months} that version {policy.version} keeps")

    def _take_hold(self, said: HoldChanged) -> None:
        order, policy = said.order, self._policy(said.policy_version)
        part = verify_hold(order.document, HOLD_VAULT if said.held else RELEASE_VAULT, policy, _WHENEVER)
        if part.vault_id != said.vault_id:
            raise VaultNotOrdered("its order is about another vault")
        if order.order.digest not in self._spent:
            self._spent.add(order.order.digest)
            (self._held.add if said.held else self._held.discard)(said.vault_id)

    def _policy(self, version: int) -> Policy:
        for policy in self.policies:
            if policy.version == version:
                return policy
        raise PolicyNotLogged(f"the log does not hold version {version}, by which it counted")
