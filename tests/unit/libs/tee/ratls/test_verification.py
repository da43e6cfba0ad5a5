"""A dstack certificate of the development TEE, judged under rules that allow exactly it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from libs.errors import MeshError
from libs.tee.judgement import Verdict
from libs.tee.ratls.verification import IssuedBy, RatlsContext, verify_ratls
from libs.tee.role import RoleRules
from libs.tee.steps import Record
from services.devtee.tls import TlsRequest, issue_tls_key
from tests.unit.libs.tee.bench import DAY, NOW, Bench
from tests.unit.libs.tee.ratls.maker import AppCa

NOBODY = RatlsContext(now=NOW, issued=None, app_id=None)


def certificate(bench: Bench) -> bytes:
    wanted = TlsRequest("peer", ("peer.test",), True, True, True, NOW - 10, NOW + 3600)
    issued = issue_tls_key(bench.td, wanted, NOW)
    return x509.load_pem_x509_certificate(issued.chain[0].encode()).public_bytes(Encoding.DER)


def issued(bench: Bench, age: int = DAY) -> RatlsContext:
    return replace(NOBODY, issued=IssuedBy(bench.td.keys.ca.der, age))


@pytest.fixture
def verify(bench: Bench) -> Callable[..., Verdict]:
    presented = certificate(bench)

    def act(rules: RoleRules | None = None, context: RatlsContext | None = None) -> Verdict:
        return verify_ratls(presented, bench.collateral(), rules or bench.rules(), context or issued(bench))

    return act


def test_a_certificate_proves_key_machine_and_code(bench: Bench, verify: Callable[..., Verdict]) -> None:
    verdict = verify(context=replace(issued(bench), app_id=bench.td.identity.app_id))
    assert verdict.measurement == bench.measurement
    assert verdict.valid_until == NOW + 3600


def test_the_accepted_age_ends_the_verdict_before_the_certificate(bench: Bench, verify: Callable[..., Verdict]) -> None:
    assert verify(context=issued(bench, 100)).valid_until == NOW - 10 + 100


def test_without_a_trusted_issuer_the_dates_bind_nothing(verify: Callable[..., Verdict]) -> None:
    assert verify(context=NOBODY).valid_until > NOW + DAY
    assert verify(context=replace(NOBODY, now=NOW + 3601)).valid_until > NOW + DAY


def test_another_certificate_around_the_evidence_does_not_make_it_younger(bench: Bench) -> None:
    """A key that leaked from an allowed TD, certified anew by whoever has it."""
    stranger = AppCa.of("stranger")
    old = x509.load_der_x509_certificate(certificate(bench))
    builder = x509.CertificateBuilder(
        old.issuer, old.subject, old.public_key(), 7, old.not_valid_before_utc, old.not_valid_after_utc
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    dated_anew = builder.sign(stranger.key, hashes.SHA256()).public_bytes(Encoding.DER)
    verify_ratls(dated_anew, bench.collateral(), bench.rules(), NOBODY)
    with pytest.raises(MeshError) as refusal:
        verify_ratls(dated_anew, bench.collateral(), bench.rules(), issued(bench))
    assert refusal.value.reason == "RATLS_ISSUER_NOT_TRUSTED"


def test_every_step_is_recorded(bench: Bench) -> None:
    record = Record()
    verify_ratls(certificate(bench), bench.collateral(), bench.rules(), issued(bench), record)
    assert [step.number for step in record.steps] == list(range(1, 12))


@pytest.mark.parametrize(
    ("changes", "age", "reason"),
    [
        ({"now": NOW - 11}, DAY, "RATLS_CERTIFICATE_NOT_CURRENT"),
        ({"now": NOW + 3601}, DAY, "RATLS_CERTIFICATE_NOT_CURRENT"),
        ({}, 9, "RATLS_CERTIFICATE_TOO_OLD"),
        ({"app_id": bytes(20)}, DAY, "RATLS_APP_ID_MISMATCH"),
    ],
)
def test_what_the_verifier_knows_is_held_against_it(
    bench: Bench, verify: Callable[..., Verdict], changes: dict[str, Any], age: int, reason: str
) -> None:
    with pytest.raises(MeshError) as refusal:
        verify(context=replace(issued(bench, age), **changes))
    assert refusal.value.reason == reason


def test_a_role_that_needs_a_gpu_is_not_proven_by_a_certificate(bench: Bench, verify: Callable[..., Verdict]) -> None:
    with pytest.raises(MeshError) as refusal:
        verify(replace(bench.rules(), gpu_required=True))
    assert refusal.value.reason == "GPU_EVIDENCE_MISSING"


def test_another_measurement_is_refused_though_the_text_is_not_there(
    bench: Bench, verify: Callable[..., Verdict]
) -> None:
    other = Bench.create()
    with pytest.raises(MeshError) as refusal:
        verify(replace(bench.rules(), tdx=bench.tdx(measurements=other.tdx().measurements)))
    assert refusal.value.reason == "MEASUREMENT_NOT_ALLOWED"
