"""It is responsible for the numbered checks of an attested session: what it proves here, and what remains a word.

None of them needs a network. What the evidence does not speak of, the name and the endpoint, no check can confirm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from libs.aci.session import Session, verify_session
from libs.audit.session import SessionTerms, appraise_session, evidence_digest, verify_open, verify_statements
from libs.client.checks import Check, evaluate, proven
from libs.errors import MeshError
from libs.identity.revoked import verify_not_revoked
from libs.tee.appraisal import Appraisal
from services.cli.terminal.words import Json, Moment

_ID, _EVIDENCE = 1, 2


@dataclass(slots=True)
class SessionProof:
    """Each step may rest on what earlier ones proved, and on nothing that they did not."""

    document: bytes = field(repr=False)
    session_id: str
    terms: SessionTerms
    policy_refusal: MeshError | None = None
    """Why the policy is not in force at that time, if it is not."""
    signatures: str = "verified"
    """By whose word the policy's signatures count."""
    session: Session | None = None
    appraisal: Appraisal | None = None

    @property
    def steps(self) -> tuple[tuple[str, Callable[[], str]], ...]:
        return (
            ("the session is the one of this id", self.is_of_its_id),
            ("its evidence holds under the policy", self.evidence_holds),
            ("it says what its evidence proves", self.statements_hold),
            ("nothing that bears it is revoked", self.nothing_is_revoked),
            ("it was open at that time", self.was_open),
            ("the policy was in force at that time", self.policy_was_in_force),
        )

    def is_of_its_id(self) -> str:
        self.session = verify_session(self.document, self.session_id)
        return f"{self.session_id}, over {len(self.document)} bytes"

    def evidence_holds(self) -> str:
        session = proven(self.session, _ID)
        self.appraisal = appraise_session(session, self.terms)
        moment = Moment(self.terms.now)
        return f"evidence {evidence_digest(session).hex()}, policy version {self.terms.policy.version}, as of {moment}"

    def statements_hold(self) -> str:
        session, appraisal = proven(self.session, _ID), proven(self.appraisal, _EVIDENCE)
        verify_statements(session, appraisal)
        return f"key {appraisal.spki_sha256.hex()}, TCB {appraisal.tcb_status}"

    def nothing_is_revoked(self) -> str:
        session, appraisal = proven(self.session, _ID), proven(self.appraisal, _EVIDENCE)
        verify_not_revoked(appraisal.spki_sha256, session.upstream_name, self.terms.policy)
        return "neither the key nor the name"

    def was_open(self) -> str:
        session = proven(self.session, _ID)
        verify_open(session, self.terms.now)
        return f"from {Moment(session.established_at)} until {Moment(session.expires_at)}"

    def policy_was_in_force(self) -> str:
        if self.policy_refusal is not None:
            raise self.policy_refusal
        return f"digest {self.terms.policy.digest.hex()}; {self.signatures}"


def check_session(proof: SessionProof) -> list[Check]:
    """Take every step."""
    return evaluate(proof.steps)


def proves(appraisal: Appraisal) -> dict[str, Json]:
    """What hardware and policy prove of whoever holds the key."""
    return {
        "key": appraisal.spki_sha256.hex(),
        "measurement": dict(appraisal.measurement.to_json()),
        "device_id": appraisal.device_id,
        "cpu_family": appraisal.cpu_family,
        "tcb_status": appraisal.tcb_status,
        "gpu_attested": appraisal.gpu is not None,
        "claims": dict(appraisal.workload_claims),
        "valid_until": appraisal.valid_until,
    }


def check_json(check: Check) -> dict[str, Json]:
    return {
        "number": check.number,
        "name": check.name,
        "passed": check.passed,
        "detail": check.detail,
        "reason": check.reason,
    }
