"""`teemesh evidence` over evidence that a software TEE made: every step, every exit status, and hostile words."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from libs import jcs
from libs.identity.certificate import Subject, issue
from libs.policy.compose import Anchors
from libs.policy.document import read
from libs.policy.signatures import SignedPolicy, sign
from libs.tee import binding, evidence
from libs.tee.challenge import Challenge
from libs.tee.nvidia.evidence import GpuEvidence
from libs.tee.nvidia.token import DetachedEat
from libs.tee.steps import TITLES
from services.cli import evidence as command
from services.cli.__main__ import main
from services.cli.composes import render_compose
from services.cli.evidence import ACCEPTED, REFUSED, UNUSABLE
from services.devtee.collateral import CollateralShape
from services.devtee.tls import TlsRequest, issue_tls_key
from tests.fakes.policy_draft import policy_draft
from tests.fakes.snp_platform import chip
from tests.unit.libs.tee.bench import CLAIMS, DAY, NOW, Bench

TRUST_DOMAIN = "mesh.local"


@dataclass(frozen=True, slots=True)
class Desk:
    """A folder with evidence.json, policy.json, ca.pem and whatever a test adds."""

    folder: Path
    bench: Bench
    operators: tuple[Ed25519PrivateKey, ...]

    def write(self, name: str, data: bytes) -> str:
        path = self.folder / name
        path.write_bytes(data)
        return str(path)

    def policy(self, name: str = "policy.json", signers: int = 2, **members: Any) -> str:
        draft = policy_draft(
            TRUST_DOMAIN,
            self.operators,
            self.bench.machine.vendor_root,
            {"router": self.bench.measurement},
            not_before=NOW - DAY,
            not_after=NOW + DAY,
        )
        policy = read({**draft, **members})
        signatures = tuple(sign(policy.document, key) for key in self.operators[:signers])
        return self.write(name, SignedPolicy(policy, signatures).document)

    def compose(self, *operators: Ed25519PrivateKey) -> str:
        keys = tuple(key.public_key().public_bytes_raw() for key in operators or self.operators)
        text = render_compose(Anchors("kms", TRUST_DOMAIN, keys, 2), "sha256:" + "ab" * 32)
        return self.write("kms.json", text)

    def evidence(self, name: str = "evidence.json", **parts: Any) -> str:
        return self.write(name, self.bench.evidence(**parts).document)

    def certificate(self, name: str = "peer.pem") -> str:
        wanted = TlsRequest("peer", ("peer.test",), True, True, True, NOW - 10, NOW + 3600)
        return self.write(name, issue_tls_key(self.bench.td, wanted, NOW).chain[0].encode())

    def collateral(self) -> str:
        return self.write("collateral.json", self.bench.collateral().encode())


Run = Callable[..., int]


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench.create()


@pytest.fixture
def desk(tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The folder is the working one too: no mesh of the machine that runs the tests is found."""
    monkeypatch.chdir(tmp_path)
    desk = Desk(tmp_path, bench, tuple(Ed25519PrivateKey.generate() for _ in range(3)))
    desk.evidence()
    desk.policy()
    ca = x509.load_der_x509_certificate(bench.issuer.certificate_der)
    desk.write("ca.pem", ca.public_bytes(Encoding.PEM))
    return desk


@pytest.fixture
def teemesh() -> Run:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))

    def run(*arguments: str) -> int:
        args = parser.parse_args(["evidence", *arguments])
        code: int = args.run(args)
        return code

    return run


@dataclass(frozen=True, slots=True)
class Outcome:
    code: int
    text: str
    json: dict[str, Any]

    @property
    def results(self) -> list[str]:
        return [step["result"] for step in self.json["steps"]]


