"""It is responsible for what may enter the log: who signed it, whether that role writes this kind, whether it opens.

The answer depends on the message and on the log before it alone, so reading the stream again gives the same log. What
is in the log already passes: only the sequencer can tell a resend from a contradiction.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Set
from contextlib import suppress
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from libs import jcs
from libs.errors import MeshError
from libs.events.batches import Batch, BatchSignatureInvalid, verify_batch
from libs.events.consume import StreamMessage
from libs.events.keyset import Keyset, KeysetMalformed
from libs.events.pruning import parse_prune
from libs.events.records import SALT_SIZE, Entry, Record, RecordHeader, open_record, parse_entry, verify_entry
from libs.events.stage_signature import StageNotSigned, verify_stage
from libs.events.vault import VaultKey
from libs.identity.certificate import parse
from libs.transparency.leaf import Kind
from services.ledger.intake.examination import VaultKeys
from services.ledger.intake.issuers import (
    KINDS_OF_ROLE,
    Writer,
    Writers,
    nobody,
    read_keyset,
    verify_keyset,
    verify_renewal,
)
from services.ledger.intake.policies import LoggedPolicies
from services.ledger.intake.rejections import Reason, Refusal
from services.ledger.intake.sequencer import Candidate
from services.ledger.storage.reading import StoredEntry
from services.ledger.vaults.erasures import Erasures

REPLAYED = (Kind.POLICY, Kind.REVOCATION, Kind.ERASURE)
"""What must be known of the log before anything is judged; writers are read when they write."""

_WINDOW = 65_536
_REFUSED_REMEMBERED = 1024


@dataclass(slots=True)
class Judged:
    """What came of one message."""

    candidates: list[Candidate] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


class _Refused(Exception):
    """One record is refused."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class LogView:
    """What admission must know of the log's entries."""

    is_logged: Callable[[bytes, int], bool]
    """Whether an issuer's number is in the log."""
    highest: Callable[[bytes], int]
    """The highest logged number of an issuer; 0 for none."""
    writer: Callable[[bytes], Writer | None] = nobody
    """An issuer as the log shows it."""


