"""Responsible for what an attested session proves by itself: its evidence is appraised again, offline, at any time.

Evidence speaks for a key. Whose key that is, and where it is reached, is its sealer's word; the mesh CA's certificates
say that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from libs.aci import claims
from libs.aci.session import Session, TlsBinding
from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.tee import evidence as evidences
from libs.tee.appraisal import Appraisal, AppraisalContext, SignedBy, appraise

VERIFIER_ID = "teemesh/appraisal/v1"
_ROLE = "node"
_POLICY_VERSION = "policy_version"
"""The policy that the session was sealed under: the only fact that may be another than the reader's."""


class SessionVerifierUnknown(MeshError):
    """The session was sealed by a verifier whose evidence this version cannot appraise."""

    code = Code.INVALID_ARGUMENT
    reason = "SESSION_VERIFIER_UNKNOWN"


class SessionContradictsEvidence(MeshError):
    """The session says something else than its own evidence."""

    code = Code.PERMISSION_DENIED
    reason = "SESSION_CONTRADICTS_EVIDENCE"


class SessionNotOpen(MeshError):
    """The session is not valid at that time."""

    code = Code.PERMISSION_DENIED
    reason = "SESSION_NOT_OPEN"


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """What a session is judged by."""

    policy: Policy
    ca_spki: bytes
    """Of the key that signs the mesh's challenges."""
    now: int
    """Unix seconds: as of when."""


def appraise_session(session: Session, terms: SessionTerms) -> Appraisal:
    """Appraise the evidence in a session. Raises `SessionVerifierUnknown` and every appraisal refusal."""
    if session.verifier_id != VERIFIER_ID:
        raise SessionVerifierUnknown(f"sealed by {session.verifier_id!r}, whose evidence is not appraised here")
    policy = terms.policy
    return appraise(
        evidences.parse(session.evidence),
        policy.rules(_ROLE),
        AppraisalContext(
            now=terms.now,
            spki=None,
            challenge=SignedBy(terms.ca_spki, policy.evidence_max_age_seconds),
            policy_version=policy.version,
        ),
    )


def verify_statements(session: Session, appraisal: Appraisal) -> None:
    """Raise `SessionContradictsEvidence` unless the session says what the appraisal of its own evidence found."""
    bound = TlsBinding(session.endpoint or "", appraisal.spki_sha256.hex())
    if session.bindings != (bound,):
        raise SessionContradictsEvidence("the session is bound to another key than its evidence speaks for")
    if claims.document(session.claims) != claims.document(appraisal.claims):
        raise SessionContradictsEvidence("the session claims something else than its evidence proves")
    found = {
        "tcb_status": appraisal.tcb_status,
        "vendor_root_sha256": appraisal.vendor_root_sha256.hex(),
        **appraisal.measurement.to_json(),
    }
    if {name: value for name, value in session.extra.items() if name != _POLICY_VERSION} != found:
        raise SessionContradictsEvidence("the session states other facts than its evidence proves")


def verify_open(session: Session, now: int) -> None:
    """Raise `SessionNotOpen` unless the session is valid at a time, by its own word."""
    if not session.established_at <= now < session.expires_at:
        raise SessionNotOpen(f"it is open from {session.established_at} until {session.expires_at}, and not at {now}")


def evidence_digest(session: Session) -> bytes:
    """The digest by which certificates, receipts and the log name the session's evidence."""
    return hashlib.sha256(session.evidence).digest()
