"""It is responsible for two views of one log: whether both can be true, and the evidence where they cannot."""

from __future__ import annotations

from dataclasses import dataclass, replace

from libs.audit.log.findings import Status
from libs.audit.log.notes import Checkpoint, Key, NoteUnproven
from libs.audit.log.reading import Depth, Reading
from libs.audit.log.split_view import SplitView
from libs.audit.log.tree import consistency_ranges
from services.cli.ledger.subject import Asked, Subject


@dataclass(frozen=True, slots=True)
class Examined:
    """A log's reading, and evidence of a second history where that can be proven."""

    reading: Reading
    evidence: SplitView | None


def examine(subject: Subject, asked: Asked) -> Examined:
    """Read a log and hold it against what is known of it."""
    reading = subject.read(asked)
    return Examined(reading, _evidence(subject, reading))


def compare(subject: Subject, other: Subject, name: str, asked: Asked) -> Examined:
    """The same, and hold it against another copy or view of the log."""
    brief = Asked(depth=Depth.TREE, keys=asked.keys)
    theirs = other.read(brief)
    head = theirs.newest
    sizes = asked.sizes if head is None else asked.sizes | {head.size}
    reading = subject.read(replace(asked, sizes=sizes))
    findings = reading.findings
    if head is None:
        findings.add(Status.UNPROVEN, name, None, "no signed head of it holds: there is nothing to compare")
        return Examined(reading, _evidence(subject, reading))
    if theirs.findings.worst is not Status.SOUND:
        findings.remark(f"{name} is itself {theirs.findings.worst.name.lower()}: verify it, too")
    mine = reading.newest
    # Without a signed head the tree is all that there is to hold against the other's.
    size, root = (reading.size, reading.root) if mine is None else (mine.size, mine.root)
    here: bytes | None
    there: bytes | None
    if size < head.size:
        here, there = root, (other.read(replace(brief, sizes=frozenset({size}))).roots or {}).get(size)
    else:
        here, there = (reading.roots or {}).get(head.size), head.root
    if here is None or there is None:
        what = f"one of the two does not begin early enough to show its tree of {min(size, head.size)} leaves"
        findings.add(Status.UNPROVEN, name, None, f"{what}: there is nothing to compare")
        return Examined(reading, _evidence(subject, reading))
    if here == there:
        findings.remark(f"{name} is the same log, signed up to {head.size}")
        return Examined(reading, _evidence(subject, reading))
    keys = (*reading.keys, *asked.keys)
    try:
        head.verify(keys)
    except NoteUnproven as error:
        findings.add(Status.UNPROVEN, name, None, f"it has another history, but {error}")
        return Examined(reading, _evidence(subject, reading))
    if mine is None:
        what = f"the log signed another history up to {head.size} there, and none that holds here"
        findings.add(Status.ROLLED_BACK, name, None, what)
        return Examined(reading, None)
    findings.add(Status.DIVERGED, name, None, f"the log signed another history up to {head.size} there")
    view = _View(mine, head, there, other) if size < head.size else _View(head, mine, here, subject)
    return Examined(replace(reading, contradictions=((head, mine),)), view.split(keys))


@dataclass(frozen=True, slots=True)
class _View:
    """Two heads, and what the tree that has the larger one has at the smaller one's size."""

    smaller: Checkpoint
    larger: Checkpoint
    root: bytes | None
    subject: Subject
    """Where the larger tree is."""

    def split(self, keys: tuple[Key, ...]) -> SplitView:
        signers = (self.smaller.verify(keys), self.larger.verify(keys))
        unique = tuple(dict.fromkeys(signers))
        if self.smaller.size == self.larger.size:
            return SplitView(self.smaller, self.larger, unique)
        ranges = consistency_ranges(self.smaller.size, self.larger.size)
        proof = self.subject.roots_over(self.larger.origin, ranges)
        return SplitView(self.smaller, self.larger, unique, self.root, proof)


def _evidence(subject: Subject, reading: Reading) -> SplitView | None:
    """Return what proves the first contradiction. A head beyond what is signed here has no tree to prove it by."""
    for head, other in reading.contradictions:
        larger = other or reading.newest
        if larger is not None and larger.size >= head.size:
            return _View(head, larger, (reading.roots or {}).get(head.size), subject).split(reading.keys)
    return None
