"""Tests of other folders that belong to a fault, run as they are."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.faults.ledger.outcome import Outcome

ROOT = Path(__file__).parents[3]
_PASSED = re.compile(rb"([0-9]+) passed")
_LAST_WORDS = 2000


async def run_tests(names: Sequence[str]) -> Outcome:
    """Run tests by their names; every one must be there and pass."""
    outcome = Outcome()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", *names),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    passed = _PASSED.search(said)
    outcome.counts["tests passed"] = int(passed[1]) if passed else 0
    if process.returncode or not passed:
        outcome.wrong.append(f"tests failed: {said[-_LAST_WORDS:].decode(errors='replace')}")
    return outcome
