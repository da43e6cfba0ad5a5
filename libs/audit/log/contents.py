"""It is responsible for what a log's entries say: who writes, whose numbers are whole, which holes are explained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from libs.audit.log import announcements
from libs.audit.log.announcements import Announcements
from libs.audit.log.entries import EntryWrong, PublicEntry, octets, read_entry
from libs.audit.log.findings import Findings, Status
from libs.audit.log.frames import PUBLIC
from libs.audit.log.keysets import KEYSET, KeysetWrong, Writer, read_keyset
from libs.audit.log.sequences import PATIENCE_NS, Hole, Sequences
from libs.audit.log.stages import PIPELINE, StageUnproven, judge_stage
from libs.audit.log.tenants import PublicVault, TenantVault
from libs.audit.log.walk import Located

_GAP, _CONFLICT, _QUARANTINE, _PRUNE = 17, 18, 19, 22
_ITS_OWN_DOING = ("KIND_NOT_ALLOWED", "BODY_NOT_OPENED", "ENTRY_MALFORMED", "SEQUENCE_TOO_FAR")
"""Why a number was refused, where nobody but its issuer can be the cause: it does not explain what is missing."""

OnEntry = Callable[[int, int, PublicEntry], None]
"""Given an entry's index, and when it was committed."""


@dataclass(slots=True)
class Contents:
    """Grows with each frame that is taken in."""

    origin: str
    findings: Findings
    announcements: Announcements
    tenant: TenantVault | None = None
    is_part: bool = False
    """Whether the log was not read from its first leaf: then who writes, and which numbers came before, is unknown."""
    on_entry: OnEntry | None = None
    """Told of each public entry, in order: for who judges more of it than its form."""
    writers: dict[bytes, Writer] = field(default_factory=dict)
    entries: int = 0
    wall_ns: int = 0
    prune_limit: int = 0
    """Before which entry the log allows bodies to be gone."""
    _sequences: Sequences = field(default_factory=Sequences)
    _public: PublicVault = field(default_factory=PublicVault)
    _explained: set[tuple[bytes, int]] = field(default_factory=set)
    """Numbers that a QUARANTINE entry says will not come."""
    _unknown: set[bytes] = field(default_factory=set)
    _unsigned_stages: int = 0

    @property
    def issuers(self) -> int:
        return len(self._sequences)

    def take(self, located: Located) -> None:
        """Take in a frame."""
        header, rows = located.frame.header, located.frame.rows
        self.entries += header.count
        self.wall_ns = header.wall_ns
        if PUBLIC in rows.vaults:
            self._take_singly(located)
        elif header.count and rows.issuers.count(rows.issuers[0]) == header.count:
            self._add_run(located, rows.issuers[0], 0, header.count)
        else:
            start = 0
            for issuer, run in groupby(rows.issuers):
                end = start + len(list(run))
                self._add_run(located, issuer, start, end)
                start = end
        self.announcements.follow(located)
        if self.tenant is not None:
            for number, (tag, vault) in enumerate(zip(rows.tags, rows.vaults, strict=True)):
                wrong = None if vault == PUBLIC else self.tenant.add(tag, vault)
                if wrong is not None:
                    self._report(Status.GAP, located, number, wrong)

    def conclude(self) -> None:
        """Say which numbers are missing, and which stages unsigned; for once the log was read to its end."""
        if self._unsigned_stages:
            told = "stages of pipelines are unsigned: that their jobs wrote them is the word of whoever admitted them"
            self.findings.remark(f"{self._unsigned_stages} {told}")
        if self.is_part:
            self.findings.remark("only a part of the log: whose numbers are whole, and who signed, cannot be told")
            return
        for issuer, number in self._sequences.contradicted():
            self.findings.add(
                Status.GAP, "seg", None, f"{_name(issuer)}: entry {number} is not the one that the next one names"
            )
        for hole in self._sequences.holes():
            for first, last in self._unexplained(hole):
                self._judge_hole(hole, first, last)

    def _judge_hole(self, hole: Hole, first: int, last: int) -> None:
        numbers = f"number {first}" if first == last else f"numbers {first} to {last}"
        missing = (self.wall_ns - hole.since_ns) / 10**9
        what = f"{_name(hole.issuer)}: {numbers} missing for {missing:.1f} s, and no entry says why"
        if self.wall_ns - hole.since_ns > PATIENCE_NS:
            self.findings.add(Status.GAP, "seg", None, what)
        else:
            self.findings.remark(f"{what}; it may still come")

    def _unexplained(self, hole: Hole) -> Iterator[tuple[int, int]]:
        explained = sorted(
            number for issuer, number in self._explained if issuer == hole.issuer and hole.first <= number <= hole.last
        )
        if explained:
            self.findings.remark(f"{_name(hole.issuer)}: {len(explained)} numbers were refused, as entries say")
        first = hole.first
        for number in [*explained, hole.last + 1]:
            if number > first:
                yield first, number - 1
            first = number + 1

    def _take_singly(self, located: Located) -> None:
        frame = located.frame
        rows, bounds = frame.rows, frame.bodies()
        for number, (begin, end) in enumerate(bounds):
            if rows.vaults[number] == PUBLIC:
                self._take_public(located, number, frame.data[begin:end])
            self._add_run(located, rows.issuers[number], number, number + 1)

    def _take_public(self, located: Located, number: int, body: bytes) -> None:
        rows = located.frame.rows
        kind, issuer, issuer_seq = rows.kinds[number], rows.issuers[number], rows.numbers[number]
        if not self.is_part and not self._public.add(rows.tags[number]):
            self._report(Status.DAMAGED, located, number, "its tag is not that of the public vault's next number")
        if rows.commitments[number] != rows.body_hashes[number]:
            self._report(Status.DAMAGED, located, number, "the entry in clear is not the one that its leaf commits to")
            return
        try:
            entry = read_entry(body, kind, issuer, issuer_seq)
            if not self.is_part and not self._sequences.names_previous(issuer, issuer_seq, entry.previous):
                self._report(Status.GAP, located, number, "the entry names another one before it than the log holds")
            self._understand(located, number, entry)
        except EntryWrong as error:
            self._report(Status.DAMAGED, located, number, str(error))
        except (KeysetWrong, StageUnproven) as error:
            self._report(Status.UNPROVEN, located, number, str(error))
        else:
            if self.on_entry is not None:
                self.on_entry(located.frame.header.first + number, located.frame.header.wall_ns, entry)

    def _understand(self, located: Located, number: int, entry: PublicEntry) -> None:
        if entry.kind == KEYSET:
            keyset = read_keyset(entry, self.origin)
            if entry.issuer_seq == 1:
                self._admit(keyset, located.frame.header.wall_ns)
            elif not self.is_part:
                self._renew(keyset)
        elif entry.kind == _QUARANTINE:
            self._explained.add(_named(entry.body))
            if (reason := entry.body.get("reason")) in _ITS_OWN_DOING:
                issuer, issuer_seq = _named(entry.body)
                told = f"{_name(issuer)} gave number {issuer_seq} to what no honest issuer writes: {reason}"
                self._report(Status.GAP, located, number, told)
        elif entry.kind == _CONFLICT:
            issuer, issuer_seq = _named(entry.body)
            self._report(Status.GAP, located, number, f"{_name(issuer)} gave number {issuer_seq} to two entries")
        elif entry.kind in announcements.KINDS:
            index = located.frame.header.first + number
            self.announcements.take(located, index, entry, self.writers.get(entry.issuer))
        elif entry.kind == _PRUNE:
            limit = entry.body.get("min_index")
            if type(limit) is not int or not 0 < limit <= located.frame.header.first + number:
                raise EntryWrong("it allows no entries before it to be pruned")
            self.prune_limit = max(self.prune_limit, limit)
        elif entry.kind == PIPELINE:
            writer = self.writers.get(entry.issuer)
            if not judge_stage(entry, None if writer is None else writer.log_key):
                self._unsigned_stages += 1
        elif entry.kind == _GAP:
            self.findings.remark(_gap(entry.body))

    def _admit(self, writer: Writer, wall_ns: int) -> None:
        self.writers[writer.issuer] = writer
        if writer.previous is not None:
            issuer, last = writer.previous
            closed = self.writers.get(issuer)
            if closed is not None and closed.spiffe_id == writer.spiffe_id:
                self._sequences.close(issuer, last, wall_ns)

    def _renew(self, renewed: Writer) -> None:
        """A keyset that is renewed changes nothing about who may write: it is held against the first."""
        first = self.writers.get(renewed.issuer)
        if first is None or first.spiffe_id != renewed.spiffe_id:
            raise KeysetWrong("it renews the keyset of another service, or of none")

    def _add_run(self, located: Located, issuer: bytes, start: int, end: int) -> None:
        rows = located.frame.rows
        writer = self.writers.get(issuer)
        if writer is None:
            if not self.is_part and issuer not in self._unknown:
                self._unknown.add(issuer)
                self._report(Status.UNPROVEN, located, start, f"{_name(issuer)} writes without a keyset")
        elif not writer.kinds.issuperset(rows.kinds[start:end]):
            self._report(Status.UNPROVEN, located, start, f"role {writer.role} writes no entries of such a kind")
        if self.is_part:
            return
        header = located.frame.header
        last = self._sequences.end_of(issuer)
        if last is not None and max(rows.numbers[start:end]) > last:
            what = f"{_name(issuer)} writes on, though its next start closed its sequence at {last}"
            self._report(Status.UNPROVEN, located, start, what)
        repeated = self._sequences.add_run(issuer, rows.numbers[start:end], rows.commitments[start:end], header.wall_ns)
        for number in repeated:
            self._report(Status.GAP, located, start, f"{_name(issuer)}: number {number} stands for a second entry")

    def _report(self, status: Status, located: Located, number: int, what: str) -> None:
        index = located.frame.header.first + number
        self.findings.add(status, located.file, located.offset, f"entry {index}: {what}")


def _named(body: Mapping[str, Any]) -> tuple[bytes, int]:
    number = body.get("issuer_seq")
    if type(number) is not int:
        raise EntryWrong("it names no number of an issuer")
    return octets(body.get("issuer"), 32), number


def _gap(body: Mapping[str, Any]) -> str:
    if "file" in body:
        digest = octets(body.get("sha256"), 32).hex()[:16]
        return f"what a ledger kept of others' faults was damaged and set aside, as an entry says: SHA-256 {digest}..."
    lost = f"{body.get('from')} to {body.get('to')}"
    return f"the stream lost messages {lost}, as an entry says; issuers send theirs again"


def _name(issuer: bytes) -> str:
    return f"issuer {issuer.hex()[:16]}"
