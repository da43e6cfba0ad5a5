"""A log that has lived a little, and what is still to come to it."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind
from libs.transparency.merkle import leaf_hash
from services.ledger.intake.sequencer import Candidate
from tests.fakes.written_log import Author, WrittenLog
from tests.faults.ledger.life import GEOMETRY, ONE_SEGMENT, open_log, run
from tests.faults.ledger.outcome import Outcome
from tests.faults.ledger.plan import Plan, Stream
from tests.faults.ledger.recorder import Recorder
from tests.faults.ledger.told import Acknowledged, Lived

_FIRST_GROUPS = 4
_GENERATIONS = 2
_MORE_THAN_ARE_SAID_TOGETHER = 66


@dataclass(frozen=True, slots=True)
class SmallLog:
    """Eleven entries in three segments, and faults of others that are said, and owed; more is to come. Copies of it are
    what faults are tried on.
    """

    folder: Path
    plan: Plan
    last: Plan
    """The same, and two frames more: every start of a ledger writes as many, and so each slot of its watermark."""
    lived: Lived

    @classmethod
    def make(cls, folder: Path, *, seals: bool = True) -> SmallLog:
        """Make one below a folder; without seals all of it is in one segment."""
        geometry = GEOMETRY if seals else ONE_SEGMENT
        log = WrittenLog(folder / "log", geometry=geometry).create()
        stream = _stream(log)
        last = Plan(
            ack_key=log.ledger.ack_key.private_bytes_raw(),
            checkpoint_key=log.ledger.checkpoint_key.private_bytes_raw(),
            keyset=log.ledger.keyset,
            groups=tuple(stream.groups),
            entries=tuple(stream.entries),
            faults=tuple(stream.faults),
            generations=_GENERATIONS,
            geometry=geometry,
        )
        plan = replace(last, groups=last.groups[:-2])
        begun = _begun(log.folder, plan)
        lived = run(log.folder, replace(plan, groups=plan.groups[:_FIRST_GROUPS]))
        if lived.status:
            raise RuntimeError(f"a life without trouble ended with status {lived.status}")
        return cls(log.folder, plan, last, Lived(0, (*begun, *lived.told)))

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


def _stream(log: WrittenLog) -> Stream:
    """Let two frames be written, and what follows come: of the ledger, of a router, and of one that does wrong."""
    ledger, router, clumsy = log.ledger, log.router, Author("router", instance="2")
    frames = [ledger.introduce(), ledger.start()], [router.introduce(), clumsy.introduce()]
    log.append(*frames)
    stream = Stream(len(frames), entries=[each for frame in frames for each in frame])

    def answers(count: int) -> list[Candidate]:
        return [router.receipt("an answer") for _ in range(count)]

    def wrongs(count: int) -> list[Candidate]:
        return [clumsy.entry(Kind.POLICY, {"n": number}) for number in range(count)]

    first = answers(2)
    other_first = _other(router, first[-1])
    stream.add(stream.entered(router, *first), stream.refused(clumsy, *wrongs(1)))
    stream.add(stream.entered(router, *answers(1)), stream.lost(1))
    stream.add(stream.entered(router, *answers(3)), stream.refused(clumsy, *wrongs(1)))
    stream.add(stream.refused(clumsy, *wrongs(3)), stream.lost(2), stream.entered(router, *answers(1)))

    stream.add(stream.lost(3))
    stream.add(stream.entered(router, *answers(2)), stream.refused(clumsy, *wrongs(_MORE_THAN_ARE_SAID_TOGETHER)))
    stream.add(stream.twin(router, first[-1], other_first), stream.entered(router, *answers(1)))
    stream.add(stream.again(router, *first), stream.garbage(b"nobody's"))
    third = answers(5)
    other_third = _other(router, third[-1])
    stream.add(stream.entered(router, *third), stream.twin(router, third[-1], other_third), stream.lost(1))
    stream.add(stream.again(router, other_third), stream.entered(router, *answers(1)))

    for _ in range(2):
        stream.add(stream.entered(ledger, ledger.start()))
    return stream


def _other(author: Author, logged: Candidate) -> Candidate:
    """Another entry under the number of an author's last one. What its author writes next does not know of it."""
    twin = copy.copy(author)
    twin.take_back(logged)
    return twin.receipt("something else")


def _begun(folder: Path, plan: Plan) -> list[Acknowledged]:
    """What is in the log before its first life."""
    with open_log(folder, plan) as store:
        return [
            Acknowledged(index, entry_id(each.leaf.issuer, each.leaf.issuer_seq), leaf_hash(each.row.leaf_data))
            for index, each in enumerate(store.reader.entries(0, store.head.size))
        ]
