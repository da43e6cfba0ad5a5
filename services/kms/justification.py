"""It is responsible for which logged changes count: a KMS that errs, or is not honest any more, ends no key alone.

A new epoch is the one after the newest, so nobody uses epochs up. A retirement carries the operators' order, which is
verified again by everyone who reads it, under the policy of its time.
"""

from __future__ import annotations

from libs.errors import Code, MeshError
from libs.identity.freshness import PolicyKeeper
from libs.policy.signatures import parse_signed
from libs.policy.vault_orders import verify_retirement
from services.kms.changes import Change


class ChangeNotJustified(MeshError):
    """A logged change is not what a KMS may log."""

    code = Code.PERMISSION_DENIED
    reason = "KEY_CHANGE_NOT_JUSTIFIED"


def verify_logged(change: Change, newest: int, policies: PolicyKeeper) -> None:
    """Raise unless a logged change counts: `ChangeNotJustified`, what `verify_retirement` raises.

    `newest` is the key's newest epoch by all that was logged before it.
    """
    if change.epoch is not None:
        if change.epoch > newest + 1:
            raise ChangeNotJustified(f"epoch {change.epoch} of {change.name} does not follow {newest}")
        return
    # Of a time before this chain: by its oldest version.
    version = max(change.policy_version, policies.oldest)
    policy = parse_signed(policies.signed(version)).policy
    ordered = verify_retirement(change.order, policy, change.at_ms / 1000)
    if ordered != change.name:
        raise ChangeNotJustified(f"the order ends {ordered}, not {change.name}")
