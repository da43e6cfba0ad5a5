"""It is responsible for who may use which key: the policy's rule, the key's epochs, and every refusal on record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs.errors import Code, MeshError
from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import Lease
from libs.policy.document import Policy
from libs.policy.releases import KeyRelease, is_boot_class
from services.kms.book import KeyBook
from services.kms.currency import Currency
from services.kms.decisions import Decisions


class KeyNotAllowed(MeshError):
    """Policy does not give this key to this workload, or has no rule about it."""

    code = Code.PERMISSION_DENIED
    reason = "KEY_NOT_ALLOWED"


class KeyChangedMeanwhile(MeshError):
    """While the ledger was waited for, policy's rule about the key changed or a new epoch began: ask again."""

    code = Code.ABORTED
    reason = "KEY_CHANGED_MEANWHILE"


@dataclass(frozen=True, slots=True)
class Grant:
    """What was granted, and under what."""

    name: str
    epoch: int
    newest_epoch: int
    rule: KeyRelease
    policy: Policy


class Access:
    """Judges every use of a key."""

    def __init__(self, book: KeyBook, policy: PolicyKeeper, decisions: Decisions, currency: Currency) -> None:
        self._book = book
        self._policy = policy
        self._decisions = decisions
        self._currency = currency

    def look_up(self, name: str, epoch: int) -> Grant:
        """Return what there is to know of a key, epoch 0 being the newest. Decides nothing about a caller.

        Raises `KeyNameMalformed`, `KeyStateBehind`, `KeyRetired`, `KeyEpochUnknown`, `KeyNotAllowed` without a rule.
        """
        if not is_boot_class(name):
            self._currency.require()
        meant = self._book.resolve(name, epoch)
        policy = self._policy.current
        if (rule := policy.key_release(name)) is None:
            raise KeyNotAllowed(f"policy {policy.version} has no rule about {name}")
        return Grant(name, meant, self._book.newest(name), rule, policy)

    async def require(self, name: str, epoch: int, caller: Lease) -> Grant:
        """Return what a caller may use. Raises what `look_up` does and `KeyNotAllowed`."""
        try:
            return self._granted(name, epoch, caller)
        except MeshError as refusal:
            await self.record_refusal(name, epoch, caller, refusal)
            raise

    async def note_use(self, grant: Grant) -> None:
        """Remember, durably, that a key is used. Raises `KeyBookFull`."""
        await self._book.note_use(grant.name, grant.rule)

    def require_still(self, grant: Grant, caller: Lease) -> None:
        """Judge again what was granted before disk and ledger were waited for.

        Raises what `require` does, and `KeyChangedMeanwhile` for what was judged by a rule or epoch of before.
        """
        now = self._granted(grant.name, grant.epoch, caller)
        if (now.rule, now.newest_epoch) != (grant.rule, grant.newest_epoch):
            raise KeyChangedMeanwhile(f"{grant.name} is under another rule or epoch by now: ask again")

    def _granted(self, name: str, epoch: int, caller: Lease) -> Grant:
        grant = self.look_up(name, epoch)
        role = caller.certificate.role
        if not grant.rule.admits(role, caller.appraisal.measurement.compose_hash):
            raise KeyNotAllowed(f"policy {grant.policy.version} does not give {name} to this {role}")
        return grant

    async def record_refusal(self, name: str, epoch: int, caller: Lease, refusal: MeshError) -> None:
        """Record that a key was not given. What is no name, and what is no answer yet, decide nothing."""
        if refusal.code not in (Code.INVALID_ARGUMENT, Code.UNAVAILABLE):
            said = decision("refused", name, epoch, caller, self._policy.current)
            await self._decisions.refusals.record({**said, "reason": refusal.reason})


def decision(what: str, name: str, epoch: int, caller: Lease, policy: Policy) -> Mapping[str, Any]:
    """Return the body of the ledger entry about one key and one caller."""
    return {
        "decision": what,
        "name": name,
        "epoch": epoch,
        "spiffe_id": caller.certificate.spiffe_id,
        "evidence_sha256": caller.evidence.digest.hex(),
        "policy_version": policy.version,
    }
