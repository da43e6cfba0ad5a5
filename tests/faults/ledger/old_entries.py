"""12: entries that are logged come again, thousands of times, to a log whose index was made anew."""

from __future__ import annotations

import shutil
from dataclasses import replace

from services.ledger.intake import sequencer as sequencing
from services.ledger.intake.sequencer import Sequencer
from services.ledger.storage.derived import FOLDER
from tests.fakes.written_log import tag_of
from tests.faults.ledger.life import open_log
from tests.faults.ledger.outcome import Batch, Outcome
from tests.faults.ledger.small_log import SmallLog, remove

_AT_ONCE = 1000


def old_entries(batch: Batch) -> Outcome:
    """Judge what is in the log, and other words under the same numbers."""
    outcome, log = Outcome(), SmallLog.make(batch.folder)
    folder = log.copy("again")
    before = {path.name: path.read_bytes() for path in (folder / FOLDER).iterdir()}
    shutil.rmtree(folder / FOLDER)
    places = {each.entry_id: each.index for each in log.lived.acknowledged()}
    logged = [each for each in log.plan.entries if each.entry_id in places]
    with open_log(folder, log.plan) as store:
        after = {path.name: path.read_bytes() for path in (folder / FOLDER).iterdir()}
        outcome.require(before == after, "the index that was made anew is another")
        judging = Sequencer(store, epoch=store.last_epoch + 1, tag=tag_of, clock=lambda: 0)
        for number in batch.rounds:
            again = [logged[(number + at) % len(logged)] for at in range(_AT_ONCE)]
            for each, verdict in zip(again, judging.judge(again), strict=True):
                known = (verdict.outcome, verdict.index) == (sequencing.Outcome.DUPLICATE, places[each.entry_id])
                outcome.require(known, f"entry {places[each.entry_id]} is {verdict.outcome} at {verdict.index}")
            [other] = judging.judge([replace(again[0], commitment=bytes(32))])
            outcome.require(other.outcome is sequencing.Outcome.CONFLICT, "other words under a number are no conflict")
            outcome.counts["old entries judged"] += _AT_ONCE
    remove(folder)
    return outcome
