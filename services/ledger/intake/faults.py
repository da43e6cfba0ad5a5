"""It is responsible for how the ledger says that others are at fault: messages lost, numbers given twice or refused;
and that what it kept of such faults was damaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from libs.events.consume import StreamGap
from libs.transparency.leaf import Kind
from services.ledger.intake.rejections import Refusal
from services.ledger.intake.sequencer import Verdict
from services.ledger.storage.lost_and_found import Kept


@dataclass(frozen=True, slots=True)
class Saying:
    """An entry of the ledger's own that is to be in the log."""

    kind: Kind
    body: Mapping[str, str | int]


def lost(source: bytes, gap: StreamGap) -> Saying:
    """Say that the stream lost messages."""
    return Saying(Kind.GAP, {"source": source.hex(), "from": gap.first, "to": gap.last})


def set_aside(file: str, kept: Kept, damaged_at: int, records: int) -> Saying:
    """Say that evidence beside the log was damaged: which file, where its copy differs first from what was written, and
    how many of its records are still in it.
    """
    place: dict[str, str | int] = {"file": file, "size": kept.size, "damaged_at": damaged_at}
    return Saying(Kind.GAP, {**place, "sha256": kept.digest, "records_kept": records})


def contradicted(verdict: Verdict) -> Saying:
    """Say that an issuer gave one number to two entries."""
    refused = verdict.candidate
    return Saying(
        Kind.CONFLICT,
        {
            "issuer": refused.issuer.hex(),
            "issuer_seq": refused.issuer_seq,
            "logged": verdict.logged_commitment.hex(),
            "refused": refused.commitment.hex(),
        },
    )


def quarantined(refusal: Refusal) -> Saying:
    """Say that a number of an admitted issuer will never be filled, and why."""
    return Saying(
        Kind.QUARANTINE,
        {
            "issuer": refusal.issuer.hex(),
            "issuer_seq": refusal.issuer_seq,
            "record_sha256": sha256(refusal.content).hexdigest(),
            "reason": refusal.reason.name,
        },
    )
