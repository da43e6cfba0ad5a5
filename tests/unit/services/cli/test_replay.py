"""Decisions of a log, made again: what is the same comes out the same, and what a hostile writer put there is told."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from libs import jcs
from libs.identity.certificate import Subject, parse, spki_of_certificate
from libs.identity.lease import appraise_peer
from libs.policy.document import read
from libs.policy.revocation import RevocationKind
from libs.tee.challenge import Challenge
from libs.transparency.leaf import Kind, Leaf
from services.cli.decisions.log_copy import Entry
from services.cli.decisions.log_state import Authorities, InLog, PolicyWithheld
from services.cli.decisions.replay import AGED, LATER, Replay
from services.cli.decisions.replayed import Replayed, Verdict
from services.registry.sessions import draft_session
from tests.fakes.joined_fixtures import kms, machine, mesh
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.operators_mesh import CLAIMS, MODEL, WEIGHTS

__all__ = ["kms", "machine", "mesh"]

ONE, TWO = (f"spiffe://{TRUST_DOMAIN}/node/{name}" for name in ("one", "two"))


@dataclass(slots=True)
class Log:
    """A log that is written entry by entry, by whoever may."""

    authorities: Authorities
    entries: list[Entry] = field(default_factory=list)

    def add(self, kind: Kind, body: Mapping[str, Any]) -> int:
        index = len(self.entries)
        self.entries.append(Entry(index, Leaf(kind, index + 1, bytes(32), bytes(16), bytes(32)), body))
        return index

    def replayed(self, filed: Mapping[bytes, bytes] | None = None) -> list[Replayed]:
        log = InLog(self.authorities)
        for entry in self.entries:
            log.take(entry)
        return Replay(log, filed or {}).run()

    def last(self) -> Replayed:
        return self.replayed()[-1]


@dataclass(slots=True)
class Desk:
    """A mesh whose node one was sealed a session, and the log of that."""

    mesh: JoinedMesh
    log: Log
    decided: dict[str, Any]
    """What decisions about the node have in common."""
    spki_sha256: str
    evidence: bytes

    def admit(self, **changes: Any) -> None:
        self.log.add(Kind.ADMISSION, {"decision": "admitted", **self.decided, **changes})

    def withdraw(self, reason: str, **changes: Any) -> None:
        self.log.add(Kind.ADMISSION, {"decision": "withdrawn", **self.decided, "reason": reason, **changes})

    def publish(self, **changes: Any) -> None:
        self.log.add(Kind.POLICY, jcs.loads_object(self.mesh.successor(read(self.mesh.draft), **changes)))

    def revoke(self, time_ms: int) -> None:
        signed = self.mesh.revocation(RevocationKind.KEY, self.spki_sha256, time_ms=time_ms)
        self.log.add(Kind.REVOCATION, jcs.loads_object(signed))


@pytest.fixture
def desk(mesh: JoinedMesh, kms: KmsCore) -> Desk:
    mesh.allow_models({MODEL: [WEIGHTS]})
    policy, ca, now = read(mesh.draft), spki_of_certificate(kms.ca.certificate), int(time.time())
    key = ec.generate_private_key(ec.SECP256R1())
    challenge = Challenge.signed(f"spiffe://{TRUST_DOMAIN}/kms/1", "certificate", now, kms.ca.key, kms.ca.certificate)
    evidence = mesh.evidence("node", challenge, key, claims=CLAIMS)
    certificate = parse(kms.ca.issue_svid(Subject(TRUST_DOMAIN, "node", "one", evidence.digest), key.public_key(), now))
    session = draft_session(appraise_peer(certificate, evidence.document, policy, ca, now), "127.0.0.1:1")
    operators = tuple(each.public_key().public_bytes_raw() for each in mesh.operators)
    log = Log(Authorities(operators, 2, ca))
    log.add(Kind.POLICY, jcs.loads_object(mesh.seed))
    log.add(Kind.SESSION, jcs.loads_object(session.document))
    decided = {
        "spiffe_id": ONE,
        "session_id": session.session_id,
        "evidence_sha256": evidence.digest.hex(),
        "policy_version": 1,
    }
    return Desk(mesh, log, decided, certificate.spki_sha256.hex(), evidence.document)


def test_an_admission_comes_out_the_same(desk: Desk) -> None:
    desk.admit()
    assert (desk.log.last().verdict, desk.log.last().rule) == (Verdict.SAME, "roles.node.measurements[0]")


def test_an_admission_of_what_was_revoked_before_is_different(desk: Desk) -> None:
    desk.revoke(time_ms=1)
    desk.admit()
    assert (desk.log.last().verdict, desk.log.last().repeated) == (Verdict.DIFFERENT, "KEY_REVOKED")


def test_an_admission_of_what_policy_does_not_list_is_different(desk: Desk) -> None:
    roles = desk.mesh.draft["roles"]
    desk.publish(roles={**roles, "node": {**roles["node"], "measurements": []}})
    desk.admit(policy_version=2)
    assert (desk.log.last().verdict, desk.log.last().repeated) == (Verdict.DIFFERENT, "MEASUREMENT_NOT_ALLOWED")


def test_a_withdrawal_by_a_revocation_is_the_same_whichever_was_logged_first(desk: Desk) -> None:
    since = int(time.time() * 1000) + 60_000
    desk.withdraw("KEY_REVOKED")
    desk.revoke(since)
    desk.withdraw("KEY_REVOKED")
    before, after = desk.log.replayed()
    assert (before.verdict, before.note) == (Verdict.SAME, LATER)
    assert (after.verdict, after.note) == (Verdict.SAME, "")


def test_a_withdrawal_of_what_grew_too_old_is_the_same(desk: Desk) -> None:
    """It was fresh enough when it was admitted; a later version lets evidence count for less time."""
    desk.publish(challenge_max_age_seconds=60, evidence_max_age_seconds=60)
    desk.withdraw("CHALLENGE_TOO_OLD", policy_version=2)
    assert (desk.log.last().verdict, desk.log.last().note) == (Verdict.SAME, AGED)
    assert desk.log.last().rule == "evidence_max_age_seconds"


def test_a_withdrawal_for_no_reason_is_different(desk: Desk) -> None:
    desk.withdraw("MEASUREMENT_NOT_ALLOWED")
    assert (desk.log.last().verdict, desk.log.last().repeated) == (Verdict.DIFFERENT, "ADMITTED")


def test_a_session_that_is_about_another_node_is_told(desk: Desk) -> None:
    desk.admit(spiffe_id=TWO)
    assert (desk.log.last().verdict, desk.log.last().repeated) == (Verdict.DIFFERENT, "SESSION_OF_ANOTHER")


@pytest.mark.parametrize(
    "changes",
    [
        {"session_id": None},
        {"session_id": 5},
        {"evidence_sha256": "zz"},
        {"policy_version": [1]},
        {"spiffe_id": 5},
        {"decision": "welcomed"},
        {"decision": "withdrawn"},
    ],
    ids=["no session", "session", "evidence", "version", "name", "decision", "no reason"],
)
def test_a_decision_that_no_service_writes_is_told_and_not_passed_over(desk: Desk, changes: dict[str, Any]) -> None:
    desk.admit(**changes)
    assert (desk.log.last().verdict, desk.log.last().repeated) == (Verdict.DIFFERENT, "DECISION_MALFORMED")


def test_a_decision_about_a_session_that_says_nothing_of_it_is_told(desk: Desk) -> None:
    desk.admit()
    desk.log.entries[-1] = Entry(
        2,
        desk.log.entries[-1].leaf,
        {name: value for name, value in (desk.log.entries[-1].body or {}).items() if name != "session_id"},
    )
    assert (desk.log.last().verdict, desk.log.last().repeated) == (Verdict.DIFFERENT, "DECISION_MALFORMED")


def test_a_version_that_is_nowhere_in_the_log_ends_the_replay(desk: Desk) -> None:
    desk.admit(policy_version=2)
    with pytest.raises(PolicyWithheld):
        desk.log.replayed()


def test_a_session_that_is_none_is_told_where_something_stands_on_it(desk: Desk) -> None:
    nonsense = {"nothing": "that is a session"}
    desk.log.add(Kind.SESSION, nonsense)
    desk.admit(session_id=hashlib.sha256(jcs.dumps(nonsense)).hexdigest())
    assert desk.log.last().verdict is Verdict.DIFFERENT


def test_a_certificate_is_judged_by_the_evidence_that_a_session_holds(desk: Desk) -> None:
    about = {name: desk.decided[name] for name in ("spiffe_id", "evidence_sha256", "policy_version")}
    desk.log.add(Kind.ADMISSION, {"decision": "certified", **about})
    assert desk.log.last().verdict is Verdict.SAME
    del desk.log.entries[1]
    assert desk.log.last().verdict is Verdict.NOT_REPEATABLE
    digest = bytes.fromhex(about["evidence_sha256"])
    (filed,) = desk.log.replayed({digest: desk.evidence})
    (swapped,) = desk.log.replayed({digest: desk.evidence + b" "})
    assert (filed.verdict, swapped.repeated) == (Verdict.SAME, "EVIDENCE_SWAPPED")
