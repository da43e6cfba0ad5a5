"""It is responsible for what the log refuses: each refusal kept with its reason, and told to the issuer it is about.

Only what is proven to come from an issuer is told to it: a forged message must not make an issuer give up an entry.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import structlog

from libs.events.records import SALT_SIZE, parse_entry
from libs.transparency.leaf import Kind
from services.ledger.storage import records_log
from services.ledger.storage.reading import StoredEntry

NAME = "quarantine.log"
MAX_UNPROVEN_BYTES = 256 * 1024 * 1024
"""Beyond this size the file takes only what its issuer has signed: a flood must not fill the disk."""

RECALLED = (Kind.QUARANTINE, Kind.CONFLICT)
"""Kinds of the entries that say which numbers were refused."""
_REMEMBERED = 65_536
_SEQUENCE_AT = 32
_RECORD_AT = 40

log = structlog.get_logger()


class Reason(IntEnum):
    """Why something was refused. Names are told to issuers, numbers are stored: both are permanent."""

    MESSAGE_MALFORMED = 1
    ISSUER_UNKNOWN = 2
    SIGNATURE_INVALID = 3
    KEYSET_MALFORMED = 4
    KEYSET_REFUSED = 5
    SEQUENCE_CLOSED = 6
    SEQUENCE_TOO_FAR = 7
    KIND_NOT_ALLOWED = 8
    VAULT_UNKNOWN = 9
    BODY_NOT_OPENED = 10
    ENTRY_MALFORMED = 11
    POLICY_REFUSED = 12
    CONFLICT = 13
    VAULT_ERASED = 14
    KEYSET_NOT_RENEWED = 15
    STAGE_NOT_SIGNED = 16

    @property
    def is_proven(self) -> bool:
        """Whether the issuer's own signature stands under what was refused."""
        return self >= Reason.KEYSET_MALFORMED


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message, or one record of it, that is not logged."""

    stream_seq: int
    reason: Reason
    detail: str
    """For the operator's log: which check refused."""
    content: bytes
    """The message where the reason is unproven, else the record."""
    issuer: bytes = bytes(32)
    issuer_seq: int = 0

    def stored(self) -> bytes:
        """Return the bytes for the quarantine; a record is preceded by its issuer and number."""
        content = self.content
        if self.reason.is_proven:
            content = self.issuer + self.issuer_seq.to_bytes(8, "big") + content
        return records_log.quarantined(self.stream_seq, self.reason, content)


class Rejections:
    """The quarantine file, and what of it issuers are told."""

    def __init__(self, directory: Path) -> None:
        """Read what was refused before. Raises `LogDamaged`, `LogBroken`."""
        path = directory / NAME
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[bytes, int], Reason] = OrderedDict()
        self._size = records_log.read_each(path, records_log.QUARANTINE, self._recall)
        self._file = records_log.RecordsLog(path, records_log.QUARANTINE, self._size)
        if self._file.saved is not None:
            log.error("what was refused last was cut short", at=self._size, saved=str(self._file.saved))

    def keep(self, refusals: Sequence[Refusal]) -> None:
        """Make refusals durable, each number's once. Raises `LogBroken`."""
        new = [refusal for refusal in refusals if self._is_new(refusal)]
        if not new:
            return
        stored = [refusal.stored() for refusal in new]
        self._file.append(stored)
        self._size += sum(map(len, stored))
        for refusal in new:
            if refusal.reason.is_proven:
                self._remember(refusal.issuer, refusal.issuer_seq, refusal.reason)

    def of(self, issuer: bytes, from_seq: int) -> list[tuple[int, Reason]]:
        """Return an issuer's refused numbers, as far as they are remembered."""
        with self._lock:
            return sorted(
                (number, reason)
                for (known, number), reason in self._known.items()
                if known == issuer and number >= from_seq
            )

    def has(self, issuer: bytes, issuer_seq: int) -> bool:
        with self._lock:
            return (issuer, issuer_seq) in self._known

    def has_conflict(self, issuer: bytes, issuer_seq: int) -> bool:
        """Say whether a second entry under this number was refused; a quarantine of the only one is another fault."""
        with self._lock:
            return self._known.get((issuer, issuer_seq)) is Reason.CONFLICT

    def recall(self, stored: StoredEntry) -> None:
        """Take in what an entry says of a refused number: another member may have refused it, as the writer then."""
        body = parse_entry(stored.row.body[SALT_SIZE:]).body
        reason = Reason.CONFLICT if stored.leaf.kind is Kind.CONFLICT else Reason.__members__.get(str(body["reason"]))
        known = self.has(bytes.fromhex(body["issuer"]), body["issuer_seq"])
        if reason is not None and (reason is Reason.CONFLICT or not known):
            self._remember(bytes.fromhex(body["issuer"]), body["issuer_seq"], reason)

    def close(self) -> None:
        self._file.close()

    def _is_new(self, refusal: Refusal) -> bool:
        if refusal.reason is Reason.CONFLICT:
            return not self.has_conflict(refusal.issuer, refusal.issuer_seq)
        if refusal.reason.is_proven:
            return not self.has(refusal.issuer, refusal.issuer_seq)
        return self._size < MAX_UNPROVEN_BYTES

    def _recall(self, record: bytes) -> None:
        _, why, content = records_log.read_quarantined(record)
        try:
            reason = Reason(why)
        except ValueError:
            return  # A later version's reason: what it meant is for that version to say.
        if reason.is_proven and len(content) >= _RECORD_AT:
            number = int.from_bytes(content[_SEQUENCE_AT:_RECORD_AT], "big")
            self._remember(content[:_SEQUENCE_AT], number, reason)

    def _remember(self, issuer: bytes, issuer_seq: int, reason: Reason) -> None:
        with self._lock:
            self._known[issuer, issuer_seq] = reason
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
