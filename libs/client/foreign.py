"""Responsible for a foreign ACI service as policy judges it (ACI §9): its report, its own sessions, its receipts.

Pure: a router judges what it fetched by these functions before it sends a prompt, and whoever audits the router's
session later judges the same bytes by the same functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from libs import jcs
from libs.aci import receipt as receipts
from libs.aci.encoding import Members
from libs.aci.receipt import Receipt
from libs.aci.report import DIRECT
from libs.aci.session import Session, verify_session
from libs.client.attestation import Established, TlsKeyNotAttested, establish
from libs.client.serving import CLOCK_SKEW_SECONDS, verify_claimed, verify_dated
from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.policy.foreign import ForeignProvider
from libs.policy.revoked import Revoked
from libs.tee.collateral import Collateral

ACI_FORMAT = "teemesh/foreign-aci/v1"
VLLM_PROXY_FORMAT = "teemesh/foreign-vllm-proxy/v1"
"""Which service a router's evidence is about; also the id of what verified it."""

_FORMATS = (ACI_FORMAT, VLLM_PROXY_FORMAT)


class ForeignEvidenceMalformed(MeshError):
    """What a session holds as evidence of a foreign service is not the document that routers make of it."""

    code = Code.INVALID_ARGUMENT
    reason = "FOREIGN_EVIDENCE_MALFORMED"


class ForeignSubjectNotAccepted(MeshError):
    """The foreign keyset does not call itself what policy says, or operators have revoked that name."""

    code = Code.PERMISSION_DENIED
    reason = "FOREIGN_SUBJECT_NOT_ACCEPTED"


class ForeignKeyRevoked(MeshError):
    """The foreign keyset lists a TLS key that operators have revoked."""

    code = Code.PERMISSION_DENIED
    reason = "FOREIGN_KEY_REVOKED"


class SessionNotCurrent(MeshError):
    """A session of the foreign service does not hold now."""

    code = Code.PERMISSION_DENIED
    reason = "SESSION_NOT_CURRENT"


@dataclass(frozen=True, slots=True)
class ForeignEvidence:
    """What a router took in about a foreign service, byte for byte."""

    origin: str
    nonce: str
    """The router's own, lower-case hex."""
    report: str = field(repr=False)
    collateral: Collateral | None
    """Where the report brought none: what the router fetched in its stead."""
    session_ids: tuple[str, ...] = ()
    """The service's own sessions that passed, and that requests are pinned to."""
    format: str = ACI_FORMAT

    def document(self) -> bytes:
        """Return the canonical form."""
        members: dict[str, Any] = {
            "format": self.format,
            "origin": self.origin,
            "nonce": self.nonce,
            "report": self.report,
            "session_ids": list(self.session_ids),
        }
        if self.collateral is not None:
            members["collateral"] = self.collateral.to_json()
        return jcs.dumps(members)


def parse_evidence(document: bytes) -> ForeignEvidence:
    """Read the evidence of a session about a foreign service. Raises `ForeignEvidenceMalformed` or `JsonMalformed`."""
    members = Members(jcs.loads(document), "evidence", ForeignEvidenceMalformed)
    members.only("format", "origin", "nonce", "report", "session_ids", "collateral")
    if members.text("format") not in _FORMATS:
        raise members.refuse("format", f"must be {' or '.join(_FORMATS)}")
    return ForeignEvidence(
        origin=members.text("origin"),
        nonce=members.hex("nonce", 32),
        report=members.text("report"),
        collateral=Collateral.parse(members.mapping("collateral")) if members.has("collateral") else None,
        session_ids=members.texts("session_ids"),
        format=members.text("format"),
    )


def verify_service(evidence: ForeignEvidence, provider: ForeignProvider, policy: Policy, now: int) -> Established:
    """Return what the report proves under what policy wants of this provider (§9.1, all but the channel).

    The nonce MUST be the verifier's own, or that of a router whose session is believed. Raises the first refusal.
    """
    verify_about(evidence, provider, ACI_FORMAT)
    established = establish(
        evidence.report.encode(),
        evidence.nonce,
        policy.foreign_rules(provider),
        now,
        collateral=evidence.collateral,
    )
    subject = established.keyset.subject
    if provider.subject not in (None, subject) or subject in policy.revoked.spiffe_ids:
        raise ForeignSubjectNotAccepted("the keyset's subject is not the one that policy names")
    pins_of(established, provider, policy.revoked)
    return established


def verify_about(evidence: ForeignEvidence, provider: ForeignProvider, form: str) -> None:
    """Accept evidence about this provider, in the form of its kind. Raises `ForeignEvidenceMalformed`."""
    if (evidence.origin, evidence.format) != (provider.origin, form):
        raise ForeignEvidenceMalformed("the evidence is about another origin, or another kind of service")


def pins_of(established: Established, provider: ForeignProvider, revoked: Revoked) -> frozenset[str]:
    """Return the SHA-256 (hex) of the TLS keys that the provider's host may show.

    Raises `TlsKeyNotAttested` where its keyset lists none, `ForeignKeyRevoked` where operators withdrew one.
    """
    pins = established.pins(urlsplit(provider.origin).hostname or "")
    if not pins:
        raise TlsKeyNotAttested("the report has no TLS key for this host, so no channel can be bound")
    if pins & revoked.keys:
        raise ForeignKeyRevoked("operators have revoked a TLS key of this keyset")
    return pins


def verify_upstream_session(document: bytes, session_id: str, provider: ForeignProvider, now: int) -> Session:
    """Accept one of the service's own sessions (§9.2 steps 1 to 3) that holds now.

    Its evidence is bound to its id; that it shows what the claims say is the attested service's word. Raises what
    `verify_session` raises, `SessionNotCurrent`, `SessionClaimsInsufficient`.
    """
    session = verify_session(document, session_id)
    # The service's clock wrote it, and perhaps while it was being verified.
    if not session.established_at - CLOCK_SKEW_SECONDS <= now < session.expires_at:
        raise SessionNotCurrent("the session has ended or not begun")
    if not session.bindings:
        raise SessionNotCurrent("the session binds no channel")
    verify_claimed(session, provider.session_claims)
    return session


def verify_answer(
    document: bytes,
    established: Established,
    accepted: Mapping[str, Session],
    *,
    request_body: bytes,
    response_hash: str,
    sent_at: float,
    received_at: float,
) -> Receipt:
    """Accept the service's receipt of an answer: over these very bytes, of this time, served by an accepted session.

    A service that says it serves by itself cites no session: the attested workload is all there is (§9.3). Raises the
    first step's refusal.
    """
    receipt = verify_receipted(document, established, request_body=request_body, response_hash=response_hash)
    verify_dated(receipt, sent_at, received_at)
    if established.serving != DIRECT:
        cited = getattr(receipt.upstream, "session_id", None)
        session = accepted.get(cited) if isinstance(cited, str) else None
        if session is None:
            raise receipts.SessionNotCited("the receipt cites none of the sessions that were accepted before")
        receipts.verify_serving(receipt, session, pinned=accepted)
    return receipt


def verify_receipted(document: bytes, established: Established, *, request_body: bytes, response_hash: str) -> Receipt:
    """Accept the service's receipt over these very bytes, whatever it says about who served."""
    receipt = receipts.verify_receipt(document, established.keyset)
    receipts.verify_exchange(receipt, request_body=request_body, response_hash=response_hash)
    return receipt
