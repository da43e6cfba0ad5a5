"""Responsible for the evidence document: canonical JSON in, checked values out, and back.

One document has one byte form, so its SHA-256 is its identity everywhere. Parsing checks size and shape and proves
nothing; `libs.tee.appraisal` does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee import eventlog, shape, tdx
from libs.tee.challenge import Challenge
from libs.tee.collateral import Collateral
from libs.tee.eventlog import Event
from libs.tee.nvidia.evidence import GpuEvidence
from libs.tee.snp import report as snp
from libs.tee.snp.endorsement import SnpEndorsement
from libs.tee.steps import Note, ignore

TDX = "tdx"
SNP = "sev-snp"
MAX_DOCUMENT_BYTES = 512 * 1024
_VERSION = 1
_MAX_SPKI_BYTES = 4096
_MEMBERS = frozenset(
    {
        "v",
        "tee_type",
        "quote",
        "event_log",
        "app_compose",
        "spki",
        "claims",
        "challenge",
        "gpu_evidence",
        "collateral",
    }
)


class EvidenceTooLarge(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "EVIDENCE_TOO_LARGE"


class EvidenceMalformed(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "EVIDENCE_MALFORMED"


class TeeTypeNotSupported(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "TEE_TYPE_NOT_SUPPORTED"


@dataclass(frozen=True, slots=True)
class Evidence:
    """A parsed evidence document. Build with `parse` or `assemble`; nothing in it is verified yet."""

    tee_type: str
    # A TDX quote or a SEV-SNP report, in its one cut form.
    quote: bytes
    event_log: tuple[Event, ...]
    app_compose: str
    # SubjectPublicKeyInfo, DER, of the key that the evidence speaks for.
    spki: bytes
    claims: Mapping[str, Any]
    challenge: Challenge
    gpu_evidence: GpuEvidence | None
    # SHA-256 of the GPU evidence's canonical JSON, which must stand in the claims; None where there is none.
    gpu_evidence_digest: bytes | None
    # What the vendor of the technology signed about the platform, stapled.
    collateral: Collateral | SnpEndorsement
    document: bytes
    digest: bytes

    @property
    def gpu_ueids(self) -> frozenset[str]:
        """The GPUs that it shows, by UEID, as their tokens state. Raises `TokenMalformed`."""
        return frozenset() if self.gpu_evidence is None else self.gpu_evidence.ueids


def parse(document: bytes, note: Note = ignore) -> Evidence:
    """Read a document. Raises `EvidenceTooLarge`, `EvidenceMalformed`, or the error of the part that is wrong."""
    note("document", lambda: f"{len(document)} bytes", f"{MAX_DOCUMENT_BYTES} or fewer, canonical JSON (RFC 8785)")
    if len(document) > MAX_DOCUMENT_BYTES:
        raise EvidenceTooLarge(f"the evidence has {len(document)} bytes, at most {MAX_DOCUMENT_BYTES} are read")
    value = jcs.loads_object(document)
    if jcs.dumps_parsed(value) != document:
        raise EvidenceMalformed("the evidence is not canonical JSON (RFC 8785)")
    try:
        return _read(value, document)
    except ValueError as error:
        raise EvidenceMalformed(str(error)) from error


def assemble(
    *,
    quote: bytes,
    event_log: Sequence[Event],
    app_compose: str,
    spki: bytes,
    claims: Mapping[str, Any],
    challenge: Challenge,
    collateral: Collateral | SnpEndorsement,
    gpu_evidence: GpuEvidence | None = None,
) -> Evidence:
    """Make a document from its parts; the quote is cut to its parsed length. Raises what `parse` raises."""
    is_tdx = isinstance(collateral, Collateral)
    return parse(
        jcs.dumps(
            {
                "v": _VERSION,
                "tee_type": TDX if is_tdx else SNP,
                "quote": (tdx.cut(quote) if is_tdx else quote).hex(),
                "event_log": [event.to_json() for event in event_log],
                "app_compose": app_compose,
                "spki": spki.hex(),
                "claims": dict(claims),
                "challenge": challenge.to_json(),
                "gpu_evidence": None if gpu_evidence is None else gpu_evidence.to_json(),
                "collateral": collateral.to_json(),
            }
        )
    )


def _read(value: Mapping[str, Any], document: bytes) -> Evidence:
    fields = shape.members(value, _MEMBERS, "evidence")
    if fields["v"] != _VERSION or isinstance(fields["v"], bool):
        raise ValueError("the evidence is of another version")
    tee_type = fields["tee_type"]
    quote = shape.binary(fields["quote"], "quote")
    event_log = eventlog.parse(fields["event_log"])
    collateral: Collateral | SnpEndorsement
    if tee_type == TDX:
        if tdx.cut(quote) != quote:
            # Padding would give one quote many documents.
            raise ValueError("the quote is not cut to its parsed length")
        collateral = Collateral.parse(fields["collateral"])
    elif tee_type == SNP:
        snp.parse(quote)
        if event_log:
            raise ValueError("SEV-SNP has no registers, so its evidence has no event log")
        collateral = SnpEndorsement.parse(fields["collateral"])
    else:
        raise TeeTypeNotSupported(f"only {TDX} and {SNP} evidence is understood")
    spki = shape.binary(fields["spki"], "spki")
    if not 0 < len(spki) <= _MAX_SPKI_BYTES:
        raise ValueError(f"spki has {len(spki)} bytes")
    claims = fields["claims"]
    if not isinstance(claims, dict):
        raise ValueError("claims must be an object")
    gpu_evidence = fields["gpu_evidence"]
    return Evidence(
        tee_type=tee_type,
        quote=quote,
        event_log=event_log,
        app_compose=shape.text(fields["app_compose"], "app_compose"),
        spki=spki,
        claims=claims,
        challenge=Challenge.parse(fields["challenge"]),
        gpu_evidence=None if gpu_evidence is None else GpuEvidence.parse(gpu_evidence),
        gpu_evidence_digest=(None if gpu_evidence is None else hashlib.sha256(jcs.dumps_parsed(gpu_evidence)).digest()),
        collateral=collateral,
        document=document,
        digest=hashlib.sha256(document).digest(),
    )
