"""It is responsible for one commit: judge what came, keep what is refused, make the rest durable, then say so.

Nothing is acknowledged before it is durable, neither to an issuer nor to the broker. What the ledger itself has to say
about a message it owes, durably, before the log steps over that message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog

from libs.events.consume import StreamGap
from libs.transparency.acknowledgement import Acknowledgement
from services.ledger.growth import Growth
from services.ledger.holding import Holding
from services.ledger.intake.acknowledging import Acknowledgements
from services.ledger.intake.admission import Admission, Judged
from services.ledger.intake.arrivals import Arrival, Event
from services.ledger.intake.faults import Saying, contradicted, lost, quarantined
from services.ledger.intake.position import Start
from services.ledger.intake.rejections import Reason, Refusal, Rejections
from services.ledger.intake.sequencer import Commit, Outcome, Sequencer, Verdict
from services.ledger.storage.breaking import ending_when_broken

_POSITION_SECONDS = 1.0

log = structlog.get_logger()

T = TypeVar("T")


class Debts(Protocol):
    """Where it is kept what the ledger has to say of others' faults, until it is said."""

    def add(self, sayings: Sequence[Saying]) -> None:
        """It MUST be durable when this returns."""
        ...

    def wake(self) -> None:
        """Something was added."""
        ...


@dataclass(frozen=True, slots=True)
class _Decided:
    """What is to be written."""

    new: Sequence[Verdict]
    known: Sequence[Verdict]
    refusals: Sequence[Refusal]
    sayings: Sequence[Saying]
    """What the ledger has to say of it."""


@dataclass(frozen=True, slots=True)
class _Written:
    """What IS durable here."""

    commits: Sequence[Commit]
    acknowledgements: Sequence[Acknowledgement]


@dataclass(frozen=True, slots=True)
class Taken:
    """How far a stream IS in the log, and counts."""

    source: bytes
    sequence: int
    """Of its last message."""
    size: int
    """The leaves of the log by then."""


