"""`teemesh evidence` of RA-TLS certificates, and of mesh certificates, which are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from libs.identity.certificate import Subject, issue
from services.cli.terminal.verdicts import ACCEPTED
from tests.unit.libs.tee.bench import NOW, Bench
from tests.unit.services.cli.evidence_desk import (
    TRUST_DOMAIN,
    Desk,
    Outcome,
    Run,
    appraise,
    bench,
    desk,
    refusal,
    shown,
    teemesh,
    unusable,
)

__all__ = ["appraise", "bench", "desk", "teemesh"]


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
    refusal(appraise(*flags, *issuer, "--max-age-seconds", "5", pin=()), 5, "RATLS_CERTIFICATE_TOO_OLD")
    stranger = ("--issuer", desk.write("other.pem", Bench.create().td.keys.ca.pem.encode()))
    refusal(appraise(*flags, *stranger, pin=()), 5, "RATLS_ISSUER_NOT_TRUSTED")
    assert "of any age" in appraise(*flags, pin=()).text


def test_a_certificate_of_another_application_fails_at_the_last_step(
    appraise: Callable[..., Outcome], desk: Desk
) -> None:
    flags = (desk.certificate(), "--collateral", desk.collateral(), "--role", "router")
    refusal(appraise(*flags, "--app-id", "00" * 20, pin=()), 11, "RATLS_APP_ID_MISMATCH")


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
    said = unusable(teemesh, capsys, "appraise", desk.certificate(), "--policy", "policy.json", *flags)
    assert said.startswith("teemesh: INPUT_UNREADABLE: ")


def test_a_mesh_file_may_name_the_policy_of_a_certificate_and_nothing_else(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.write("mesh.json", b'{"policy":"policy.json"}')
    collateral = desk.collateral()
    given = ("appraise", desk.certificate(), "--role", "router", "--collateral", collateral, "--now", str(NOW))
    assert teemesh(*given, "--mesh", "mesh.json") == ACCEPTED
    assert "from policy.json\n" in capsys.readouterr().out
    said = unusable(teemesh, capsys, *given, "--mesh", "mesh.json", "--policy", "policy.json")
    assert said.startswith("teemesh: INPUT_UNREADABLE: --mesh names a policy too")
    desk.write("collateral.json", b"{}")
    said = unusable(teemesh, capsys, *given, "--mesh", "mesh.json")
    assert said.startswith(f"teemesh: COLLATERAL_MALFORMED: {collateral}: ")


def test_mesh_certificate_is_told_from_its_evidence(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    issuer = desk.bench.issuer
    subject = Subject(TRUST_DOMAIN, "router", "1", b"\x05" * 32)
    der = issue(subject, issuer.key.public_key(), issuer.key, issuer.certificate_der, now=NOW)
    said = unusable(teemesh, capsys, "show", desk.write("member.der", der))
    assert "RATLS_EVIDENCE_MISSING" in said
    assert f"teemesh evidence fetch --digest {'05' * 32}" in said


def test_show_says_what_a_certificate_states(desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _, members = shown(teemesh, capsys, desk.certificate())
    assert members["certificate"]["not_after"] == NOW + 3600
    assert members["tdx_quote"]["mrtd"] == desk.bench.measurement.mrtd
