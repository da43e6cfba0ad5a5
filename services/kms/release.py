"""It is responsible for which key goes to whom: what policy gives the caller's role, sealed to the caller."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from libs.errors import Code, MeshError
from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import Lease
from libs.identity.sealed import release_info, seal
from libs.policy.releases import is_boot_class
from services.kms.decisions import Decisions
from services.kms.keyring import Keyring

log = structlog.get_logger()


class KeyNotAllowed(MeshError):
    """Policy does not give this key to this role."""

    code = Code.PERMISSION_DENIED
    reason = "KEY_NOT_ALLOWED"


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A key for one receiver."""

    sealed: bytes
    epoch: int


class KeyRelease:
    """Releases keys to leased callers, and records every decision before the key goes out."""

    def __init__(self, keyring: Keyring, policy: PolicyKeeper, decisions: Decisions) -> None:
        self._keyring = keyring
        self._policy = policy
        self._decisions = decisions

    async def release(self, name: str, epoch: int, caller: Lease) -> SealedKey:
        """Return the key sealed to the caller's `hpke_key`. Raises `KeyNotAllowed` and the keyring's refusals.

        A boot-class decision is durable in the outbox before the key leaves; any other waits for the ledger.
        """
        policy = self._policy.current
        epoch = self._keyring.resolve(name, epoch)
        allowed = policy.may_release(name, caller.certificate.role)
        decision = {
            "decision": "released" if allowed else "refused",
            "name": name,
            "epoch": epoch,
            "spiffe_id": caller.certificate.spiffe_id,
            "evidence_sha256": caller.evidence.digest.hex(),
            "policy_version": policy.version,
        }
        if not allowed:
            await self._decisions.record_later(decision)
            raise KeyNotAllowed(f"policy {policy.version} does not give {name} to role {caller.certificate.role}")
        sealed = seal(
            self._keyring.symmetric(name, epoch),
            caller.appraisal.workload_claims.get("hpke_key"),
            release_info(name, epoch, caller.certificate.spiffe_id),
        )
        if is_boot_class(name):
            await self._decisions.record_later(decision)
        else:
            await self._decisions.record(decision)
        log.info("key released", name=name, epoch=epoch, to=caller.certificate.spiffe_id)
        return SealedKey(sealed, epoch)
