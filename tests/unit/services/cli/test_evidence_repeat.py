"""`teemesh evidence repeat`: a past appraisal comes out the same to the byte, or is said to be another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from libs import jcs
from libs.audit.repetition import examine
from libs.policy.document import Policy
from libs.tee.appraisal import OwnNonce, SignedBy
from libs.tee.archived import AppraisalRecord, Bundle, Question
from services.cli.evidence.inputs import read_policy
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, UNUSABLE
from tests.unit.libs.tee.bench import DAY, NOW
from tests.unit.services.cli.evidence_desk import Desk, Run, bench, desk, teemesh, unusable

__all__ = ["bench", "desk", "teemesh"]

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def policy(desk: Desk) -> Policy:
    return read_policy(desk.folder / "policy.json").policy


@pytest.fixture
def document(desk: Desk) -> bytes:
    return (desk.folder / "evidence.json").read_bytes()


def signed(desk: Desk, role: str = "router", now: int = NOW, spki: bytes | None = None) -> Question:
    return Question(role, now, spki, SignedBy(desk.bench.issuer.spki, 3900))


def bundle(desk: Desk, document: bytes, policy: Policy, question: Question) -> tuple[str, AppraisalRecord]:
    """A bundle as the archive gives it out, in a file; and its record."""
    record = examine(document, policy, question).record
    return desk.write("bundle.json", Bundle.of(record, document, policy.document).encode()), record


def lying(desk: Desk, document: bytes, policy: Policy, outcome: dict[str, Any]) -> str:
    """A bundle whose record says something else than what comes out."""
    record = {**examine(document, policy, signed(desk)).record.to_json(), "outcome": outcome}
    value = {"v": 1, "record": record, "evidence": document.decode(), "policy": policy.document.decode()}
    return desk.write("lying.json", jcs.dumps(value))


def test_an_accepted_appraisal_comes_out_the_same(
    desk: Desk, teemesh: Run, capsys: Captured, document: bytes, policy: Policy
) -> None:
    file, record = bundle(desk, document, policy, signed(desk, spki=desk.bench.spki))
    assert teemesh("repeat", file) == ACCEPTED
    text = capsys.readouterr().out
    assert text.startswith(" DEVELOPMENT ")
    assert text.count("PASS") == 11
    assert f"mrtd: {desk.bench.measurement.mrtd}, as required" in text
    assert f"the key with SHA-256 {hashlib.sha256(desk.bench.issuer.spki).hexdigest()}" in text
    assert "its key is compared" in text
    assert "signatures: a bundle holds none" in text
    assert text.splitlines()[-1] == f"SAME record to the byte: {record.digest.hex()}"


def test_a_refused_appraisal_comes_out_the_same_too(
    desk: Desk, teemesh: Run, capsys: Captured, document: bytes, policy: Policy
) -> None:
    nonce = desk.bench.evidence().challenge.nonce
    for question, step, reason in (
        (signed(desk, role="node"), 8, "MEASUREMENT_NOT_ALLOWED"),
        (Question("router", NOW, None, OwnNonce(nonce[::-1])), 5, "NONCE_MISMATCH"),
        (signed(desk, spki=b"another"), 5, "SPKI_MISMATCH"),
        (signed(desk, now=NOW + 4000), 5, "CHALLENGE_TOO_OLD"),
    ):
        file, record = bundle(desk, document, policy, question)
        assert teemesh("repeat", file) == ACCEPTED
        text = capsys.readouterr().out
        assert f"FAIL {step:2}" in text
        assert f"REFUSED {reason}: " in text
        assert text.splitlines()[-1] == f"SAME record to the byte: {record.digest.hex()}"


def test_a_record_that_says_other_than_what_comes_out_is_told(
    desk: Desk, teemesh: Run, capsys: Captured, document: bytes, policy: Policy
) -> None:
    true = examine(document, policy, signed(desk)).record
    file = lying(desk, document, policy, {"refused": {"reason": "TD\x1b_DEBUG", "detail": "", "step": 4}})
    assert teemesh("repeat", file) == REFUSED
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("OTHER record: ")
    assert "refused with TD\\x1b_DEBUG at step 4" in last
    assert last.endswith(f"repeating gives {true.digest.hex()}, which says accepted")


def test_a_record_that_differs_in_one_claim_is_told(
    desk: Desk, teemesh: Run, capsys: Captured, document: bytes, policy: Policy
) -> None:
    outcome = examine(document, policy, signed(desk)).record.to_json()["outcome"]
    appraisal: dict[str, Any] = {**outcome["appraisal"], "valid_until": outcome["appraisal"]["valid_until"] + 1}
    assert teemesh("repeat", lying(desk, document, policy, {"appraisal": appraisal})) == REFUSED
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("OTHER record: ")
    assert last.endswith("which says accepted; they differ in valid_until")


def test_a_truth_value_in_the_place_of_a_number_is_told(
    desk: Desk, teemesh: Run, capsys: Captured, document: bytes, policy: Policy
) -> None:
    appraisal: dict[str, Any] = examine(document, policy, signed(desk)).record.to_json()["outcome"]["appraisal"]
    assert appraisal["policy_version"] == 1
    appraisal["policy_version"] = True
    assert teemesh("repeat", lying(desk, document, policy, {"appraisal": appraisal})) == REFUSED
    assert capsys.readouterr().out.splitlines()[-1].endswith("which says accepted; they differ in policy_version")


def test_json_says_the_same_as_the_text(
    desk: Desk, teemesh: Run, capsys: Captured, document: bytes, policy: Policy
) -> None:
    file, record = bundle(desk, document, policy, signed(desk))
    assert teemesh("repeat", file, "--json") == ACCEPTED
    said = json.loads(capsys.readouterr().out)
    assert (said["same"], said["record"], said["repeated_record"]) == (True, record.digest.hex(), record.digest.hex())
    assert [step["result"] for step in said["appraisal"]["steps"]] == ["pass"] * 11
    assert said["appraisal"]["policy"]["source"] == file
    file = lying(desk, document, policy, {"refused": {"reason": "TD_DEBUG", "detail": "", "step": 4}})
    assert teemesh("repeat", file, "--json") == REFUSED
    said = json.loads(capsys.readouterr().out)
    assert (said["same"], said["repeated_record"]) == (False, record.digest.hex())
    assert (said["recorded_outcome"], said["repeated_outcome"]) == ("refused with TD_DEBUG at step 4", "accepted")


@pytest.mark.parametrize("content", [b"", b"{}", b"no json"])
def test_what_is_no_bundle_is_unusable(desk: Desk, teemesh: Run, capsys: Captured, content: bytes) -> None:
    file = desk.write("no-bundle", content)
    assert unusable(teemesh, capsys, "repeat", file).startswith(f"teemesh: ARCHIVE_MALFORMED: {file}: ")


def test_a_bundle_without_its_evidence_or_of_a_time_without_policy_is_unusable(
    desk: Desk, teemesh: Run, capsys: Captured, document: bytes, policy: Policy
) -> None:
    file, _ = bundle(desk, document, policy, signed(desk, now=NOW + 2 * DAY))
    assert "outside the policy's validity" in unusable(teemesh, capsys, "repeat", file)
    file, _ = bundle(desk, document, policy, signed(desk))
    value = {**json.loads(Path(file).read_bytes()), "evidence": "{}"}
    assert "ARCHIVE_MALFORMED" in unusable(teemesh, capsys, "repeat", desk.write("other.json", jcs.dumps(value)))
    assert teemesh("repeat", "nowhere") == UNUSABLE
