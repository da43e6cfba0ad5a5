"""It is responsible for which rule of a policy decides whether a workload gets a key."""

from __future__ import annotations

from dataclasses import dataclass

from libs.policy.document import Policy
from libs.policy.releases import KEY_NAME
from services.cli.decisions.explanation import Decision
from services.cli.terminal.inputs import InputUnreadable


@dataclass(frozen=True, slots=True)
class KeyDecision:
    """Whether a key may be used, and what decides it."""

    name: str
    granted: bool
    rule: str
    """The member of the policy, or of the rule about the key, that decides."""
    words: str
    """How the key may be used; or what would have to change."""


def decide_key(policy: Policy, name: str, decision: Decision) -> KeyDecision:
    """Answer for the workload that a decision is about. Raises `InputUnreadable` for what names no key."""
    if not KEY_NAME.fullmatch(name):
        raise InputUnreadable(f"{name!r} is no key's name: lower-case segments between slashes, no wildcard")
    accepted = decision.accepted
    if accepted is None:
        rule = "no rule" if decision.deciding is None else decision.deciding.member
        return KeyDecision(name, False, rule, "what is not admitted gets no key")
    release = policy.key_release(name)
    if release is None:
        return KeyDecision(name, False, "key_releases", "no rule is about this key: add one")
    rule = f'key_releases."{release.pattern}"'
    if accepted.role not in release.roles:
        return KeyDecision(name, False, f"{rule}.roles", f"add {accepted.role} to the rule's roles")
    if not release.admits(accepted.role, accepted.measurement["compose_hash"]):
        return KeyDecision(name, False, f"{rule}.compose_hashes", "add the workload's compose hash to the rule")
    use = "sealed to it" if release.held else "for signatures that the KMS makes on its behalf; the key stays there"
    return KeyDecision(name, True, rule, f"{release.algorithm}, {use}")
