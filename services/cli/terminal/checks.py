"""It is responsible for showing what was checked: one line a check, a summary, and a word about development."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from libs.client.checks import Check

_TAB_AND_NEWLINE = "\t\n"


def printable(text: str) -> str:
    """Return text from elsewhere without what a terminal would obey: no escape sequences, no moved cursor."""
    return "".join(letter for letter in text if letter.isprintable() or letter in _TAB_AND_NEWLINE)


def print_development(roots: Sequence[str], console: Console) -> None:
    """Say that nothing here is proven to run on real hardware, if that is so."""
    if roots:
        console.print(
            Text.assemble(
                (" DEVELOPMENT ", "bold white on red"),
                f" the policy trusts a software TEE ({', '.join(roots)}): nothing here is proven to run on hardware.",
            ),
            soft_wrap=True,
        )


def print_checks(checks: Sequence[Check], console: Console) -> bool:
    """Print the verdicts and say whether all passed. No check at all proves nothing, and did not pass."""
    for check in checks:
        verdict = ("PASS", "bold green") if check.passed else ("FAIL", "bold red")
        reason = "" if check.reason is None else f"{check.reason}: "
        line = Text.assemble(verdict, f" {check.number:2} {check.name}: ", (printable(reason + check.detail), "dim"))
        console.print(line, soft_wrap=True)
    passed = sum(check.passed for check in checks)
    verified = bool(checks) and passed == len(checks)
    console.print(
        Text.assemble(
            ("VERIFIED", "bold green") if verified else ("NOT VERIFIED", "bold red"),
            f": {passed} of {len(checks)} checks passed",
        ),
        soft_wrap=True,
    )
    return verified
