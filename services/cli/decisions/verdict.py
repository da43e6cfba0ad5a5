"""It is responsible for showing a decision about evidence: for people its rule and remedy, for machines all of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from libs.policy.document import Policy
from libs.policy.revocation import RevocationSet, SignedRevocation
from libs.tee.steps import TITLES
from services.cli.decisions.explanation import Decision
from services.cli.decisions.key_decision import KeyDecision
from services.cli.terminal.checks import print_development
from services.cli.terminal.words import Json, Moment, plain, shown


@dataclass(frozen=True, slots=True)
class Explained:
    """A question, and its answer."""

    document: bytes
    now: int
    policy: Policy
    policy_source: str
    signatures: str
    binding: str
    revocations: RevocationSet
    decision: Decision
    key: KeyDecision | None

    @property
    def holds(self) -> bool:
        return self.decision.refusal is None and (self.key is None or self.key.granted)

    def to_json(self) -> dict[str, Json]:
        policy, decision, key = self.policy, self.decision, self.key
        refusal = decision.refusal
        return {
            "admitted": refusal is None,
            "role": decision.role,
            "rule": _rule(decision),
            "step": decision.step,
            "reason": None if refusal is None else refusal.reason,
            "message": None if refusal is None else str(refusal),
            "change": decision.change or None,
            "revocations": [_revocation_json(signed, policy) for signed in decision.revocations],
            "key": None
            if key is None
            else {"name": key.name, "granted": key.granted, "rule": key.rule, "words": key.words},
            "digest": hashlib.sha256(self.document).hexdigest(),
            "now": self.now,
            "valid_until": None if decision.accepted is None else decision.accepted.valid_until,
            "policy": {
                "source": self.policy_source,
                "version": policy.version,
                "digest": policy.digest.hex(),
                "trust_domain": policy.trust_domain,
                "signatures": self.signatures,
                "development_roots": list(policy.development_roots),
                "revocations_counted": self.revocations.number,
            },
            "binding": self.binding,
        }


def print_explained(explained: Explained, console: Console) -> None:
    """Print for people; the last line of each question is its answer."""
    policy, decision = explained.policy, explained.decision
    print_development(policy.development_roots, console)
    _print(console, f"evidence     {hashlib.sha256(explained.document).hexdigest()}")
    _print(console, f"policy       version {policy.version} of {policy.trust_domain}, digest {policy.digest.hex()}")
    _print(console, f"             from {plain(explained.policy_source)}; {plain(explained.signatures)}")
    _print(console, f"revocations  {explained.revocations.number} counted")
    _print(console, f"role         {shown(decision.role)}")
    _print(console, f"time         {Moment(explained.now)}")
    _print(console, f"binding      {plain(explained.binding)}")
    for signed in decision.revocations:
        for line in _revocation_lines(signed, policy):
            _print(console, plain(line))
    _print(console, f"rule         {plain(_rule(decision) or 'none of the policy')}")
    _print(console, f"decided      {_place(decision)}")
    if decision.refusal is None:
        _print(console, ("ADMITTED", "bold green"), f" to role {shown(decision.role)}")
    else:
        _print(console, f"to change    {plain(decision.change)}")
        words = f" {decision.refusal.reason}: {shown(str(decision.refusal))}"
        _print(console, ("REFUSED", "bold red"), words)
    if (key := explained.key) is not None:
        verdict = ("RELEASED", "bold green") if key.granted else ("NOT RELEASED", "bold red")
        _print(console, verdict, f" key {key.name} by {plain(key.rule)}: {plain(key.words)}")


def _rule(decision: Decision) -> str | None:
    return None if decision.deciding is None else decision.deciding.member


def _place(decision: Decision) -> str:
    if decision.step is None:
        return "before any step"
    return f"in step {decision.step}, {TITLES[decision.step]}"


def _revocation_lines(signed: SignedRevocation, policy: Policy) -> tuple[str, ...]:
    revocation = signed.revocation
    doubt = "" if signed.key in policy.operator_keys else ", no operator of this version"
    return (
        f"revoked      {revocation.kind} {revocation.value}",
        f"  id         {revocation.id.hex()}",
        f"  because    {revocation.reason}",
        f"  by         {signed.key.hex()}{doubt}",
    )


def _revocation_json(signed: SignedRevocation, policy: Policy) -> Json:
    revocation = signed.revocation
    return {
        "id": revocation.id.hex(),
        "kind": str(revocation.kind),
        "value": revocation.value,
        "reason": revocation.reason,
        "operator": signed.key.hex(),
        "operator_of_this_version": signed.key in policy.operator_keys,
    }


def _print(console: Console, *parts: str | tuple[str, str]) -> None:
    console.print(Text.assemble(*parts), soft_wrap=True)
