"""What was judged for the record is judged again, offline, with the byte-identical result."""

from __future__ import annotations

import hashlib
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from libs import jcs
from libs.audit.repetition import Examination, examine, repeat
from libs.identity.certificate import spki_of
from libs.policy.document import Policy, read
from libs.tee.appraisal import Appraisal, OwnNonce, SignedBy
from libs.tee.archived import Accepted, ArchiveMalformed, Bundle, Question, Refused
from libs.tee.challenge import Challenge
from libs.tee.steps import Record
from tests.fakes.joined_mesh import JoinedMesh

KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = spki_of(KEY.public_key())


@pytest.fixture
def policy(mesh: JoinedMesh) -> Policy:
    return read(mesh.draft)


@pytest.fixture
def challenge() -> Challenge:
    return Challenge.unsigned("spiffe://mesh.test/attestation/1", "appraisal", int(time.time()))


@pytest.fixture
def document(mesh: JoinedMesh, challenge: Challenge) -> bytes:
    return mesh.evidence("ledger", challenge, KEY).document


def own(challenge: Challenge, role: str = "ledger", later: int = 0) -> Question:
    return Question(role, challenge.issued_at + later, SPKI, OwnNonce(challenge.nonce))


def bundle(examination: Examination, document: bytes, policy: Policy) -> bytes:
    return Bundle.of(examination.record, document, policy.document).encode()


def test_an_accepted_appraisal_repeats(document: bytes, policy: Policy, challenge: Challenge) -> None:
    examination = examine(document, policy, own(challenge))
    assert isinstance(examination.verdict, Appraisal)
    assert examination.record.outcome == Accepted(examination.verdict.to_json())
    assert repeat(bundle(examination, document, policy)) == examination.record.encode()


def test_every_question_can_be_refused_and_repeats(document: bytes, mesh: JoinedMesh, challenge: Challenge) -> None:
    policy = read({**mesh.draft, "not_after": challenge.issued_at + 60 * 86400})
    cases = [
        (document, own(challenge, "kms"), "MEASUREMENT_NOT_ALLOWED", 8),
        (document, own(challenge, later=40 * 86400), "COLLATERAL_NOT_CURRENT", 2),
        (document, Question("ledger", challenge.issued_at, SPKI, OwnNonce(bytes(32))), "NONCE_MISMATCH", 5),
        (document, Question("ledger", challenge.issued_at, SPKI, SignedBy(SPKI, 60)), "CHALLENGE_UNSIGNED", 5),
        (document, Question("ledger", challenge.issued_at, b"other", OwnNonce(challenge.nonce)), "SPKI_MISMATCH", 5),
        (document[:-1], own(challenge), "JSON_MALFORMED", 1),
        (b"{}", own(challenge), "EVIDENCE_MALFORMED", 1),
    ]
    for shown, question, reason, step in cases:
        examination = examine(shown, policy, question)
        outcome = examination.record.outcome
        assert isinstance(outcome, Refused)
        assert (outcome.reason, outcome.step) == (reason, step)
        assert examination.refusal is not None
        seen = Record()
        assert examine(shown, policy, question, seen).record == examination.record
        assert seen.steps[-1].number == step
        assert repeat(bundle(examination, shown, policy)) == examination.record.encode()


def test_a_time_outside_the_policys_validity_is_refused(
    document: bytes, mesh: JoinedMesh, challenge: Challenge
) -> None:
    policy = read({**mesh.draft, "not_before": challenge.issued_at - 10, "not_after": challenge.issued_at + 10})

    def judged(later: int) -> bytes:
        return bundle(examine(document, policy, own(challenge, later=later)), document, policy)

    for later in (-10, 9):
        assert repeat(judged(later)) == Bundle.decode(judged(later)).record.encode()
    for later in (-11, 10):
        with pytest.raises(ArchiveMalformed, match="outside the policy's validity"):
            repeat(judged(later))


def test_a_policy_with_a_root_of_no_known_version_is_refused(
    document: bytes, mesh: JoinedMesh, policy: Policy, challenge: Challenge
) -> None:
    root = bytearray(mesh.machine.vendor_root)
    root[root.index(bytes.fromhex("a003020102")) + 4] = 7
    (given,) = mesh.draft["vendor_roots"]
    text = jcs.dumps({**mesh.draft, "vendor_roots": [{**given, "certificate": root.hex()}]})
    value = examine(document, policy, own(challenge)).record.to_json()
    value["policy"] = hashlib.sha256(text).hexdigest()
    data = jcs.dumps({"v": 1, "record": value, "evidence": document.decode(), "policy": text.decode()})
    with pytest.raises(ArchiveMalformed, match="no policy"):
        repeat(data)


def test_only_what_passed_the_binding_is_an_answer(document: bytes, policy: Policy, challenge: Challenge) -> None:
    for question, answers in (
        (own(challenge), True),
        (own(challenge, "kms"), True),
        (Question("ledger", challenge.issued_at, b"other", OwnNonce(challenge.nonce)), False),
        (Question("ledger", challenge.issued_at, SPKI, OwnNonce(bytes(32))), False),
    ):
        assert examine(document, policy, question).is_of_an_answer == answers
    assert not examine(b"{}", policy, own(challenge)).is_of_an_answer


def test_a_record_that_says_other_than_what_was_judged_is_found_out(
    document: bytes, policy: Policy, challenge: Challenge
) -> None:
    examination = examine(document, policy, own(challenge, "kms"))
    accepted = examine(document, policy, own(challenge)).record.outcome
    assert isinstance(accepted, Accepted)
    lie = Bundle.of(examination.record, document, policy.document).record.to_json()
    lie["outcome"] = {"appraisal": dict(accepted.appraisal)}
    told = jcs.dumps({"v": 1, "record": lie, "evidence": document.decode(), "policy": policy.document.decode()})
    assert repeat(told) == examination.record.encode() != jcs.dumps(lie)


@pytest.mark.parametrize("text", [b"{}", b"no policy"])
def test_a_bundle_without_a_policy_is_refused(
    document: bytes, challenge: Challenge, policy: Policy, text: bytes
) -> None:
    value = examine(document, policy, own(challenge)).record.to_json()
    value["policy"] = hashlib.sha256(text).hexdigest()
    data = jcs.dumps({"v": 1, "record": value, "evidence": document.decode(), "policy": text.decode()})
    with pytest.raises(ArchiveMalformed, match="no policy"):
        repeat(data)


def test_a_policy_in_another_form_is_refused(document: bytes, challenge: Challenge, policy: Policy) -> None:
    text = b" " + policy.document
    value = examine(document, policy, own(challenge)).record.to_json()
    value["policy"] = hashlib.sha256(text).hexdigest()
    data = jcs.dumps({"v": 1, "record": value, "evidence": document.decode(), "policy": text.decode()})
    with pytest.raises(ArchiveMalformed, match="canonical"):
        repeat(data)
