"""It is responsible for what a ledger says in the log of its own work, and whether keysets, tree and files bear it out.

None of it is needed to read a log. But it is what others may go by, so it must be true.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from libs.audit.log.entries import EntryWrong, PublicEntry, octets
from libs.audit.log.findings import Findings
from libs.audit.log.keysets import KeysetWrong, Writer
from libs.audit.log.notes import NoteUnreadable, read_checkpoint
from libs.audit.log.promises import Held
from libs.audit.log.walk import Located

WITNESS, LOGKEY, SEAL = 12, 20, 21
KINDS = frozenset({WITNESS, LOGKEY, SEAL})
_REMEMBERED = 1 << 16
"""How many frames back a head or seal may be from the entry about it."""
_LOGKEY_MEMBERS = {"epoch", "ack_key", "checkpoint_key"}
_SEAL_MEMBERS = {"number", "first", "count", "chain", "root", "footer_sha256"}


@dataclass(frozen=True, slots=True)
class SaidSeal:
    """A segment that a ledger says it sealed."""

    index: int
    footer: bytes
    ack_key: bytes | None
    """Of the ledger that says so: other members' files are cut elsewhere."""


@dataclass(slots=True)
class Announcements:
    """Grows with each frame and each entry of these kinds."""

    findings: Findings
    is_part: bool = False
    """Whether the log was not read from its first leaf: then whose keys are whose is unknown."""
    heads: list[tuple[Held, bytes | None]] = field(default_factory=list)
    """Heads that entries say were witnessed, each with the root that the tree has at its size, where that is known."""
    _seals: dict[tuple[int, int], list[SaidSeal]] = field(default_factory=dict)
    _ends: OrderedDict[int, tuple[bytes, bytes]] = field(default_factory=OrderedDict)
    """Root and chain head at the end of each of the last frames, which are all that heads and seals are about."""

    def follow(self, located: Located) -> None:
        """Take in that the log goes on by a frame."""
        header, frame = located.frame.header, located.frame
        self._ends[header.first + header.count] = frame.root_after, frame.chain_after
        if len(self._ends) > _REMEMBERED:
            self._ends.popitem(last=False)

    def take(self, located: Located, index: int, entry: PublicEntry, writer: Writer | None) -> None:
        """Take in an entry. Raises `EntryWrong` or `KeysetWrong`."""
        if entry.kind == LOGKEY:
            if not self.is_part:
                _judge_keys(entry.body, writer)
        elif entry.kind == SEAL:
            self._take_seal(index, entry.body, writer)
        else:
            self._take_head(located, index, entry.body)

    def seals_of(self, first: int, count: int) -> Sequence[SaidSeal]:
        """Return what was said of a segment's seal."""
        return self._seals.get((first, count), ())

    def _take_seal(self, index: int, body: Mapping[str, Any], writer: Writer | None) -> None:
        if body.keys() != _SEAL_MEMBERS:
            raise EntryWrong("a seal's entry has other members")
        first, count = _count(body["first"], 0), _count(body["count"], 1)
        if first + count > index:
            raise EntryWrong("it says of entries that come later that they are sealed")
        _count(body["number"], 0)
        said = octets(body["root"], 32), octets(body["chain"], 32)
        ack_key = None if writer is None else writer.ack_key
        footer = octets(body["footer_sha256"], 32)
        self._seals.setdefault((first, count), []).append(SaidSeal(index, footer, ack_key))
        if self._at(first + count, index) not in (None, said):
            raise EntryWrong("the segment that it says is sealed ends in another tree or chain")

    def _take_head(self, located: Located, index: int, body: Mapping[str, Any]) -> None:
        if body.keys() != {"checkpoint"} or not isinstance(body["checkpoint"], str):
            raise EntryWrong("a witnessed head's entry has other members")
        try:
            head = read_checkpoint(body["checkpoint"].encode())
        except NoteUnreadable as error:
            raise EntryWrong(f"it holds no signed head: {error}") from error
        if head.size > index:
            raise EntryWrong("it says of a tree that comes later that it was witnessed")
        known = self._at(head.size, index)
        self.heads.append((Held(located.file, located.offset, head), None if known is None else known[0]))

    def _at(self, size: int, index: int) -> tuple[bytes, bytes] | None:
        known = self._ends.get(size)
        if known is None and self._ends and size > next(iter(self._ends)):
            raise EntryWrong(f"it is about a tree of {size} leaves, and no commit ends there")
        if known is None:
            self.findings.remark(f"entry {index} is about a tree of {size} leaves, too far back to be held against it")
        return known


def _judge_keys(body: Mapping[str, Any], writer: Writer | None) -> None:
    if body.keys() != _LOGKEY_MEMBERS:
        raise EntryWrong("an entry about keys has other members")
    _count(body["epoch"], 1)
    said = octets(body["ack_key"], 32), octets(body["checkpoint_key"], 32)
    if writer is None or writer.checkpoint_key is None or said != (writer.ack_key, writer.checkpoint_key.public):
        raise KeysetWrong("it names other keys than its ledger's evidence claims")


def _count(value: object, least: int) -> int:
    if type(value) is not int or value < least:
        raise EntryWrong(f"a whole number from {least} is wanted")
    return value
