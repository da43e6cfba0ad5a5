"""It is responsible for what may follow a policy: exactly the next version, approved by the operators in force.

Succession and validity are two questions. A service that missed versions walks through all of them, expired ones
included, and asks about time only for the last.
"""

from __future__ import annotations

from libs.errors import MeshError
from libs.policy.document import Policy
from libs.policy.signatures import parse_signed, verify


class PolicyVersionNotNext(MeshError):
    """The policy does not follow the one in force."""

    reason = "POLICY_VERSION_NOT_NEXT"


class PolicyNotValidNow(MeshError):
    """The policy's validity has not begun or is over."""

    reason = "POLICY_NOT_VALID_NOW"


def verify_successor(current: Policy, signed: bytes) -> Policy:
    """Return the policy that follows `current`: next version, its digest named, same trust domain, signed by m of n
    of the operators of `current` and by m of n of its own.

    Does not look at the time. Raises `PolicyMalformed`, `PolicySignaturesInsufficient`, `PolicyVersionNotNext`.
    """
    policy = verify(signed, current.operator_keys, current.operator_threshold)
    verify_place(current, policy)
    return policy


def verify_place(current: Policy, policy: Policy) -> None:
    """Raise `PolicyVersionNotNext` unless a policy, signed or not, says that it follows `current`."""
    if policy.version != current.version + 1:
        raise PolicyVersionNotNext(
            f"version {policy.version} cannot follow version {current.version}: publish version {current.version + 1}"
        )
    if policy.previous != current.digest:
        raise PolicyVersionNotNext(f"version {policy.version} follows another version {current.version} than this one")
    if policy.trust_domain != current.trust_domain:
        raise PolicyVersionNotNext(f"a policy for {policy.trust_domain} cannot follow one for {current.trust_domain}")


def verify_predecessor(current: Policy, signed: bytes) -> Policy:
    """Return the policy that `current` follows. Its signatures are not judged: whoever approved `current` approved the
    digest that it names. Raises `PolicyMalformed`, `PolicyVersionNotNext`.
    """
    policy = parse_signed(signed).policy
    if policy.digest != current.previous:
        raise PolicyVersionNotNext(f"version {current.version} follows another version than this one")
    return policy


def verify_valid_at(policy: Policy, now: float) -> None:
    """Raise `PolicyNotValidNow` unless the policy's validity holds at `now` (Unix seconds)."""
    if now < policy.not_before:
        raise PolicyNotValidNow(f"version {policy.version} is not valid yet")
    if now >= policy.not_after:
        raise PolicyNotValidNow(f"version {policy.version} has expired: publish a new version")


def verify_publication(current: Policy, signed: bytes, now: float) -> Policy:
    """Return the policy that may be put in force now in place of `current`. Raises what the two questions raise."""
    policy = verify_successor(current, signed)
    verify_valid_at(policy, now)
    return policy
