"""Where trials happen: in a process of their own, on a running ledger, or anywhere that they make for themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from tests.faults.ledger.apart import Apart, Trial
from tests.faults.ledger.ground import Ground
from tests.faults.ledger.outcome import Batch, Outcome

GroundTrial = Callable[[Ground, Batch], Awaitable[Outcome]]
OwnTrial = Callable[[Batch], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class Stage:
    """What a trial may use."""

    apart: Apart
    ground: Callable[[], AbstractAsyncContextManager[Ground]]


Run = Callable[[Stage, Batch], Awaitable[Outcome]]


def on_disk(trial: Trial) -> Run:
    """Of what forks."""

    async def run(stage: Stage, batch: Batch) -> Outcome:
        return await stage.apart.run(trial, batch)

    return run


def on_ground(trial: GroundTrial) -> Run:
    """Of a running ledger, whose log is held against everything that was seen afterwards."""

    async def run(stage: Stage, batch: Batch) -> Outcome:
        async with stage.ground() as ground:
            outcome = await trial(ground, batch)
            await ground.prove(outcome)
            return outcome

    return run


def by_itself(trial: OwnTrial) -> Run:
    """Of what makes its own surroundings."""

    async def run(stage: Stage, batch: Batch) -> Outcome:
        del stage
        return await trial(batch)

    return run
