"""It is responsible for `teemesh policy diff`: what a version allows that another did not, and whether it may follow.

Exit status: 0 when the second may follow the first, 1 when it may not, 2 when one of them cannot be read, 3 when only
signatures are lacking.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from libs.errors import MeshError
from libs.policy.comparison import Difference, Effect, compare
from libs.policy.document import Policy
from libs.policy.signatures import PolicySignaturesInsufficient, SignedPolicy
from libs.policy.succession import verify_place, verify_successor
from services.cli.evidence.inputs import read_policy
from services.cli.terminal.checks import print_development
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, usable
from services.cli.terminal.words import Json, plain

UNSIGNED = 3

_SIGNS = {Effect.ALLOWS: ("+", "green"), Effect.WITHDRAWS: ("-", "red"), Effect.CHANGES: ("~", "yellow")}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two policies, and what becomes of a mesh that goes from one to the other."""

    before: Policy
    after: Policy
    differences: tuple[Difference, ...]
    refusal: MeshError | None
    """Why the second may not follow the first, as every service would say; None: it may."""

    @property
    def lacks_only_signatures(self) -> bool:
        return isinstance(self.refusal, PolicySignaturesInsufficient) and _is_next(self.before, self.after)

    @property
    def status(self) -> int:
        if self.refusal is None:
            return ACCEPTED
        return UNSIGNED if self.lacks_only_signatures else REFUSED

    def to_json(self) -> dict[str, Json]:
        refusal = self.refusal
        return {
            "before": {"version": self.before.version, "digest": self.before.digest.hex()},
            "after": {
                "version": self.after.version,
                "digest": self.after.digest.hex(),
                "development_roots": list(self.after.development_roots),
            },
            "differences": [
                {"member": each.member, "effect": str(each.effect), "words": each.words} for each in self.differences
            ],
            "may_follow": refusal is None,
            "lacks_only_signatures": self.lacks_only_signatures,
            "refusal": None if refusal is None else {"reason": refusal.reason, "message": str(refusal)},
        }


def add_diff(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `teemesh policy diff`."""
    parser.add_argument("before", type=Path, metavar="A", help="a policy, signed or not")
    parser.add_argument("after", type=Path, metavar="B", help="the one that is to follow it")
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    parser.set_defaults(run=lambda args: usable(_run, args))


def compare_signed(before: Policy, after: SignedPolicy) -> Comparison:
    """Compare, and judge the succession as every service does."""
    refusal: MeshError | None = None
    try:
        verify_successor(before, after.document)
    except MeshError as error:
        refusal = error
    return Comparison(before, after.policy, compare(before, after.policy), refusal)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print for people: what is allowed, withdrawn and changed; the last line says whether it may follow."""
    before, after = comparison.before, comparison.after
    print_development(after.development_roots, console)
    _print(console, f"from version {before.version}, digest {before.digest.hex()}")
    _print(console, f"to version {after.version}, digest {after.digest.hex()}")
    for effect, (sign, colour) in _SIGNS.items():
        for difference in comparison.differences:
            if difference.effect is effect:
                words = f" {difference.member}: {difference.words}"
                _print(console, (f"{sign} {effect:9}", colour), plain(words))
    if not comparison.differences:
        _print(console, "nothing but number and chain differs")
    if (refusal := comparison.refusal) is None:
        _print(console, ("MAY FOLLOW", "bold green"), f" version {before.version}")
    elif comparison.lacks_only_signatures:
        _print(console, ("LACKS SIGNATURES", "bold yellow"), f" {refusal.reason}: {plain(str(refusal))}")
    else:
        _print(console, ("MAY NOT FOLLOW", "bold red"), f" {refusal.reason}: {plain(str(refusal))}")


def _run(args: argparse.Namespace) -> int:
    comparison = compare_signed(read_policy(args.before).policy, read_policy(args.after))
    if args.json:
        print(json.dumps(comparison.to_json(), indent=2))
    else:
        print_comparison(comparison, Console())
    return comparison.status


def _is_next(before: Policy, after: Policy) -> bool:
    try:
        verify_place(before, after)
    except MeshError:
        return False
    return True


def _print(console: Console, *parts: str | tuple[str, str]) -> None:
    console.print(Text.assemble(*parts), soft_wrap=True)
