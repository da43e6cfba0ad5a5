"""It is responsible for keys that leave the KMS: sealed to the caller, and on record before they go."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from libs.errors import Code, MeshError
from libs.identity.lease import Lease
from libs.identity.sealed import release_info, seal
from libs.policy.releases import KeyAlgorithm, KeyRelease, is_boot_class
from services.kms.access import Access, decision
from services.kms.decisions import Decisions
from services.kms.keyring import Keyring

log = structlog.get_logger()


class KeyAlgorithmMismatch(MeshError):
    """By policy the key is for something else than what the caller wants it for."""

    reason = "KEY_ALGORITHM_MISMATCH"


class KeyNotReleased(MeshError):
    """By policy the key never leaves the KMS: have it sign."""

    code = Code.PERMISSION_DENIED
    reason = "KEY_NOT_RELEASED"


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A key for one receiver."""

    sealed: bytes
    epoch: int
    newest_epoch: int


class Releases:
    """Releases keys to leased callers."""

    def __init__(self, keyring: Keyring, access: Access, decisions: Decisions) -> None:
        self._keyring = keyring
        self._access = access
        self._decisions = decisions

    async def release(self, name: str, epoch: int, algorithm: KeyAlgorithm, caller: Lease) -> SealedKey:
        """Return the key sealed to the caller's `hpke_key`.

        A boot-class decision is durable in the outbox before the key leaves; any other waits for the ledger. Raises
        what `Access.require` does, `KeyAlgorithmMismatch`, `KeyNotReleased`, `HpkeKeyMissing`, `KeyBookFull`,
        `LedgerUnavailable`, `KeyChangedMeanwhile`.
        """
        grant = await self._access.require(name, epoch, caller)
        if (refusal := _unfit(grant.rule, algorithm)) is not None:
            await self._access.record_refusal(name, grant.epoch, caller, refusal)
            raise refusal
        sealed = seal(
            self._keyring.material(name, grant.epoch, algorithm),
            caller.appraisal.workload_claims.get("hpke_key"),
            release_info(name, grant.epoch, caller.certificate.spiffe_id, algorithm),
        )
        await self._access.note_use(grant)
        released = decision("released", name, grant.epoch, caller, grant.policy)
        if is_boot_class(name):
            await self._decisions.released_for_boot(released)
        else:
            await self._decisions.record(released)
        self._access.require_still(grant, caller)
        log.info("key released", name=name, epoch=grant.epoch, to=caller.certificate.spiffe_id)
        return SealedKey(sealed, grant.epoch, grant.newest_epoch)


def _unfit(rule: KeyRelease, algorithm: KeyAlgorithm) -> MeshError | None:
    if algorithm is not rule.algorithm:
        return KeyAlgorithmMismatch(f"by policy {rule.pattern} is for {rule.algorithm}")
    if not rule.held:
        return KeyNotReleased(f"by policy {rule.pattern} never leaves the KMS: have it sign")
    return None