@pytest.fixture
def appraise(desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Appraise in both forms, which agree."""

    def act(file: str = "evidence.json", *more: str, pin: tuple[str, ...] = ("--ca", "ca.pem")) -> Outcome:
        policy = () if "--policy" in more else ("--policy", "policy.json")
        now = () if "--now" in more else ("--now", str(NOW))
        arguments = ("appraise", file, *policy, *now, *pin, *more)
        code = teemesh(*arguments)
        text = capsys.readouterr().out
        assert teemesh(*arguments, "--json") == code
        return Outcome(code, text, json.loads(capsys.readouterr().out))

    return act


def _refusal(outcome: Outcome, step: int, reason: str) -> None:
    assert outcome.code == REFUSED
    assert outcome.results == ["pass"] * (step - 1) + ["fail"] + ["not reached"] * (11 - step)
    assert outcome.json["refusal"]["reason"] == reason
    assert outcome.json["accepted"] is False
    assert outcome.text.splitlines()[-1].startswith(f"REFUSED {reason}: ")
    assert f"FAIL {step:2} {TITLES[step]}" in outcome.text


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
    _refusal(appraise("cut.json"), 1, "JSON_MALFORMED")


def test_document_with_a_line_end_is_refused_and_told_how_to_mend_it(
    appraise: Callable[..., Outcome], desk: Desk
) -> None:
    document = desk.bench.evidence().document
    desk.write("edited.json", document + b"\n")
    outcome = appraise("edited.json")
    _refusal(outcome, 1, "EVIDENCE_MALFORMED")
    assert f"head -c {len(document)}" in outcome.text
    assert hashlib.sha256(document).hexdigest() in outcome.text


def test_document_that_was_pretty_printed_is_refused_and_told_its_own_digest(
    appraise: Callable[..., Outcome], desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    document = desk.bench.evidence().document
    desk.write("pretty.json", json.dumps(json.loads(document), indent=2).encode())
    outcome = appraise("pretty.json")
    _refusal(outcome, 1, "EVIDENCE_MALFORMED")
    assert "jq -cSj" in outcome.text
    assert hashlib.sha256(document).hexdigest() in outcome.text
    assert teemesh("show", "pretty.json") == UNUSABLE
    assert "jq -cSj" in capsys.readouterr().err


def test_foreign_vendor_root_fails_at_the_second_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    root = Bench.create().machine.vendor_root
    roots = [{"name": "other", "tee_type": "tdx", "certificate": root.hex(), "development": True}]
    outcome = appraise("evidence.json", "--policy", desk.policy("foreign.json", vendor_roots=roots))
    _refusal(outcome, 2, "VENDOR_ROOT_NOT_TRUSTED")
    assert outcome.json["vendor_root"] is None


def test_old_collateral_fails_at_the_third_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    desk.evidence("old.json", shape=CollateralShape(NOW - 2 * DAY))
    _refusal(appraise("old.json"), 3, "COLLATERAL_TOO_OLD")


def test_attributes_that_policy_does_not_list_fail_at_the_fourth_step(
    appraise: Callable[..., Outcome], desk: Desk
) -> None:
    policy = desk.policy("other.json", td_attributes=["0000001000000080"])
    _refusal(appraise("evidence.json", "--policy", policy), 4, "TD_ATTRIBUTES_NOT_ALLOWED")


def test_without_a_pin_the_challenge_proves_nothing_and_the_flags_are_named(appraise: Callable[..., Outcome]) -> None:
    outcome = appraise(pin=())
    _refusal(outcome, 5, "CHALLENGE_ISSUER_NOT_TRUSTED")
    for flag in ("--ca FILE", "--mesh PATH", "--nonce HEX"):
        assert flag in outcome.text


def test_another_ca_is_refused_without_naming_flags(appraise: Callable[..., Outcome], desk: Desk) -> None:
    desk.write("other.der", Bench.create().issuer.certificate_der)
    outcome = appraise(pin=("--ca", "other.der"))
    _refusal(outcome, 5, "CHALLENGE_ISSUER_NOT_TRUSTED")
    assert "--nonce HEX" not in outcome.text


def test_own_challenge_is_compared_by_its_nonce(appraise: Callable[..., Outcome], desk: Desk) -> None:
    challenge = Challenge.unsigned("auditor", "audit", NOW)
    own = desk.evidence("own.json", challenge=challenge)
    assert appraise(own, pin=("--nonce", challenge.nonce.hex())).code == ACCEPTED
    _refusal(appraise(own, pin=("--nonce", "00" * 32)), 5, "NONCE_MISMATCH")
    _refusal(appraise(own, pin=()), 5, "CHALLENGE_UNSIGNED")


def test_mesh_file_names_the_ca_and_the_default_one_is_found(appraise: Callable[..., Outcome], desk: Desk) -> None:
    (desk.folder / ".teemesh").mkdir()
    desk.write(".teemesh/mesh.json", json.dumps({"mesh_ca": str(desk.folder / "ca.pem")}).encode())
    assert appraise(pin=("--mesh", ".teemesh/mesh.json")).code == ACCEPTED
    outcome = appraise(pin=())
    assert outcome.code == ACCEPTED
    assert "the mesh CA of .teemesh/mesh.json" in outcome.text


def test_old_challenge_fails_at_the_fifth_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    old = desk.evidence("old.json", challenge=desk.bench.issuer.challenge(NOW - 4000))
    _refusal(appraise(old), 5, "CHALLENGE_TOO_OLD")


def test_key_is_compared_where_it_is_given(appraise: Callable[..., Outcome], desk: Desk) -> None:
    spki = desk.bench.spki
    pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(spki) + b"-----END PUBLIC KEY-----\n"
    for given in (spki.hex(), desk.write("key.pem", pem), desk.write("key.der", spki)):
        outcome = appraise("evidence.json", "--spki", given)
        assert outcome.code == ACCEPTED
        assert "its key is compared" in outcome.text
    assert "its key is not compared: give --spki" in appraise().text
    _refusal(appraise("evidence.json", "--spki", "ca.pem"), 5, "SPKI_MISMATCH")


def test_changed_event_fails_at_the_sixth_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    log = [
        replace(event, payload=b"\x01" * 32) if event.name == "compose-hash" else event
        for event in desk.bench.event_log
    ]
    _refusal(appraise(desk.evidence("log.json", event_log=log)), 6, "EVENT_DIGEST_MISMATCH")


def test_other_compose_fails_at_the_seventh_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    _refusal(appraise(desk.evidence("compose.json", app_compose="{}")), 7, "COMPOSE_HASH_MISMATCH")


def test_role_that_policy_does_not_grant_fails_at_the_eighth_step_and_is_named(
    appraise: Callable[..., Outcome],
) -> None:
    outcome = appraise("evidence.json", "--role", "node")
    _refusal(outcome, 8, "MEASUREMENT_NOT_ALLOWED")
    assert "grants nothing to role node" in outcome.text


def test_revoked_machine_fails_at_the_ninth_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    device = appraise().json["findings"]["device_id"]
    policy = desk.policy("revoked.json", devices={"allowed": [], "revoked": [device]})
    outcome = appraise("evidence.json", "--policy", policy)
    _refusal(outcome, 9, "DEVICE_REVOKED")
    assert f"machine: found {device}; required not revoked" in outcome.text
    assert "docs/evidence.md" in outcome.text


def test_missing_gpu_fails_at_the_tenth_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    grant = {"measurements": [desk.bench.measurement.to_json()], "gpu_required": True}
    outcome = appraise("evidence.json", "--policy", desk.policy("gpu.json", roles={"router": grant}))
    _refusal(outcome, 10, "GPU_EVIDENCE_MISSING")


def test_another_role_fails_at_the_last_step(appraise: Callable[..., Outcome], desk: Desk) -> None:
    claims = {**CLAIMS, "role": "kms"}
    _refusal(appraise(desk.evidence("kms.json", claims=claims), "--role", "router"), 11, "ROLE_MISMATCH")


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


def test_certificate_is_appraised_with_collateral(appraise: Callable[..., Outcome], desk: Desk) -> None:
    certificate, collateral = desk.certificate(), desk.collateral()
    flags = ("--collateral", collateral, "--role", "router")
    outcome = appraise(certificate, *flags, pin=())
    assert outcome.code == ACCEPTED
    assert outcome.results == ["pass"] * 11
    assert outcome.json["findings"]["app_id"] == desk.bench.td.identity.app_id.hex()
    der = desk.write(
        "peer.der", x509.load_pem_x509_certificate(Path(certificate).read_bytes()).public_bytes(Encoding.DER)
    )
    again = appraise(der, *flags, pin=())
    assert (again.code, again.json["digest"]) == (ACCEPTED, outcome.json["digest"])


def test_a_certificates_age_counts_by_the_word_of_its_issuer_alone(
    appraise: Callable[..., Outcome], desk: Desk
) -> None:
    flags = (desk.certificate(), "--collateral", desk.collateral(), "--role", "router")
    issuer = ("--issuer", desk.write("ca.pem", desk.bench.td.keys.ca.pem.encode()))
    assert appraise(*flags, *issuer, pin=()).json["valid_until"] == NOW + 3600
    _refusal(appraise(*flags, *issuer, "--max-age-seconds", "5", pin=()), 5, "RATLS_CERTIFICATE_TOO_OLD")
    stranger = ("--issuer", desk.write("other.pem", Bench.create().td.keys.ca.pem.encode()))
    _refusal(appraise(*flags, *stranger, pin=()), 5, "RATLS_ISSUER_NOT_TRUSTED")
    assert "of any age" in appraise(*flags, pin=()).text


def test_a_certificate_of_another_application_fails_at_the_last_step(
    appraise: Callable[..., Outcome], desk: Desk
) -> None:
    flags = (desk.certificate(), "--collateral", desk.collateral(), "--role", "router")
    _refusal(appraise(*flags, "--app-id", "00" * 20, pin=()), 11, "RATLS_APP_ID_MISMATCH")


def _unusable(teemesh: Run, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert teemesh(*arguments) == UNUSABLE
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    return said.err


@pytest.mark.parametrize(
    "flags",
    [
        ("--ca", "ca.pem"),
        ("--nonce", "00" * 32),
        ("--spki", "00"),
        ("--role", "router", "--spki", "00", "--collateral", "collateral.json"),
        ("--collateral", "collateral.json"),
        ("--role", "router"),
        ("--role", "router", "--collateral", "collateral.json", "--max-age-seconds", "5"),
    ],
)
def test_flags_that_do_not_fit_a_certificate_are_refused(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    desk.collateral()
    said = _unusable(teemesh, capsys, "appraise", desk.certificate(), "--policy", "policy.json", *flags)
    assert said.startswith("teemesh: INPUT_UNREADABLE: ")


@pytest.mark.parametrize(
    "flags", [("--collateral", "ca.pem"), ("--app-id", "00" * 20), ("--max-age-seconds", "1"), ("--issuer", "ca.pem")]
)
def test_flags_that_do_not_fit_a_document_are_refused(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    _unusable(teemesh, capsys, "appraise", "evidence.json", "--policy", "policy.json", *flags)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("nowhere.json", None, "INPUT_UNREADABLE"),
        ("empty", b"  \n", "INPUT_UNREADABLE"),
        ("words", b"hello", "INPUT_UNREADABLE"),
        ("list.json", b"[]", "INPUT_UNREADABLE"),
        ("torn.pem", b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n", "INPUT_UNREADABLE"),
        ("short.hex", b"0400", "QUOTE_MALFORMED"),
        ("sgx.bin", b"\x03\x00\x02\x00" + bytes(600), "QUOTE_MALFORMED"),
        ("other.json", b"{}", "EVIDENCE_MALFORMED"),
        ("torn.json", b"{", "JSON_MALFORMED"),
        ("torn.der", b"\x30\x82\x01\x00", "RATLS_CERTIFICATE_MALFORMED"),
        ("large.json", b'{"v":"' + b"a" * evidence.MAX_DOCUMENT_BYTES + b'"}', "EVIDENCE_TOO_LARGE"),
    ],
)
def test_what_cannot_be_shown_is_one_line_with_a_reason(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str], file: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        desk.write(file, content)
    assert _unusable(teemesh, capsys, "show", file).startswith(f"teemesh: {reason}: ")


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
    ],
)
def test_what_cannot_be_judged_by_is_one_line_with_a_reason(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], reason: str
) -> None:
    desk.write("torn.der", b"\x30\x82\x01\x00")
    assert _unusable(teemesh, capsys, "appraise", "evidence.json", *flags).startswith(f"teemesh: {reason}: ")


def test_evidence_without_a_role_needs_one_on_the_command_line(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    nameless = desk.evidence("nameless.json", claims={"role": 7})
    assert "--role" in _unusable(teemesh, capsys, "appraise", nameless, "--policy", "policy.json", "--now", str(NOW))


def test_mesh_certificate_is_told_from_its_evidence(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    issuer = desk.bench.issuer
    subject = Subject(TRUST_DOMAIN, "router", "1", b"\x05" * 32)
    der = issue(subject, issuer.key.public_key(), issuer.key, issuer.certificate_der, now=NOW)
    said = _unusable(teemesh, capsys, "show", desk.write("member.der", der))
    assert "RATLS_EVIDENCE_MISSING" in said
    assert f"teemesh evidence fetch --digest {'05' * 32}" in said


def _shown(teemesh: Run, capsys: pytest.CaptureFixture[str], file: str) -> tuple[str, dict[str, Any]]:
    assert teemesh("show", file) == ACCEPTED
    text = capsys.readouterr().out
    assert text.startswith(" UNVERIFIED ")
    assert teemesh("show", file, "--json") == ACCEPTED
    members: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert members["verified"] is False
    return text, members


def test_show_says_what_a_document_states(desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]) -> None:
    text, members = _shown(teemesh, capsys, "evidence.json")
    document = (desk.folder / "evidence.json").read_bytes()
    measurement = desk.bench.measurement
    assert members["document"]["digest"] == hashlib.sha256(document).hexdigest()
    assert members["document"]["bytes"] == len(document)
    quote = members["tdx_quote"]
    assert (quote["quote_version"], quote["mrtd"], quote["rtmr2"]) == (4, measurement.mrtd, measurement.rtmr2)
    assert (quote["td_attributes"], quote["debug"]) == ("0000001000000000", False)
    identity = members["identity"]
    assert (identity["compose_hash"], identity["app_id"]) == (measurement.compose_hash, measurement.app_id)
    assert identity["instance_id"] == desk.bench.td.identity.instance_id.hex()
    assert [event["event"] for event in members["event_log"]["runtime_events"]][-1] == "system-ready"
    assert (members["challenge"]["issuer"], members["challenge"]["issued_at"]) == ("kms/1", NOW)
    assert members["claims"]["role"] == "router"
    assert members["collateral"]["tcb_evaluation_number"] == 17
    assert members["collateral"]["tcb_info_issued_at"] <= NOW < members["collateral"]["tcb_info_ends_at"]
    assert members["gpu_evidence"] == {"present": False}
    assert f"issued at: 2026-09-21 14:13:20Z ({NOW})" in text


def test_show_says_what_a_certificate_states(desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _, members = _shown(teemesh, capsys, desk.certificate())
    assert members["certificate"]["not_after"] == NOW + 3600
    assert members["tdx_quote"]["mrtd"] == desk.bench.measurement.mrtd


@pytest.mark.parametrize("written", ["binary", "hex", "HEX", "0x"])
def test_show_reads_a_quote_in_every_writing(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str], written: str
) -> None:
    quote = desk.bench.td.quote(b"\x09" * 64) + bytes(70)
    text = {"binary": quote, "hex": quote.hex().encode() + b"\n", "HEX": quote.hex().upper().encode()}
    file = desk.write("quote", text.get(written, b"0x" + quote.hex().encode()))
    _, members = _shown(teemesh, capsys, file)
    assert members["tdx_quote"]["report_data"] == "09" * 64
    assert "not appraised" in _unusable(teemesh, capsys, "appraise", file, "--policy", "policy.json")


def _token(**claims: Any) -> str:
    """A token by nobody: showing it asks for no signature."""
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b'=').decode()}.AAAA"


def _gpu_evidence(device: str, switches: DetachedEat | None = None) -> GpuEvidence:
    overall = _token(iss="https://nras.test", iat=NOW)
    return GpuEvidence(DetachedEat(overall, {"GPU-0": device}), switches, {}, ())


def test_show_says_what_gpus_and_switches_claim(desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]) -> None:
    switches = DetachedEat(_token(iss="https://nras.test"), {"GPU-0": _token(hwmodel="a switch that says it is a GPU")})
    gpu = _gpu_evidence(_token(hwmodel="DEV100", measres="success", exp=NOW + 60), switches)
    text, members = _shown(teemesh, capsys, desk.evidence("gpu.json", gpu_evidence=gpu))
    assert members["gpu_evidence"]["devices"] == members["gpu_evidence"]["switches"] == ["GPU-0"]
    assert (members["gpu_evidence"]["iss"], members["gpu_evidence"]["issued_at"]) == ("https://nras.test", NOW)
    assert members["gpu_0"] == {"hwmodel": "DEV100", "measres": "success", "ends_at": NOW + 60}
    assert members["gpu_0_of_the_switch_token"] == {"hwmodel": "a switch that says it is a GPU"}
    assert "hwmodel: DEV100" in text


@pytest.mark.parametrize("token", ["", "a", "a.b.c", "a.\u00e9.c", "a.W10.c"])
def test_token_that_cannot_be_read_is_said_to_be_so(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str], token: str
) -> None:
    _, members = _shown(teemesh, capsys, desk.evidence("odd.json", gpu_evidence=_gpu_evidence(token)))
    assert members["gpu_0"] == {"token": "its claims cannot be read"}


def test_show_says_what_a_report_of_another_technology_states(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    challenge = desk.bench.issuer.challenge()
    bound = binding.report_data(challenge.nonce, desk.bench.spki, CLAIMS)
    document = evidence.assemble(
        quote=chip().report(report_data=bound),
        event_log=(),
        app_compose="{}",
        spki=desk.bench.spki,
        claims=CLAIMS,
        challenge=challenge,
        collateral=chip().endorsement(),
    ).document
    _, members = _shown(teemesh, capsys, desk.write("snp.json", document))
    assert members["document"]["tee_type"] == "sev-snp"
    assert members["sev_snp_report"]["report_data"] == bound.hex()
    assert members["endorsement"]["revocation_list"] is True


def test_collateral_that_cannot_be_read_hides_nothing_else(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    value = jcs.loads_object(desk.bench.evidence().document)
    value["collateral"] = {**value["collateral"], "tcb_info": "no", "pck_crl": "zz", "root_ca_crl": "00"}
    _, members = _shown(teemesh, capsys, desk.write("odd.json", jcs.dumps(value)))
    assert members["collateral"]["tcb_evaluation_number"] == "cannot be read: JSON_MALFORMED"
    assert members["collateral"]["pck_crl_ends_at"] == "cannot be read"
    assert members["collateral"]["qe_identity_issued_at"] <= NOW


def test_identity_that_the_log_does_not_state_is_said_with_its_reason(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    text, _ = _shown(teemesh, capsys, desk.evidence("bare.json", event_log=()))
    assert "IDENTITY_EVENT_MISSING" in text


def test_words_of_the_evidence_cannot_steer_the_terminal(
    appraise: Callable[..., Outcome], desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b[2J\nACCEPTED \u202e"
    claims = {"role": hostile, hostile: [hostile, {"a": hostile}], "late": 2**53 - 1}
    text, members = _shown(teemesh, capsys, desk.evidence("hostile.json", claims=claims))
    assert members["claims"]["role"] == hostile
    text += appraise("hostile.json").text + appraise("hostile.json", "--role", "router").text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert not any(line.startswith("ACCEPTED") for line in text.splitlines())


def test_the_command_line_knows_the_three_statuses(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    appraise = ["evidence", "appraise", "evidence.json", "--policy", "policy.json", "--ca", "ca.pem"]
    assert main([*appraise, "--now", str(NOW)]) == ACCEPTED
    assert main([*appraise, "--now", str(NOW + 2 * DAY)]) == REFUSED
    assert main(["evidence", "show", "nowhere"]) == UNUSABLE
    assert capsys.readouterr().err.startswith("teemesh: INPUT_UNREADABLE: cannot read nowhere")


def test_fetching_overwrites_nothing_and_needs_a_mesh(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    fetch = ["evidence", "fetch", "--state", str(desk.folder / "mesh"), "--role", "kms", "--out"]
    assert main([*fetch, "evidence.json"]) == 1
    assert capsys.readouterr().err.startswith("teemesh: OUTPUT_EXISTS: ")
    assert main([*fetch, "new.json"]) == 1
    assert "teemesh up" in capsys.readouterr().err
    assert not (desk.folder / "new.json").exists()


def test_the_manual_says_what_to_do_about_every_reason() -> None:
    root = Path(__file__).parents[4]
    known = {
        reason
        for module in (root / "libs" / "tee").rglob("*.py")
        for reason in re.findall(r'^    reason = "([A-Z_]+)"$', module.read_text(), re.MULTILINE)
    }
    manual = (root / "docs" / "evidence.md").read_text()
    rows = [line for line in manual.splitlines() if line.startswith("| `")]
    named = re.findall(r"`([A-Z]+_[A-Z_]+)`", " ".join(row.split("|")[1] for row in rows))
    assert len(named) == len(set(named))
    assert known - set(named) == set()
    assert set(named) - known == {"JSON_MALFORMED", "EVIDENCE_UNKNOWN", "EVIDENCE_MISMATCH"}
