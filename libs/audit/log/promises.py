"""It is responsible for what was promised of a log: its signed tree heads, its watermark, and heads that others hold.

Each is held against the tree that was read. Two histories are proven by two signed heads that cannot both be true. One
head that the tree contradicts shows that the files are not the log's; an unsigned one, that it is itself not.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from libs.audit.log.findings import Findings, Status
from libs.audit.log.notes import Checkpoint, Key, NoteUnproven, NoteUnreadable, read_checkpoint
from libs.audit.log.records import Mark, read_records, read_watermark

CHECKPOINT = "checkpoint"
CHECKPOINT_WITNESSED = "checkpoint.witnessed"
CHECKPOINTS_LOG = "checkpoints.log"
RELEASED = (CHECKPOINT, CHECKPOINT_WITNESSED)
"""Files of the newest heads. Each head is in `checkpoints.log` before it is in one of these."""
WATERMARK = "wm"
_BESIDE = {"quarantine.log": b"TMQR", "owed.log": b"TMOW"}
BESIDE = tuple(_BESIDE)
"""Files of what was refused, and of what the ledger has yet to say: they grow without a bound."""


@dataclass(frozen=True, slots=True)
class Held:
    """A signed tree head, and where it is from."""

    file: str
    offset: int | None
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Tree:
    """What was read."""

    size: int
    is_whole: bool
    """Whether it was read to its end: damage may have kept the rest away."""
    roots: Mapping[int, bytes]
    """At each size that was promised, as far as it was reached."""
    chains: Mapping[int, bytes]


@dataclass(slots=True)
class Promises:
    """Read before the tree, so that a log that grows meanwhile cannot seem shorter than it promised."""

    origin: str
    findings: Findings
    outside: Sequence[Held] = ()
    """Heads that somebody else holds."""
    logged: list[Held] = field(default_factory=list)
    """Heads that the log itself holds: each was witnessed, as an entry says."""
    newest: Checkpoint | None = None
    """The largest head that is proven and true."""
    contradictions: list[tuple[Checkpoint, Checkpoint | None]] = field(default_factory=list)
    """Heads that are proven and not true of this tree, each with one of the same size that is, where there is one."""
    _log: bytes = b""
    _released: list[Held] = field(default_factory=list)
    _mark: Mark | None = None
    _signed: dict[int, bytes] = field(default_factory=dict)
    """Size and root of the log's own heads, whoever signed them."""
    _proven: dict[int, Checkpoint] = field(default_factory=dict)
    """By size: heads that are proven and, as far as the tree tells, true."""

    def read(
        self,
        released: Mapping[str, bytes],
        checkpoints_log: bytes,
        watermark: bytes,
    ) -> None:
        """Take in the folder's own. `released` are notes by their file's name, and MUST be older than the log."""
        self._mark = read_watermark(watermark, WATERMARK, self.findings)
        last = 0
        for offset, record in read_records(io.BytesIO(checkpoints_log), b"TMCK", CHECKPOINTS_LOG, self.findings):
            last = max(self._read_signed(offset, record, last), last)
        self._log = checkpoints_log
        for name, note in released.items():
            self._read_released(name, note)

    def read_beside(self, name: str, stored: BinaryIO) -> None:
        """Take in what is kept of refusals or of what is owed, by its file's name.

        Only that each record is whole: what was refused is no part of the log, and what is owed not yet.
        """
        for _ in read_records(stored, _BESIDE[name], name, self.findings):
            pass

    @property
    def sizes(self) -> Iterator[int]:
        """Where the tree's root is wanted."""
        yield from self._signed
        yield from (held.checkpoint.size for held in (*self.outside, *self._released))
        if self._mark is not None:
            yield self._mark.size

    def judge(self, tree: Tree, keys: Sequence[Key], end: tuple[str, int]) -> None:
        """Hold everything against the tree that was read, which ends at `end`."""
        false = [held for held in (*self._own(), *self.logged, *self.outside) if not self._bears_out(held, tree, keys)]
        for held in false:
            self._accuse(held)
        self._judge_mark(tree)
        # What anybody may have written promises nothing; in the log's own file it does, whoever signed it.
        floors = [(held.checkpoint.size, held.file) for held in self.outside if held.checkpoint.size in self._proven]
        floors += [(size, CHECKPOINTS_LOG) for size in self._signed]
        if self._mark is not None:
            floors.append((self._mark.size, WATERMARK))
        size, by = max(floors, default=(0, ""))
        if size > tree.size and tree.is_whole:
            self.findings.add(Status.ROLLED_BACK, *end, f"{tree.size} leaves are left, but {by} promises {size}")

    def _own(self) -> Iterator[Held]:
        for offset, record in read_records(io.BytesIO(self._log), b"TMCK", CHECKPOINTS_LOG, Findings()):
            try:
                yield Held(CHECKPOINTS_LOG, offset, read_checkpoint(record))
            except NoteUnreadable:
                continue  # It was found when it was read first.
        yield from self._released

    def _read_signed(self, offset: int, record: bytes, last: int) -> int:
        """Returns the record's size."""
        try:
            checkpoint = read_checkpoint(record)
        except NoteUnreadable as error:
            self.findings.add(Status.DAMAGED, CHECKPOINTS_LOG, offset, str(error))
            return last
        # A witness's signature may come under an older head again; a new head may not be smaller than the last.
        if checkpoint.size < last and checkpoint.size not in self._signed:
            what = f"a tree of {checkpoint.size} leaves was signed after one of {last}"
            self.findings.add(Status.DAMAGED, CHECKPOINTS_LOG, offset, what)
        self._signed.setdefault(checkpoint.size, checkpoint.root)
        return checkpoint.size

    def _read_released(self, name: str, note: bytes) -> None:
        try:
            head = read_checkpoint(note)
        except NoteUnreadable as error:
            self.findings.add(Status.DAMAGED, name, 0, str(error))
            return
        if self._signed.get(head.size) != head.root:
            self.findings.add(Status.DAMAGED, name, 0, f"{CHECKPOINTS_LOG} does not hold it, though it was first")
        self._released.append(Held(name, 0, head))

    def _bears_out(self, held: Held, tree: Tree, keys: Sequence[Key]) -> bool:
        """Returns False for a head that is proven and not true of the tree, or of what else was proven."""
        checkpoint, root = held.checkpoint, tree.roots.get(held.checkpoint.size)
        if not self._is_proven(held, keys):
            if root not in (None, checkpoint.root) and checkpoint.origin == self.origin:
                status = Status.UNPROVEN if held in self.outside else Status.DAMAGED
                self.findings.add(status, held.file, held.offset, _another(checkpoint))
            return True
        if root not in (None, checkpoint.root):
            return False
        if self._proven.setdefault(checkpoint.size, checkpoint).root != checkpoint.root:
            return False
        if root is not None and (self.newest is None or checkpoint.size >= self.newest.size):
            self.newest = checkpoint
        return True

    def _accuse(self, held: Held) -> None:
        """It takes two signed heads to prove two histories: files that were exchanged under one prove none."""
        head, newest = held.checkpoint, self.newest
        other = self._proven.get(head.size)
        if other is None and (newest is None or newest.size < head.size):
            what = f"{_another(head)}; the log is not what it signed"
            self.findings.add(Status.ROLLED_BACK, held.file, held.offset, what)
            return
        self.findings.add(Status.DIVERGED, held.file, held.offset, f"{_another(head)}, yet the log signed both")
        if all(head.text != known.text for known, _ in self.contradictions):
            self.contradictions.append((head, other))

    def _is_proven(self, held: Held, keys: Sequence[Key]) -> bool:
        if held.checkpoint.origin != self.origin:
            what = f"it is of {held.checkpoint.origin}, not of {self.origin}"
            self.findings.add(Status.UNPROVEN, held.file, held.offset, what)
            return False
        try:
            held.checkpoint.verify(keys)
        except NoteUnproven as error:
            self.findings.add(Status.UNPROVEN, held.file, held.offset, str(error))
            return False
        return True

    def _judge_mark(self, tree: Tree) -> None:
        mark = self._mark
        root = None if mark is None else tree.roots.get(mark.size)
        if mark is None or root is None:
            return
        if root != mark.root or tree.chains.get(mark.size, mark.chain) != mark.chain:
            what = f"the first {mark.size} leaves are not those that were durable once"
            self.findings.add(Status.ROLLED_BACK, WATERMARK, None, what)


def _another(checkpoint: Checkpoint) -> str:
    return f"its {checkpoint.size} leaves are not the log's: root {checkpoint.root.hex()[:16]}"
