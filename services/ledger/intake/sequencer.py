"""The commit path: judges entries against the log, gives them their indices and numbers, and makes them durable.

There is one sequencer per log. Admission (signatures, roles, open vaults) is done before; this trusts its input to be
admitted, never to be new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import starmap

from libs.transparency import leaf
from libs.transparency.acknowledgement import pack_statement
from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind, Leaf
from services.ledger.storage import frames
from services.ledger.storage.head import crosses_block
from services.ledger.storage.store import LogStore


class Outcome(Enum):
    """What the log knows about an entry that arrives."""

    NEW = "new"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An admitted entry."""

    kind: Kind
    issuer: bytes
    issuer_seq: int
    commitment: bytes
    vault_epoch: int
    vault_id: bytes
    body: bytes

    @property
    def entry_id(self) -> bytes:
        return entry_id(self.issuer, self.issuer_seq)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a candidate stands to the log."""

    candidate: Candidate
    outcome: Outcome
    index: int
    """For NEW the index it will get if all NEW ones are appended next; otherwise that of the entry already there."""
    logged_commitment: bytes
    """The commitment that is in the log, or will be: another than the candidate's only for a CONFLICT."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One frame that IS durable."""

    first: int
    size: int
    """Leaves in the log after it."""
    wall_ns: int
    root: bytes
    chain: bytes
    entries: Sequence[tuple[bytes, bytes]]
    """A statement's data and leaf data each, ready for `acknowledge`."""


class Sequencer:
    """Writes to a log under one epoch. Not thread safe: one caller at a time."""

    def __init__(
        self, store: LogStore, *, epoch: int, tag: Callable[[bytes, int], bytes], clock: Callable[[], int]
    ) -> None:
        """`tag(vault_id, vault_seq)` gives the 16 bytes that mark a vault's entry; `clock` nanoseconds since 1970."""
        if epoch <= store.last_epoch:
            raise ValueError(f"the epoch must be above {store.last_epoch}")
        self._store, self._epoch, self._tag, self._clock = store, epoch, tag, clock

    @property
    def epoch(self) -> int:
        return self._epoch

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Say which candidates are new, in order. Of two that name one entry the first is judged as if logged."""
        pending: dict[tuple[bytes, int], Verdict] = {}
        verdicts = []
        for candidate in candidates:
            verdict = self._judge(candidate, pending)
            if verdict.outcome is Outcome.NEW:
                pending[candidate.issuer, candidate.issuer_seq] = verdict
            verdicts.append(verdict)
        return verdicts

    def append(self, candidates: Sequence[Candidate], source: bytes, low: int, high: int) -> list[Commit]:
        """Append new entries that came in stream sequences `low` to `high`, and move the position to `high`.

        Each returned commit, one per frame, IS durable. There are several where the entries do not fit into one; only
        the last moves the position, so that a crash between them reads the messages again. With no candidates the
        position alone moves. Raises `ValueError` for candidates that `judge` does not call new, `SourceOutOfOrder`,
        or `LogBroken`, after which the process MUST exit.
        """
        named = {(candidate.issuer, candidate.issuer_seq) for candidate in candidates}
        if len(named) < len(candidates) or any(starmap(self._store.index.has, named)):
            raise ValueError("only new entries can be appended")
        groups = list(self._groups(candidates))
        commits = [self._commit(group, source, low, low - 1) for group in groups[:-1]]
        return [*commits, self._commit(groups[-1], source, low, high)]

    def _judge(self, candidate: Candidate, pending: dict[tuple[bytes, int], Verdict]) -> Verdict:
        earlier = pending.get((candidate.issuer, candidate.issuer_seq))
        if earlier is not None:
            same = _identity(earlier.candidate) == _identity(candidate)
            return _known(candidate, same, earlier.index, earlier.candidate.commitment)
        index = self._store.index.index_of(candidate.issuer, candidate.issuer_seq)
        if index is None:
            return Verdict(candidate, Outcome.NEW, self._store.head.size + len(pending), candidate.commitment)
        logged = self._store.reader.entry(index).leaf
        return _known(candidate, _identity(logged) == _identity(candidate), index, logged.commitment)

    def _groups(self, candidates: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
        """Cut at what one frame may hold; most often that is all."""
        block, size = self._store.geometry.block_leaves, self._store.head.size
        fits = len(candidates) <= frames.MAX_ROWS and frames.length_of(candidates) <= frames.MAX_SIZE
        if fits and not crosses_block(size, len(candidates), block):
            yield candidates
            return
        start, length = 0, 0
        for at, candidate in enumerate(candidates):
            grown = length + frames.ROW_SIZE + len(candidate.body)
            full = at - start == frames.MAX_ROWS or frames.HEADER_SIZE + grown + frames.TRAILER_SIZE > frames.MAX_SIZE
            if at > start and (full or (size + at) % block == 0):
                yield candidates[start:at]
                start, grown = at, frames.ROW_SIZE + len(candidate.body)
            length = grown
        if start < len(candidates):
            yield candidates[start:]

    def _commit(self, candidates: Sequence[Candidate], source: bytes, low: int, high: int) -> Commit:
        store = self._store
        first, numbers = store.head.size, self._vault_numbers(candidates)
        rows = [self._row(each, number) for each, number in zip(candidates, numbers, strict=True)]
        data, hashes, after = store.head.build(
            rows, epoch=self._epoch, source=source, source_low=low, source_high=high, wall_ns=self._clock()
        )
        offset = store.append(data, after)
        store.index.add(first, rows, offset, hashes, after.frame_hash)
        time_ms, epoch = after.wall_ns // 1_000_000, self._epoch
        entries = [
            (pack_statement(index, time_ms, number, each.issuer_seq, epoch, each.issuer, hashed), row.leaf_data)
            for index, (each, number, row, hashed) in enumerate(
                zip(candidates, numbers, rows, hashes, strict=True), first
            )
        ]
        return Commit(first, after.size, after.wall_ns, after.root(), after.chain, entries)

    def _vault_numbers(self, candidates: Sequence[Candidate]) -> list[int]:
        following: dict[bytes, int] = {}
        numbers = []
        for each in candidates:
            vault_id = each.vault_id
            number = following.get(vault_id) or self._store.index.next_vault_seq(vault_id)
            following[vault_id] = number + 1
            numbers.append(number)
        return numbers

    def _row(self, candidate: Candidate, vault_seq: int) -> frames.Row:
        tag = self._tag(candidate.vault_id, vault_seq)
        data = leaf.pack(candidate.kind, candidate.issuer_seq, candidate.issuer, tag, candidate.commitment)
        return frames.Row(data, candidate.vault_epoch, candidate.vault_id, candidate.body)


def _identity(entry: Candidate | Leaf) -> tuple[Kind, bytes, int, bytes]:
    return entry.kind, entry.issuer, entry.issuer_seq, entry.commitment


def _known(candidate: Candidate, same: bool, index: int, commitment: bytes) -> Verdict:
    return Verdict(candidate, Outcome.DUPLICATE if same else Outcome.CONFLICT, index, commitment)
