"""`teemesh evidence appraise` of documents: every step, every exit status, every flag."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.tee.challenge import Challenge
from libs.tee.steps import TITLES
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, UNUSABLE
from services.devtee.collateral import CollateralShape
from tests.unit.libs.tee.bench import CLAIMS, DAY, NOW, Bench
from tests.unit.services.cli.evidence_desk import (
    Desk,
    Outcome,
    Run,
    appraise,
    bench,
    desk,
    refusal,
    teemesh,
    unusable,
)

__all__ = ["appraise", "bench", "desk", "teemesh"]


def test_every_step_is_listed_with_what_it_compared(appraise: Callable[..., Outcome], desk: Desk) -> None:
    outcome = appraise()
    assert outcome.code == ACCEPTED
    assert outcome.results == ["pass"] * 11
    for number, title in TITLES.items():
        assert f"PASS {number:2} {title}" in outcome.text
    compared = {each["name"]: each for step in outcome.json["steps"] for each in step["compared"]}
    assert compared["mrtd"]["found"] == compared["mrtd"]["required"] == desk.bench.measurement.mrtd
    assert f"mrtd: {desk.bench.measurement.mrtd}, as required" in outcome.text
    assert "TCB evaluation number: found 17; required 0 or more" in outcome.text


def test_the_last_line_is_the_verdict_and_says_development_loudly(appraise: Callable[..., Outcome]) -> None:
    outcome = appraise()
    last = outcome.text.splitlines()[-1]
    assert last.startswith("ACCEPTED for role router until ")
    assert str(outcome.json["valid_until"]) in last
    assert "devtee: DEVELOPMENT, nothing is proven to run on hardware" in last
    assert outcome.text.startswith(" DEVELOPMENT ")
    assert outcome.json["vendor_root"] == {"name": "devtee", "development": True}
    assert outcome.json["valid_until"] == outcome.json["findings"]["valid_until"]


@pytest.mark.parametrize("now", [str(NOW), "2026-09-21T14:13:20Z", "2026-09-21T16:13:20+02:00"])
def test_the_time_is_given_as_seconds_or_as_a_date(appraise: Callable[..., Outcome], now: str) -> None:
    assert appraise("evidence.json", "--now", now).json["now"] == NOW


@pytest.mark.parametrize("now", ["2026-09-21T14:13:20", "yesterday", "-5"])
def test_a_time_that_says_no_moment_is_refused(desk: Desk, teemesh: Run, now: str) -> None:
    with pytest.raises(SystemExit) as ended:
        teemesh("appraise", "evidence.json", "--policy", "policy.json", f"--now={now}")
    assert ended.value.code == UNUSABLE


def test_document_that_is_cut_fails_at_the_first_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    document = desk.bench.evidence().document
    desk.write("cut.json", document[:-10])
    refusal(appraise("cut.json"), 1, "JSON_MALFORMED")


def test_document_with_a_line_end_is_refused_and_told_how_to_mend_it(
    appraise: Callable[..., Outcome], desk: Desk
) -> None:
    document = desk.bench.evidence().document
    desk.write("edited.json", document + b"\n")
    outcome = appraise("edited.json")
    refusal(outcome, 1, "EVIDENCE_MALFORMED")
    assert f"head -c {len(document)}" in outcome.text
    assert hashlib.sha256(document).hexdigest() in outcome.text


def test_document_that_was_pretty_printed_is_refused_and_told_its_own_digest(
    appraise: Callable[..., Outcome], desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    document = desk.bench.evidence().document
    desk.write("pretty.json", json.dumps(json.loads(document), indent=2).encode())
    outcome = appraise("pretty.json")
    refusal(outcome, 1, "EVIDENCE_MALFORMED")
    assert "jq -cSj" in outcome.text
    assert hashlib.sha256(document).hexdigest() in outcome.text
    assert teemesh("show", "pretty.json") == UNUSABLE
    assert "jq -cSj" in capsys.readouterr().err


def test_foreign_vendor_root_fails_at_the_second_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    root = Bench.create().machine.vendor_root
    roots = [{"name": "other", "tee_type": "tdx", "certificate": root.hex(), "development": True}]
    outcome = appraise("evidence.json", "--policy", desk.policy("foreign.json", vendor_roots=roots))
    refusal(outcome, 2, "VENDOR_ROOT_NOT_TRUSTED")
    assert outcome.json["vendor_root"] is None


def test_old_collateral_fails_at_the_third_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    desk.evidence("old.json", shape=CollateralShape(NOW - 2 * DAY))
    refusal(appraise("old.json"), 3, "COLLATERAL_TOO_OLD")


def test_attributes_that_policy_does_not_list_fail_at_the_fourth_step(
    appraise: Callable[..., Outcome], desk: Desk
) -> None:
    policy = desk.policy("other.json", td_attributes=["0000001000000080"])
    refusal(appraise("evidence.json", "--policy", policy), 4, "TD_ATTRIBUTES_NOT_ALLOWED")


def test_without_a_pin_the_challenge_proves_nothing_and_the_flags_are_named(appraise: Callable[..., Outcome]) -> None:
    outcome = appraise(pin=())
    refusal(outcome, 5, "CHALLENGE_ISSUER_NOT_TRUSTED")
    for flag in ("--ca FILE", "--mesh PATH", "--nonce HEX"):
        assert flag in outcome.text


def test_another_ca_is_refused_without_naming_flags(appraise: Callable[..., Outcome], desk: Desk) -> None:
    desk.write("other.der", Bench.create().issuer.certificate_der)
    outcome = appraise(pin=("--ca", "other.der"))
    refusal(outcome, 5, "CHALLENGE_ISSUER_NOT_TRUSTED")
    assert "--nonce HEX" not in outcome.text


def test_own_challenge_is_compared_by_its_nonce(appraise: Callable[..., Outcome], desk: Desk) -> None:
    challenge = Challenge.unsigned("auditor", "audit", NOW)
    own = desk.evidence("own.json", challenge=challenge)
    assert appraise(own, pin=("--nonce", challenge.nonce.hex())).code == ACCEPTED
    refusal(appraise(own, pin=("--nonce", "00" * 32)), 5, "NONCE_MISMATCH")
    refusal(appraise(own, pin=()), 5, "CHALLENGE_UNSIGNED")


def test_mesh_file_names_the_ca_and_the_default_one_is_found(appraise: Callable[..., Outcome], desk: Desk) -> None:
    (desk.folder / ".teemesh").mkdir()
    desk.write(".teemesh/mesh.json", json.dumps({"mesh_ca": str(desk.folder / "ca.pem")}).encode())
    assert appraise(pin=("--mesh", ".teemesh/mesh.json")).code == ACCEPTED
    outcome = appraise(pin=())
    assert outcome.code == ACCEPTED
    assert "the mesh CA of .teemesh/mesh.json" in outcome.text


def test_old_challenge_fails_at_the_fifth_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    old = desk.evidence("old.json", challenge=desk.bench.issuer.challenge(NOW - 4000))
    refusal(appraise(old), 5, "CHALLENGE_TOO_OLD")


def test_key_is_compared_where_it_is_given(appraise: Callable[..., Outcome], desk: Desk) -> None:
    spki = desk.bench.spki
    pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(spki) + b"-----END PUBLIC KEY-----\n"
    for given in (spki.hex(), desk.write("key.pem", pem), desk.write("key.der", spki)):
        outcome = appraise("evidence.json", "--spki", given)
        assert outcome.code == ACCEPTED
        assert "its key is compared" in outcome.text
    assert "its key is not compared: give --spki" in appraise().text
    refusal(appraise("evidence.json", "--spki", "ca.pem"), 5, "SPKI_MISMATCH")


def test_changed_event_fails_at_the_sixth_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    log = [
        replace(event, payload=b"\x01" * 32) if event.name == "compose-hash" else event
        for event in desk.bench.event_log
    ]
    refusal(appraise(desk.evidence("log.json", event_log=log)), 6, "EVENT_DIGEST_MISMATCH")


def test_other_compose_fails_at_the_seventh_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    refusal(appraise(desk.evidence("compose.json", app_compose="{}")), 7, "COMPOSE_HASH_MISMATCH")


def test_role_that_policy_does_not_grant_fails_at_the_eighth_step_and_is_named(
    appraise: Callable[..., Outcome],
) -> None:
    outcome = appraise("evidence.json", "--role", "node")
    refusal(outcome, 8, "MEASUREMENT_NOT_ALLOWED")
    assert "grants nothing to role node" in outcome.text


def test_revoked_machine_fails_at_the_ninth_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    device = appraise().json["findings"]["device_id"]
    policy = desk.policy("revoked.json", devices={"allowed": [], "revoked": [device]})
    outcome = appraise("evidence.json", "--policy", policy)
    refusal(outcome, 9, "DEVICE_REVOKED")
    assert f"machine: found {device}; required not revoked" in outcome.text
    assert "docs/evidence.md" in outcome.text


def test_missing_gpu_fails_at_the_tenth_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    grant = {"measurements": [desk.bench.measurement.to_json()], "gpu_required": True}
    outcome = appraise("evidence.json", "--policy", desk.policy("gpu.json", roles={"router": grant}))
    refusal(outcome, 10, "GPU_EVIDENCE_MISSING")


def test_another_role_fails_at_the_last_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    claims = {**CLAIMS, "role": "kms"}
    refusal(appraise(desk.evidence("kms.json", claims=claims), "--role", "router"), 11, "ROLE_MISMATCH")


def test_signatures_are_judged_by_a_compose_or_said_not_to_be(appraise: Callable[..., Outcome], desk: Desk) -> None:
    assert "nobody's was checked against measured operators: give --compose" in appraise().text
    outcome = appraise("evidence.json", "--compose", desk.compose())
    assert outcome.code == ACCEPTED
    assert "enough of the operators that" in outcome.text


def test_policy_that_is_not_in_force_accepts_nothing(appraise: Callable[..., Outcome], desk: Desk) -> None:
    strangers = desk.compose(*(Ed25519PrivateKey.generate() for _ in range(3)))
    cases = {
        "POLICY_SIGNATURES_INSUFFICIENT": ("--policy", desk.policy("one.json", signers=1)),
        "POLICY_NOT_VALID_NOW": ("--policy", desk.policy("over.json", not_after=NOW)),
    }
    for reason, flags in (*cases.items(), ("POLICY_SIGNATURES_INSUFFICIENT", ("--compose", strangers))):
        outcome = appraise("evidence.json", *flags)
        assert outcome.code == REFUSED
        assert outcome.results == ["pass"] * 11
        assert outcome.json["accepted"] is False
        assert outcome.json["policy"]["refusal"]["reason"] == reason
        assert "NOT IN FORCE" in outcome.text
        assert outcome.text.splitlines()[-1].startswith(f"REFUSED {reason}")


@pytest.mark.parametrize(
    "flags", [("--collateral", "ca.pem"), ("--app-id", "00" * 20), ("--max-age-seconds", "1"), ("--issuer", "ca.pem")]
)
def test_flags_that_do_not_fit_a_document_are_refused(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    unusable(teemesh, capsys, "appraise", "evidence.json", "--policy", "policy.json", *flags)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--policy", "nowhere.json"), "INPUT_UNREADABLE"),
        (("--policy", "evidence.json"), "POLICY_MALFORMED"),
        (("--policy", "policy.json", "--compose", "policy.json"), "COMPOSE_MALFORMED"),
        (("--policy", "policy.json", "--ca", "policy.json"), "INPUT_UNREADABLE"),
        (("--policy", "policy.json", "--ca", "torn.der"), "CERTIFICATE_NOT_ACCEPTED"),
        (("--policy", "policy.json", "--mesh", "policy.json"), "INPUT_UNREADABLE"),
        (("--policy", "policy.json", "--spki", "policy.json"), "INPUT_UNREADABLE"),
        (("--policy", "policy.json", "--spki", "00"), "INPUT_UNREADABLE"),
        (("--policy", "policy.json", "--spki", ""), "INPUT_UNREADABLE"),
        ((), "INPUT_UNREADABLE"),
    ],
)
def test_what_cannot_be_judged_by_is_one_line_with_a_reason(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], reason: str
) -> None:
    desk.write("torn.der", b"\x30\x82\x01\x00")
    assert unusable(teemesh, capsys, "appraise", "evidence.json", *flags).startswith(f"teemesh: {reason}: ")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--policy", "odd.json"), "POLICY_MALFORMED: odd.json: "),
        (("--policy", "policy.json", "--compose", "odd.json"), "COMPOSE_MALFORMED: odd.json: "),
        (("--policy", "policy.json", "--ca", "empty"), "INPUT_UNREADABLE: empty: the file is empty"),
        (("--policy", "policy.json", "--ca", "words"), "INPUT_UNREADABLE: words: the file is no evidence document"),
        (("--policy", "policy.json", "--ca", "odd.json"), "INPUT_UNREADABLE: odd.json is no certificate"),
        (("--policy", "policy.json", "--ca", "torn.der"), "CERTIFICATE_NOT_ACCEPTED: torn.der: "),
        (("--policy", "policy.json", "--spki", "words"), "INPUT_UNREADABLE: words is no public key"),
        ((), "INPUT_UNREADABLE: nothing says which policy: give --policy FILE, or --mesh PATH"),
        (("--mesh", "odd.json"), "INPUT_UNREADABLE: odd.json has no usable policy"),
    ],
)
def test_what_cannot_be_used_is_named_where_several_files_are_given(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    for name, content in (("odd.json", b"{}"), ("empty", b""), ("words", b"hello"), ("torn.der", b"\x30\x82\x01\x00")):
        desk.write(name, content)
    assert unusable(teemesh, capsys, "appraise", "evidence.json", *flags).startswith(f"teemesh: {said}")
    assert unusable(teemesh, capsys, "appraise", "empty", *flags).startswith("teemesh: INPUT_UNREADABLE: empty: ")


@pytest.mark.parametrize("flags", [("--mesh", "elsewhere/mesh.json"), ()], ids=["named", "here"])
def test_policy_is_the_one_of_the_mesh_unless_another_is_given(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    folder = "elsewhere" if flags else ".teemesh"
    (desk.folder / folder).mkdir()
    members = {"mesh_ca": str(desk.folder / "ca.pem"), "policy": "../policy.json"}
    desk.write(f"{folder}/mesh.json", json.dumps(members).encode())
    arguments = ("appraise", "evidence.json", "--now", str(NOW), *flags)
    assert teemesh(*arguments) == ACCEPTED
    assert f"from {folder}/../policy.json\n" in capsys.readouterr().out
    foreign = desk.policy("foreign.json", not_after=NOW)
    assert teemesh(*arguments, "--policy", foreign) == REFUSED
    assert f"from {foreign}\n" in capsys.readouterr().out


def test_evidence_without_a_role_needs_one_on_the_command_line(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    nameless = desk.evidence("nameless.json", claims={"role": 7})
    assert "--role" in unusable(teemesh, capsys, "appraise", nameless, "--policy", "policy.json", "--now", str(NOW))
