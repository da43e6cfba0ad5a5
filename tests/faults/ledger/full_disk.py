"""4: the disk is full, or a file as large as it may be, from some write on; later there is room again."""

from __future__ import annotations

import errno

from tests.faults.ledger.deaths import after_the_error
from tests.faults.ledger.disk import WRITES, Kind, Met, Trouble
from tests.faults.ledger.life import run
from tests.faults.ledger.outcome import Batch, Outcome
from tests.faults.ledger.small_log import SmallLog, remove

_FOR_EVER = 10**6
_STARTS_WITHOUT_ROOM = 2


def full_disks(batch: Batch) -> Outcome:
    """Run out of room at any step, in the middle of a write or before it, and start without room again and again."""
    outcome, log = Outcome(), SmallLog.make(batch.folder)
    folder = log.copy("whole")
    steps = run(folder, log.plan).steps
    remove(folder)
    for number in batch.rounds:
        chance = batch.chance(number)
        kind = chance.choice((Kind.SHORT, Kind.ERROR))
        error = chance.choice((errno.ENOSPC, errno.EFBIG))
        trouble = Trouble(kind, chance.randint(1, steps), _FOR_EVER, error)
        folder, recorder = log.copy(f"{number}"), log.recorder()
        lived = run(folder, log.plan, trouble)
        recorder.take(lived)
        outcome.wrong += [f"{trouble}: {each}" for each in after_the_error(lived)]
        for _ in range(_STARTS_WITHOUT_ROOM):
            recorder.take(run(folder, log.plan, Trouble(Kind.ERROR, chance.randint(1, 9), _FOR_EVER, error)))
        outcome.counts[f"times full with {errno.errorcode[error]}"] += 1
        log.finish(folder, recorder, outcome, f"{trouble}")
        remove(folder)
        _write_in_pieces(log, chance.randint(1, steps), outcome)
    return outcome


def _write_in_pieces(log: SmallLog, step: int, outcome: Outcome) -> None:
    """A write that is shorter than it was to be, and no error: the rest follows, and nobody notices."""
    folder, recorder = log.copy("pieces"), log.recorder()
    lived = run(folder, log.plan, Trouble(Kind.SHORT, step, 1, errno.ENOSPC))
    recorder.take(lived)
    was_a_write = any(isinstance(each, Met) and each.name in WRITES for each in lived.told)
    outcome.counts["short writes"] += was_a_write
    log.finish(folder, recorder, outcome, f"a short write at step {step}")
    remove(folder)
