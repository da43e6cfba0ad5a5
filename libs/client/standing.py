"""Responsible for what the checks of an exchange come to: one word for what is wrong first."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from libs.client.checks import Check


class Standing(IntEnum):
    """What is wrong, by the exit status that says so. The lower one goes before: what follows rests on it."""

    COMPLETE = 0
    """Every check passed."""
    UNATTESTED = 3
    """No attested router signed a receipt, or a connection ended elsewhere."""
    MISFIT = 4
    """The receipt is for another request, or another response."""
    UNLOGGED = 5
    """The response has no valid acknowledgement: the router completed it, and what it shows of the log is not this."""
    UNVERIFIED = 6
    """It is not proven that a verified node served."""
    UNSHOWN = 7
    """The entry was acknowledged, and is in no signed tree, or in none with the cosignatures that are demanded."""


BY_CHECK = {
    1: Standing.UNATTESTED,
    2: Standing.UNATTESTED,
    3: Standing.UNATTESTED,
    4: Standing.MISFIT,
    5: Standing.MISFIT,
    6: Standing.UNVERIFIED,
    7: Standing.UNVERIFIED,
    8: Standing.UNLOGGED,
    9: Standing.UNLOGGED,
    10: Standing.UNLOGGED,
    11: Standing.UNLOGGED,
    12: Standing.UNSHOWN,
}
"""What it says when a check of `run_checks` fails, by the check's number."""


def standing(checks: Sequence[Check]) -> Standing:
    """Return what all the checks of `run_checks` come to."""
    return min((BY_CHECK[check.number] for check in checks if not check.passed), default=Standing.COMPLETE)
