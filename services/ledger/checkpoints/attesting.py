"""It is responsible for showing a witness whose the checkpoint key is: this ledger's evidence, and what judges it."""

from __future__ import annotations

from libs.identity.freshness import PolicyKeeper
from libs.identity.member import Member
from libs.transparency.add_checkpoint import MAX_KEY_REQUEST_BYTES, AddCheckpoint, AddKey

_MOST_POLICY_BYTES = MAX_KEY_REQUEST_BYTES // 2


def submission_of(member: Member, request: AddCheckpoint) -> AddKey:
    """Return a request with all that a witness needs to believe its key.

    The claims of the evidence MUST name the key that signed the request's checkpoint.
    """
    credential, policy = member.identity.current, member.policy
    return AddKey(
        request,
        credential.certificate.der,
        member.identity.ca_certificate,
        credential.evidence.document,
        _newest(policy),
        tuple(signed.document for signed in policy.revocations.signed.values()),
    )


def _newest(policy: PolicyKeeper) -> tuple[bytes, ...]:
    """Return the versions that lead to the one in force, as many as there is room for.

    A witness passes over those that it has; one that lacks more needs a newer seed.
    """
    versions: list[bytes] = []
    room = _MOST_POLICY_BYTES
    for version in range(policy.current.version, policy.oldest - 1, -1):
        versions.append(policy.signed(version))
        room -= len(versions[-1])
        if room < 0:
            break
    return tuple(reversed(versions))
