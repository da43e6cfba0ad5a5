"""2: killed at each of its own writes: commit, checkpoint, seal, quarantine, keyring. 3: told EIO at each of them."""

from __future__ import annotations

import errno
import signal
from collections.abc import Sequence
from dataclasses import replace

from tests.faults.ledger.disk import Kind, Met, SyncedAgain, Trouble
from tests.faults.ledger.life import run
from tests.faults.ledger.outcome import Batch, Outcome
from tests.faults.ledger.small_log import SmallLog, remove
from tests.faults.ledger.told import Lived

_LONGEST_CHAIN = 3


def deaths(batch: Batch) -> Outcome:
    """Die at a step; then, in later rounds, again and again in the lives that follow."""
    outcome, log = Outcome(), SmallLog.make(batch.folder)
    places = _places(log, batch, [Trouble(Kind.DEATH), Trouble(Kind.TORN)])
    for number in batch.rounds:
        chance = batch.chance(number)
        length = 1 if number < len(places) else chance.randint(2, _LONGEST_CHAIN)
        chain = [places[number % len(places)], *chance.choices(places, k=length - 1)]
        folder, recorder = log.copy(f"{number}"), log.recorder()
        for trouble in chain:
            lived = run(folder, log.plan, trouble)
            recorder.take(lived)
            # A later life may have fewer steps than the one before: it does what is left.
            outcome.require(lived.status in (-signal.SIGKILL, 0), f"{trouble}: it ended with status {lived.status}")
            outcome.counts[f"deaths at {_met(lived)}"] += lived.status != 0
        log.finish(folder, recorder, outcome, f"{chain}")
        remove(folder)
    return outcome


def input_output_errors(batch: Batch) -> Outcome:
    """Fail at a step; a failed sync may have lost what it was to make durable."""
    outcome, log = Outcome(), SmallLog.make(batch.folder)
    places = _places(log, batch, [Trouble(kind, number=errno.EIO) for kind in (Kind.ERROR, Kind.DROPPED)])
    for number in batch.rounds:
        trouble = places[number % len(places)]
        folder, recorder = log.copy(f"{number}"), log.recorder()
        lived = run(folder, log.plan, trouble)
        recorder.take(lived)
        outcome.counts[f"errors at {_met(lived)}"] += 1
        outcome.wrong += [f"{trouble}: {each}" for each in after_the_error(lived)]
        log.finish(folder, recorder, outcome, f"{trouble}")
        remove(folder)
    return outcome


def after_the_error(lived: Lived) -> Sequence[str]:
    """What a process did that had been told that its disk failed, and must not have done."""
    wrong = []
    if lived.status <= 0:
        wrong.append(f"it ended with status {lived.status}")
    met = next((at for at, each in enumerate(lived.told) if isinstance(each, Met)), len(lived.told))
    for each in lived.told[met + 1 :]:
        if isinstance(each, SyncedAgain):
            wrong.append(f"{each.name} was tried again")
        elif not isinstance(each, Met):
            wrong.append(f"it went on and told of {type(each).__name__}")
    return wrong


def _places(log: SmallLog, batch: Batch, troubles: Sequence[Trouble]) -> list[Trouble]:
    """Every step of a life, with each trouble, in the order that the seed gives."""
    folder = log.copy("whole")
    steps = run(folder, log.plan).steps
    remove(folder)
    places = [replace(trouble, step=step) for step in range(1, steps + 1) for trouble in troubles]
    return batch.in_any_order(places)


def _met(lived: Lived) -> str:
    return next((each.name for each in lived.told if isinstance(each, Met)), "nothing")
