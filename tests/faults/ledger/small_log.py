"""A log that has lived a little, and what is still to be written to it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from libs.transparency.leaf import Kind
from services.ledger.intake.sequencer import Candidate
from tests.fakes.written_log import WrittenLog
from tests.faults.ledger.life import GEOMETRY, ONE_SEGMENT, Lived, Plan, run
from tests.faults.ledger.outcome import Outcome
from tests.faults.ledger.recorder import Recorder

_FIRST_FRAMES = 4
_GENERATIONS = 2


@dataclass(frozen=True, slots=True)
class SmallLog:
    """Eight entries in three segments; as many are to come. Copies of it are what faults are tried on."""

    folder: Path
    plan: Plan
    last: Plan
    """The same, and two frames more: every start of a ledger writes as many, and so each slot of its watermark."""
    lived: Lived

    @classmethod
    def make(cls, folder: Path, *, seals: bool = True) -> SmallLog:
        """Make one below a folder; without seals all of it is in one segment."""
        log = WrittenLog(folder / "log").create()
        frames = _frames(log)
        plan = Plan(
            ack_key=log.ledger.ack_key.private_bytes_raw(),
            checkpoint_key=log.ledger.checkpoint_key.private_bytes_raw(),
            frames=frames,
            generations=_GENERATIONS,
            geometry=GEOMETRY if seals else ONE_SEGMENT,
        )
        first = replace(plan, frames=frames[:_FIRST_FRAMES])
        last = replace(plan, frames=(*frames, (log.ledger.start(),), (log.ledger.start(),)))
        lived = run(log.folder, first)
        if lived.status:
            raise RuntimeError(f"a life without trouble ended with status {lived.status}")
        return cls(log.folder, plan, last, lived)

    def copy(self, name: str) -> Path:
        return shutil.copytree(self.folder, self.folder.parent / name)

    def recorder(self) -> Recorder:
        """One that has seen what this log has lived."""
        return Recorder(self.last, [self.lived])

    def finish(self, folder: Path, recorder: Recorder, outcome: Outcome, trial: str) -> None:
        """Live on without trouble; then everything must be there, and all that was ever promised hold."""
        lived = run(folder, self.last)
        recorder.take(lived)
        if lived.status:
            outcome.wrong.append(f"{trial}: the next start ends with status {lived.status}")
            return
        recorder.examine(folder, whole=True)
        outcome.wrong += [f"{trial}: {each}" for each in recorder.wrong]


def remove(folder: Path) -> None:
    """Forget a copy."""
    shutil.rmtree(folder)
    for said in folder.parent.glob(f"{folder.name}.said"):
        said.unlink()


def _frames(log: WrittenLog) -> tuple[tuple[Candidate, ...], ...]:
    ledger, router = log.ledger, log.router
    receipts = iter([router.introduce(), *(router.receipt(f"answer {number}") for number in range(11))])
    sizes = (1, 2, 3, 1, 2, 1, 2)
    frames: list[tuple[Candidate, ...]] = [(ledger.introduce(), ledger.start())]
    frames += [tuple(next(receipts) for _ in range(size)) for size in sizes]
    assert next(receipts, None) is None
    assert frames[0][0].kind is Kind.KEYSET
    return tuple(frames)