class Committing:
    """The one writer of a log."""

    def __init__(
        self,
        *,
        admission: Admission,
        sequencer: Sequencer,
        rejections: Rejections,
        acknowledgements: Acknowledgements,
        owed: Debts,
        issuer: bytes,
        growth: Growth,
        holding: Holding,
        thread: ThreadPoolExecutor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`issuer` is the ledger itself. `thread` has exactly one worker: what judges and writes runs there, one thing
        at a time. `clock` gives seconds that never go back.
        """
        self._admission = admission
        self._sequencer = sequencer
        self._rejections = rejections
        self._acknowledgements = acknowledgements
        self._owed = owed
        self._issuer = issuer
        self._growth = growth
        self._holding = holding
        self._thread = thread
        self._clock = clock
        self._source = b""
        self._low = 0
        self._positioned_at = clock()
        self._taken: Taken | None = None

    @property
    def taken(self) -> Taken | None:
        """How far the stream that is read now was taken in, by this process."""
        return self._taken

    def begin(self, start: Start) -> None:
        """Go on from a place in the stream."""
        self._source, self._low = start.source, start.after + 1
        self._taken = None

    async def commit(self, events: Sequence[Event]) -> None:
        """Take in what came, in stream order. When this returns, all of it is durable in the log or refused.

        Durable is what enough members of the log hold. Until then nobody is told of it, and nothing more is taken in.
        Raises what `Holding.require_writer` does.
        """
        # A writer that was stopped for a while finds a stream that another has read, and purged, and vaults that it has
        # not heard of. It would owe the log evidence of faults that nobody committed.
        self._holding.require_writer()
        last = events[-1]
        high = last.last if isinstance(last, StreamGap) else last.sequence
        decided, written = await self._in_thread(lambda: self._decide_and_write(events, high))
        if decided.sayings:
            self._owed.wake()
        if written.commits:
            await self._holding.held()
            newest = written.commits[-1]
            self._growth.reach(newest.size, newest.root)
            self._taken = Taken(self._source, high, newest.size)
        self._acknowledgements.deliver(written.acknowledgements)
        self._acknowledgements.refuse(decided.refusals)

    def _decide_and_write(self, events: Sequence[Event], high: int) -> tuple[_Decided, _Written]:
        """Judge and write in one go: each change of threads costs time."""
        decided = self._decide(events)
        return decided, self._write(decided, high)

    def _decide(self, events: Sequence[Event]) -> _Decided:
        gaps = [event for event in events if isinstance(event, StreamGap)]
        arrivals = [event for event in events if isinstance(event, Arrival)]
        judged = Judged()
        for arrival in arrivals:
            if isinstance(arrival.batch, Refusal):
                judged.refusals.append(arrival.batch)
            else:
                one = self._admission.judge(arrival.message, arrival.batch, arrival.vaults, arrival.opens)
                judged.candidates.extend(one.candidates)
                judged.refusals.extend(one.refusals)
        verdicts = self._sequencer.judge(judged.candidates)
        of = {outcome: [each for each in verdicts if each.outcome is outcome] for outcome in Outcome}
        sequence = arrivals[-1].sequence if arrivals else 0
        conflicts = of[Outcome.CONFLICT]
        refusals = judged.refusals + [_conflicting(verdict, sequence) for verdict in conflicts]
        sayings = self._sayings(gaps, conflicts, refusals)
        return _Decided(of[Outcome.NEW], of[Outcome.DUPLICATE], refusals, sayings)

    def _sayings(
        self, gaps: Sequence[StreamGap], conflicts: Sequence[Verdict], refusals: Sequence[Refusal]
    ) -> list[Saying]:
        """Return what is to be said in the log of what is lost and refused, and tell the operator of it."""
        for gap in gaps:
            log.error("the stream has lost messages", first=gap.first, last=gap.last)
        # Whoever has the bytes can send them again: each number's conflict is said once.
        new: dict[tuple[bytes, int], Verdict] = {}
        for verdict in conflicts:
            number = verdict.candidate.issuer, verdict.candidate.issuer_seq
            if not self._rejections.has_conflict(*number):
                new.setdefault(number, verdict)
        holes: dict[tuple[bytes, int], Refusal] = {}
        for refusal in refusals:
            log.error(
                "refused",
                reason=refusal.reason.name,
                detail=refusal.detail,
                issuer=refusal.issuer.hex(),
                issuer_seq=refusal.issuer_seq,
                stream_seq=refusal.stream_seq,
            )
            if self._leaves_a_hole(refusal):
                holes.setdefault((refusal.issuer, refusal.issuer_seq), refusal)
        return [
            *(lost(self._source, gap) for gap in gaps),
            *(contradicted(verdict) for verdict in new.values()),
            *(quarantined(refusal) for refusal in holes.values()),
        ]

    def _leaves_a_hole(self, refusal: Refusal) -> bool:
        """Whether a reader of the log would miss this number and was not told yet. Of unknown issuers nobody misses
        one, and the ledger's own refused entries must not beget others.
        """
        if refusal.reason is Reason.CONFLICT or not refusal.reason.is_proven or refusal.issuer == self._issuer:
            return False
        if self._rejections.has(refusal.issuer, refusal.issuer_seq):
            return False
        return self._admission.writer(refusal.issuer) is not None

    def _write(self, decided: _Decided, high: int) -> _Written:
        with ending_when_broken():
            # Before the rejections: what they know was said already.
            self._owed.add(decided.sayings)
            self._rejections.keep(decided.refusals)
            commits: Sequence[Commit] = ()
            now = self._clock()
            # With nothing new the position alone may lag: what it misses is read again after a restart, and known.
            if decided.new or decided.sayings or now - self._positioned_at >= _POSITION_SECONDS:
                candidates = [verdict.candidate for verdict in decided.new]
                commits = self._sequencer.append(candidates, self._source, self._low, high)
                self._low, self._positioned_at = high + 1, now
        acknowledgements = [each for commit in commits for each in self._acknowledgements.sign(commit)]
        again = [
            self._acknowledgements.issue_again(verdict.index)
            for verdict in decided.known
            if self._acknowledgements.follows(verdict.candidate.issuer)
        ]
        return _Written(commits, acknowledgements + again)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Have it done to its end, also where whoever waits is cancelled: the files that it writes are closed then."""
        waiting = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            await asyncio.wait((waiting,))
            raise


def _conflicting(verdict: Verdict, stream_seq: int) -> Refusal:
    refused = verdict.candidate
    detail = f"entry {verdict.index} has this number and says something else"
    return Refusal(stream_seq, Reason.CONFLICT, detail, refused.body, refused.issuer, refused.issuer_seq)
