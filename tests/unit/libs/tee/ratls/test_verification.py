"""A dstack certificate of the development TEE, judged under rules that allow exactly it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from libs.errors import MeshError
from libs.tee.judgement import Verdict
from libs.tee.ratls.verification import RatlsContext, verify_ratls
from libs.tee.role import RoleRules
from libs.tee.steps import Record
from services.devtee.tls import TlsRequest, issue_tls_key
from tests.unit.libs.tee.bench import DAY, NOW, Bench

CONTEXT = RatlsContext(now=NOW, maximum_age_seconds=DAY, app_id=None)


def certificate(bench: Bench) -> bytes:
    wanted = TlsRequest("peer", ("peer.test",), True, True, True, NOW - 10, NOW + 3600)
    issued = issue_tls_key(bench.td, wanted, NOW)
    return x509.load_pem_x509_certificate(issued.chain[0].encode()).public_bytes(Encoding.DER)


@pytest.fixture
def verify(bench: Bench) -> Callable[..., Verdict]:
    presented = certificate(bench)

    def act(rules: RoleRules | None = None, context: RatlsContext = CONTEXT) -> Verdict:
        return verify_ratls(presented, bench.collateral(), rules or bench.rules(), context)

    return act


def test_a_certificate_proves_key_machine_and_code(bench: Bench, verify: Callable[..., Verdict]) -> None:
    verdict = verify(context=replace(CONTEXT, app_id=bench.td.identity.app_id))
    assert verdict.measurement == bench.measurement
    assert verdict.valid_until == NOW + 3600


def test_the_accepted_age_ends_the_verdict_before_the_certificate(verify: Callable[..., Verdict]) -> None:
    assert verify(context=replace(CONTEXT, maximum_age_seconds=100)).valid_until == NOW - 10 + 100


def test_every_step_is_recorded(bench: Bench) -> None:
    record = Record()
    verify_ratls(certificate(bench), bench.collateral(), bench.rules(), CONTEXT, record)
    assert [step.number for step in record.steps] == list(range(1, 12))


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        (replace(CONTEXT, now=NOW - 11), "RATLS_CERTIFICATE_NOT_CURRENT"),
        (replace(CONTEXT, now=NOW + 3601), "RATLS_CERTIFICATE_NOT_CURRENT"),
        (replace(CONTEXT, maximum_age_seconds=9), "RATLS_CERTIFICATE_TOO_OLD"),
        (replace(CONTEXT, app_id=bytes(20)), "RATLS_APP_ID_MISMATCH"),
    ],
)
def test_what_the_verifier_knows_is_held_against_it(
    verify: Callable[..., Verdict], context: RatlsContext, reason: str
) -> None:
    with pytest.raises(MeshError) as refusal:
        verify(context=context)
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
