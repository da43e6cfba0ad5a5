"""19: members of a log, and its witness, killed, stopped, cut off and full, while it is written to and read."""

from __future__ import annotations

from collections import Counter

from tests.faults.ledger.outcome import Batch, Outcome
from tests.faults.ledger_failover import run


async def failover(batch: Batch) -> Outcome:
    """One fault after the other on three members and a witness."""
    seen = await run(len(batch.rounds), batch.seed + batch.rounds.start)
    faults = Counter({name: len(seconds) for name, seconds in seen.seconds.items()})
    faults["entries acknowledged"] = len(seen.committed)
    faults["sizes with one root"] = len(seen.roots)
    faults["of them cosigned"] = len(seen.cosigned)
    outcome = Outcome(faults, list(seen.wrong))
    outcome.require(seen.holds, "nothing was acknowledged, or nothing cosigned, or something is wrong")
    return outcome
