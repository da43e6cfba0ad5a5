"""It is responsible for showing what evidence states, and every step of its appraisal with the values compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from libs.errors import MeshError
from libs.policy.document import Policy
from libs.tee.steps import TITLES, Compared, Step
from services.cli.evidence.appraisal import Accepted, Examination, Refused
from services.cli.evidence.description import Section
from services.cli.terminal.checks import print_development
from services.cli.terminal.words import Json, Moment, plain, shown

_GOOD, _BAD, _QUIET = "bold green", "bold red", "dim"


@dataclass(frozen=True, slots=True)
class Judged:
    """One file's appraisal under one policy, and how the policy itself stands."""

    digest: bytes
    """SHA-256 of what was appraised."""
    now: int
    policy: Policy
    policy_source: str
    """Where the policy was taken from."""
    signatures: str
    """Whose word the policy's signatures were judged by."""
    policy_refusal: MeshError | None
    binding: str
    """What step 5 holds the evidence against."""
    examination: Examination
    advice: tuple[str, ...]

    @property
    def verdict(self) -> Accepted | Refused:
        """The steps' refusal before the policy's: it says more about the evidence."""
        outcome = self.examination.outcome
        if isinstance(outcome, Accepted) and self.policy_refusal is not None:
            return Refused(outcome.role, self.policy_refusal)
        return outcome

    @property
    def holds(self) -> bool:
        return isinstance(self.verdict, Accepted)

    def to_json(self) -> dict[str, Json]:
        outcome, verdict = self.examination.outcome, self.verdict
        accepted = outcome if isinstance(outcome, Accepted) else None
        begun = {step.number: step for step in self.examination.steps}
        return {
            "accepted": self.holds,
            "digest": self.digest.hex(),
            "role": outcome.role,
            "now": self.now,
            "policy": {
                "source": self.policy_source,
                "version": self.policy.version,
                "digest": self.policy.digest.hex(),
                "trust_domain": self.policy.trust_domain,
                "signatures": self.signatures,
                "development_roots": list(self.policy.development_roots),
                "refusal": _refusal_json(self.policy_refusal),
            },
            "binding": self.binding,
            "steps": [_step_json(number, begun.get(number)) for number in TITLES],
            "refusal": _refusal_json(verdict.refusal if isinstance(verdict, Refused) else None),
            "advice": list(self.advice),
            "valid_until": None if accepted is None else accepted.valid_until,
            "vendor_root": None
            if accepted is None
            else {"name": accepted.vendor_root.name, "development": accepted.vendor_root.development},
            "findings": None if accepted is None else accepted.findings,
        }


def print_sections(sections: Sequence[Section], console: Console) -> None:
    """Print what evidence states, and first that nobody verified it."""
    _print(
        console,
        (" UNVERIFIED ", "bold white on red"),
        " this is what the file states; nothing of it is proven: teemesh evidence appraise",
    )
    for section in sections:
        _print(console, (plain(section.title), "bold"))
        for fact in section.facts:
            _print(console, f"  {shown(fact.name)}: {'' if fact.entries else shown(fact.value)}".rstrip())
            for entry in fact.entries:
                _print(console, f"    {shown(entry)}")


def print_judged(judged: Judged, console: Console) -> None:
    """Print the steps; the last line is the verdict."""
    policy, examination = judged.policy, judged.examination
    print_development(policy.development_roots, console)
    _print(console, f"evidence  {judged.digest.hex()}")
    _print(console, f"policy    version {policy.version} of {policy.trust_domain}, digest {policy.digest.hex()}")
    _print(console, f"          from {plain(judged.policy_source)}")
    if judged.policy_refusal is None:
        _print(console, f"          {plain(judged.signatures)}")
    else:
        _print(console, "          ", ("NOT IN FORCE", _BAD), f" {_words(judged.policy_refusal)}")
    _print(console, f"role      {shown(examination.outcome.role)}")
    _print(console, f"time      {Moment(judged.now)}")
    _print(console, f"binding   {plain(judged.binding)}")
    begun = {step.number: step for step in examination.steps}
    for number, title in TITLES.items():
        _print_step(number, title, begun.get(number), console)
    for advice in judged.advice:
        _print(console, f"do: {plain(advice)}")
    _print_verdict(judged, console)


def _print_step(number: int, title: str, step: Step | None, console: Console) -> None:
    if step is None:
        _print(console, ("not reached", _QUIET), f" {number:2} {title}")
        return
    _print(console, ("PASS", _GOOD) if step.refusal is None else ("FAIL", _BAD), f" {number:2} {title}")
    for compared in step.compared:
        _print(console, "        " + _compared(compared))
    if step.refusal is not None:
        _print(console, "        ", (_words(step.refusal), _BAD))


def _print_verdict(judged: Judged, console: Console) -> None:
    accepted = judged.verdict
    if isinstance(accepted, Refused):
        _print(console, ("REFUSED", _BAD), f" {_words(accepted.refusal)}")
        return
    root = accepted.vendor_root
    _print(console, f"the evidence speaks for the key with SHA-256 {accepted.spki_sha256.hex()}")
    _print(
        console,
        ("ACCEPTED", _GOOD),
        f" for role {shown(accepted.role)} until {Moment(accepted.valid_until)}, vendor root ",
        (f"{root.name}: DEVELOPMENT, nothing is proven to run on hardware", _BAD) if root.development else root.name,
    )


def _compared(compared: Compared) -> str:
    if compared.found == compared.required:
        return f"{shown(compared.name)}: {shown(compared.found)}, as required"
    return f"{shown(compared.name)}: found {shown(compared.found)}; required {shown(compared.required)}"


def _step_json(number: int, step: Step | None) -> dict[str, Json]:
    compared = () if step is None else step.compared
    result = "not reached" if step is None else "pass" if step.refusal is None else "fail"
    return {
        "number": number,
        "title": TITLES[number],
        "result": result,
        "compared": [{"name": each.name, "found": each.found, "required": each.required} for each in compared],
        "refusal": None if step is None else _refusal_json(step.refusal),
    }


def _refusal_json(refusal: MeshError | None) -> Json:
    return None if refusal is None else {"reason": refusal.reason, "message": str(refusal)}


def _words(refusal: MeshError) -> str:
    return f"{refusal.reason}: {shown(str(refusal))}"


def _print(console: Console, *parts: str | tuple[str, str]) -> None:
    console.print(Text.assemble(*parts), soft_wrap=True)