class Admission:
    """Judges messages in stream order. One caller at a time."""

    def __init__(self, policies: LoggedPolicies, view: LogView, ca_certificate: bytes, erasures: Erasures) -> None:
        self._policies = policies
        self._view = view
        self._ca = ca_certificate
        self._erasures = erasures
        self._writers = Writers(view.writer)
        self._refused: OrderedDict[bytes, Ed25519PublicKey] = OrderedDict()

    def replay(self, entries: Iterable[StoredEntry]) -> None:
        """Take in what the log says about policies, revocations and vaults: its entries of the kinds `REPLAYED`, in
        order.

        Raises what its own records cannot be read as.
        """
        for stored in entries:
            entry = parse_entry(stored.row.body[SALT_SIZE:])
            if stored.leaf.kind is Kind.POLICY:
                self._policies.take(jcs.dumps(dict(entry.body)))
            elif stored.leaf.kind is Kind.REVOCATION:
                self._revoke(entry)
            else:
                self._erasures.take(entry)

    def writer(self, issuer: bytes) -> Writer | None:
        """Return an issuer that may write."""
        return self._writers.of(issuer)

    def judge(self, message: StreamMessage, batch: Batch, vaults: VaultKeys, opens: Set[int] = frozenset()) -> Judged:
        """Say of each record whether it may be logged. `vaults` are the keys of the vaults that the batch names.

        `opens` are the numbers of sealed records that MUST be known to open with these keys and to be what they should
        (`examination.opening`); all others are opened here.
        """
        writer = self._writers.of(batch.issuer)
        if writer is None:
            return self._introduce(message, batch, vaults, opens)
        try:
            verify_batch(batch, writer.key)
        except BatchSignatureInvalid as error:
            return _unproven(message, Reason.SIGNATURE_INVALID, str(error))
        return self._judge_records(message, batch, writer, vaults, opens)

    def _introduce(self, message: StreamMessage, batch: Batch, vaults: VaultKeys, opens: Set[int]) -> Judged:
        """Judge the first batch of an issuer: it must begin with the entry that proves it."""
        first = batch.records[0]
        if (batch.first_seq, first.header.kind) != (1, Kind.KEYSET):
            return self._judge_unknown(message, batch)
        try:
            entry = _open(first, batch.issuer, batch.first_seq, None)
            keyset, key = read_keyset(entry.body, batch.issuer)
            verify_batch(batch, key)
        except (_Refused, KeysetMalformed) as error:
            return _unproven(message, Reason.MESSAGE_MALFORMED, str(error))
        except BatchSignatureInvalid as error:
            return _unproven(message, Reason.SIGNATURE_INVALID, str(error))
        try:
            policy = self._policies_with(batch, keyset).newest
            writer = verify_keyset(keyset, key, policy, self._ca, message.time_ms / 1000)
        except MeshError as error:
            self._remember_refused(batch.issuer, key)
            return _all_refused(message, batch, Reason.KEYSET_REFUSED, f"{error.reason}: {error}")
        self._writers.admit(keyset, writer)
        return self._judge_records(message, batch, writer, vaults, opens)

    def _judge_unknown(self, message: StreamMessage, batch: Batch) -> Judged:
        refused = self._refused.get(batch.issuer)
        if refused is None:
            # Not told to the issuer: its keyset may still be on the way, and it sends this again.
            return _unproven(message, Reason.ISSUER_UNKNOWN, "no keyset entry of this issuer yet")
        try:
            verify_batch(batch, refused)
        except BatchSignatureInvalid as error:
            return _unproven(message, Reason.SIGNATURE_INVALID, str(error))
        return _all_refused(message, batch, Reason.KEYSET_REFUSED, "the issuer's keyset was refused")

    def _policies_with(self, batch: Batch, keyset: Keyset) -> LoggedPolicies:
        """Return the policies as they will be after this batch: the KMS may bring the one that admits itself."""
        tried = self._policies.fork()
        if Kind.POLICY in KINDS_OF_ROLE.get(parse(keyset.certificate).role, ()):
            for number, record in batch.numbered():
                if record.header.kind is Kind.POLICY:
                    with suppress(_Refused, MeshError):
                        tried.take(jcs.dumps(dict(_open(record, batch.issuer, number, None).body)))
        return tried

    def _remember_refused(self, issuer: bytes, key: Ed25519PublicKey) -> None:
        self._refused[issuer] = key
        if len(self._refused) > _REFUSED_REMEMBERED:
            self._refused.popitem(last=False)

    def _judge_records(
        self, message: StreamMessage, batch: Batch, writer: Writer, vaults: VaultKeys, opens: Set[int]
    ) -> Judged:
        judged = Judged()
        limit = self._view.highest(batch.issuer) + _WINDOW
        for number, record in batch.numbered():
            header = record.header
            candidate = Candidate(
                header.kind, batch.issuer, number, header.commitment, header.vault_epoch, header.vault_id, record.body
            )
            try:
                if not self._view.is_logged(batch.issuer, number):
                    self._judge_place(record.header, number, limit, writer)
                    vault = self._vault_of(record.header, vaults)
                    if vault is None or number not in opens:
                        self._judge_entry(_open(record, batch.issuer, number, vault), writer, message)
            except _Refused as error:
                judged.refusals.append(_refusal(message, batch, number, record, error.reason, error.detail))
            else:
                judged.candidates.append(candidate)
        return judged

    def _judge_place(self, header: RecordHeader, issuer_seq: int, limit: int, writer: Writer) -> None:
        if writer.closed_after is not None and issuer_seq > writer.closed_after:
            raise _Refused(Reason.SEQUENCE_CLOSED, f"a later start closed the sequence at {writer.closed_after}")
        if issuer_seq > limit:
            raise _Refused(Reason.SEQUENCE_TOO_FAR, f"more than {_WINDOW} numbers are left out")
        if not writer.may_write(header.kind):
            raise _Refused(Reason.KIND_NOT_ALLOWED, f"role {writer.role} writes no entries of kind {header.kind.name}")

    def _vault_of(self, header: RecordHeader, vaults: VaultKeys) -> VaultKey | None:
        """Return the key of a sealed record, None for one that lies open."""
        if header.is_public:
            return None
        if self._erasures.closing(header.vault_id, header.vault_epoch) is not None:
            raise _Refused(Reason.VAULT_ERASED, "the vault, or that month of it, is closed for ever")
        vault = vaults.get((header.vault_id, header.vault_epoch))
        if vault is None:
            raise _Refused(Reason.VAULT_UNKNOWN, "the vault was never opened for that month")
        return vault

    def _judge_entry(self, entry: Entry, writer: Writer, message: StreamMessage) -> None:
        """Take in what an entry changes about what may be logged."""
        if entry.kind is Kind.KEYSET and entry.issuer_seq != 1:
            self._judge_renewal(entry, writer, message)
        if entry.kind is Kind.POLICY:
            try:
                self._policies.take(jcs.dumps(dict(entry.body)))
            except MeshError as error:
                raise _Refused(Reason.POLICY_REFUSED, f"{error.reason}: {error}") from error
        if entry.kind is Kind.REVOCATION:
            self._revoke(entry)
        if entry.kind in (Kind.ERASURE, Kind.PRUNE, Kind.PIPELINE):
            try:
                if entry.kind is Kind.ERASURE:
                    self._erasures.take(entry)
                elif entry.kind is Kind.PRUNE:
                    parse_prune(entry.body)
                else:
                    # It lies open for ever, and who wrote it runs code that is nobody's here.
                    verify_stage(entry, writer.key)
            except StageNotSigned as error:
                # Not ENTRY_MALFORMED, which no honest issuer brings about: a job of an earlier version does this.
                raise _Refused(Reason.STAGE_NOT_SIGNED, str(error)) from error
            except MeshError as error:
                raise _Refused(Reason.ENTRY_MALFORMED, f"{error.reason}: {error}") from error

    def _judge_renewal(self, entry: Entry, writer: Writer, message: StreamMessage) -> None:
        """One that is refused takes nothing from its issuer, which goes on under the keyset before."""
        try:
            keyset, key = read_keyset(entry.body, entry.issuer)
        except KeysetMalformed as error:
            raise _Refused(Reason.KEYSET_MALFORMED, str(error)) from error
        try:
            verify_renewal(keyset, key, writer, self._policies.newest, self._ca, message.time_ms / 1000)
        except MeshError as error:
            # Not KEYSET_REFUSED, which would say that nothing is taken from this issuer any more.
            raise _Refused(Reason.KEYSET_NOT_RENEWED, f"{error.reason}: {error}") from error

    def _revoke(self, entry: Entry) -> None:
        """What no operator of the log's policies signed is an entry like any other, and withdraws nothing."""
        with suppress(MeshError):
            self._policies.revoke(jcs.dumps(dict(entry.body)))


def _open(record: Record, issuer: bytes, issuer_seq: int, vault: VaultKey | None) -> Entry:
    try:
        opened = open_record(record, issuer, issuer_seq, vault)
    except MeshError as error:
        raise _Refused(Reason.BODY_NOT_OPENED, f"{error.reason}: {error}") from error
    try:
        return verify_entry(opened, record.header, issuer, issuer_seq, None if vault is None else vault.tenant)
    except MeshError as error:
        raise _Refused(Reason.ENTRY_MALFORMED, f"{error.reason}: {error}") from error


def _unproven(message: StreamMessage, reason: Reason, detail: str) -> Judged:
    return Judged(refusals=[Refusal(message.sequence, reason, detail, message.data)])


def _all_refused(message: StreamMessage, batch: Batch, reason: Reason, detail: str) -> Judged:
    return Judged(
        refusals=[_refusal(message, batch, number, record, reason, detail) for number, record in batch.numbered()]
    )


def _refusal(message: StreamMessage, batch: Batch, number: int, record: Record, reason: Reason, detail: str) -> Refusal:
    return Refusal(message.sequence, reason, detail, record.encode(), batch.issuer, number)
