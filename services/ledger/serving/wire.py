"""It is responsible for how what the ledger holds looks on the wire."""

from __future__ import annotations

from collections.abc import Sequence

from teemesh.ledger.v1 import acknowledgement_pb2 as ack_pb
from teemesh.ledger.v1 import ledger_pb2 as pb

from libs.events.acknowledgements import Refused
from libs.transparency.acknowledgement import Acknowledgement
from services.ledger.intake.acknowledging import Answer
from services.ledger.storage.prunings import Prunings
from services.ledger.storage.reading import StoredEntry

ENTRY_ERASED = "ENTRY_ERASED"
ENTRY_PRUNED = "ENTRY_PRUNED"


def wire_answers(answers: Sequence[Answer]) -> pb.StreamAcknowledgementsResponse:
    return pb.StreamAcknowledgementsResponse(
        acknowledgements=[_acknowledgement(each) for each in answers if isinstance(each, Acknowledgement)],
        rejections=[
            ack_pb.Rejection(issuer_seq=each.issuer_seq, reason=each.reason)
            for each in answers
            if isinstance(each, Refused)
        ],
    )


def wire_entry(stored: StoredEntry, closed_by: int | None, prunings: Prunings) -> pb.LoggedEntry:
    """`closed_by` is the index of the order that erased the entry: then its body is not given out any more."""
    row = stored.row
    missing = None
    if closed_by is not None:
        missing = pb.MissingBody(reason=ENTRY_ERASED, index=closed_by)
    elif not row.body:
        by = prunings.covering(stored.index)
        missing = pb.MissingBody(reason=ENTRY_PRUNED, index=by, first_held=prunings.limit)
    return pb.LoggedEntry(
        index=stored.index,
        leaf_data=row.leaf_data,
        vault_id=row.vault_id,
        body=row.body if missing is None else b"",
        vault_epoch=row.vault_epoch,
        missing=missing,
    )


def _acknowledgement(one: Acknowledgement) -> ack_pb.Acknowledgement:
    return ack_pb.Acknowledgement(
        statement=one.statement,
        leaf_data=one.leaf_data,
        first=one.first,
        count=one.count,
        path=one.path,
        signer_epoch=one.signer_epoch,
        signature=one.signature,
    )
