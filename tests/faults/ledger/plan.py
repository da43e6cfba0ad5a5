"""What a log's lives are to take in from its stream, the same however often they are begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from libs.events.batches import encode_batch
from libs.events.consume import StreamGap, StreamMessage
from libs.events.keyset import Keyset
from libs.events.records import Record, RecordHeader
from libs.transparency.leaf import Kind
from services.ledger.intake.faults import Saying
from services.ledger.intake.sequencer import Candidate
from services.ledger.storage.segments import Geometry
from tests.fakes.written_log import SOURCE, Author

Came = StreamMessage | StreamGap
_TIME_MS = 1_800_000_000_000


@dataclass(frozen=True, slots=True)
class Fault:
    """What the log must say once it has stepped over a place in its stream."""

    sequence: int
    said: Saying


@dataclass(frozen=True, slots=True)
class Plan:
    """What a life is to write, and what it must say of others."""

    ack_key: bytes
    checkpoint_key: bytes
    keyset: Keyset
    """What every start of the ledger shows of itself."""
    groups: tuple[tuple[Came, ...], ...]
    """Each is committed at once."""
    entries: tuple[Candidate, ...]
    """All that must be in the log in the end, in any order."""
    faults: tuple[Fault, ...]
    generations: int
    """How often the keyring is rewritten in a life."""
    geometry: Geometry


@dataclass(slots=True)
class Stream:
    """Makes what comes, and knows what is wrong with it."""

    sequence: int
    """The last one that was taken."""
    groups: list[tuple[Came, ...]] = field(default_factory=list)
    entries: list[Candidate] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def add(self, *came: Came) -> None:
        """Let this be committed at once."""
        self.groups.append(came)

    def entered(self, author: Author, *candidates: Candidate) -> StreamMessage:
        """A message that is taken."""
        self.entries += candidates
        return self.again(author, *candidates)

    def again(self, author: Author, *candidates: Candidate) -> StreamMessage:
        """A message of which nothing is new."""
        records = [record_of(each) for each in candidates]
        return self.garbage(encode_batch(author.id, candidates[0].issuer_seq, records, author.key))

    def garbage(self, data: bytes) -> StreamMessage:
        """A message as it is. Of one that nobody signed nothing is said."""
        self.sequence += 1
        return StreamMessage(self.sequence, data, _TIME_MS)

    def refused(self, author: Author, *candidates: Candidate) -> StreamMessage:
        """A message of kinds that its author may not write."""
        message = self.again(author, *candidates)
        for each in candidates:
            names: dict[str, str | int] = {
                "issuer": each.issuer.hex(),
                "issuer_seq": each.issuer_seq,
                "reason": "KIND_NOT_ALLOWED",
            }
            record = sha256(record_of(each).encode()).hexdigest()
            self._must_say(Kind.QUARANTINE, {**names, "record_sha256": record})
        return message

    def twin(self, author: Author, logged: Candidate, other: Candidate) -> StreamMessage:
        """Another entry under a number that is taken."""
        message = self.again(author, other)
        names: dict[str, str | int] = {"issuer": other.issuer.hex(), "issuer_seq": other.issuer_seq}
        found = {"logged": logged.commitment.hex(), "refused": other.commitment.hex()}
        self._must_say(Kind.CONFLICT, {**names, **found})
        return message

    def lost(self, count: int) -> StreamGap:
        """So many messages never come."""
        gap = StreamGap(self.sequence + 1, self.sequence + count)
        self.sequence += count
        self._must_say(Kind.GAP, {"source": SOURCE.hex(), "from": gap.first, "to": gap.last})
        return gap

    def _must_say(self, kind: Kind, body: dict[str, str | int]) -> None:
        self.faults.append(Fault(self.sequence, Saying(kind, body)))


def record_of(candidate: Candidate) -> Record:
    """A record as its author sealed it."""
    header = RecordHeader(
        len(candidate.body), candidate.kind, candidate.vault_epoch, candidate.vault_id, candidate.commitment
    )
    return Record(header, candidate.body)


def end_of(group: Sequence[Came]) -> int:
    """The last place in the stream that a group takes."""
    last = group[-1]
    return last.last if isinstance(last, StreamGap) else last.sequence
