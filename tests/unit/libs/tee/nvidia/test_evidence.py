"""GPU evidence under policy's rule: one row for each way in which a device, or the set of them, is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs import jcs
from libs.errors import MeshError
from libs.tee.nvidia.evidence import GpuEvidence, GpuEvidenceMalformed, GpuRule, verify_gpu_evidence
from libs.tee.nvidia.keys import Issuer
from libs.tee.nvidia.token import DetachedEat, TokenMalformed
from services.devtee.gpu import DRIVER_VERSION, HWMODEL, VBIOS_VERSION, GpuVendor, ReportShape
from services.devtee.nras import ABSENT, ISSUER, Nras, TokenShape
from tests.unit.libs.tee.nvidia.gpu_bench import MAXIMUM_AGE, NONCE, NOW, GpuBench, read_claims

_CHAIN = "x-nvidia-gpu-attestation-report-cert-chain"


def _refusal(evidence: GpuEvidence, rule: GpuRule, nonce: bytes = NONCE, now: int = NOW) -> str:
    with pytest.raises(MeshError) as refusal:
        verify_gpu_evidence(evidence, nonce, rule, now)
    return refusal.value.reason


def test_gpus_that_passed_are_named(gpu_bench: GpuBench) -> None:
    evidence = gpu_bench.evidence(TokenShape(switches=("77",)), gpu_bench.posted())
    verdict = verify_gpu_evidence(evidence, NONCE, gpu_bench.rule, NOW)
    assert verdict.issuer == ISSUER
    assert [gpu.ueid for gpu in verdict.devices] == [gpu.ueid for gpu in gpu_bench.gpus]
    assert {(gpu.hwmodel, gpu.driver, gpu.vbios) for gpu in verdict.devices} == {
        (HWMODEL, DRIVER_VERSION, VBIOS_VERSION)
    }
    assert [(switch.name, switch.ueid, switch.bios) for switch in verdict.switches] == [
        ("SWITCH-0", "77", VBIOS_VERSION)
    ]
    assert verdict.reports_verified
    assert verdict.valid_until == NOW + MAXIMUM_AGE


def test_evidence_without_switches_names_none(gpu_bench: GpuBench) -> None:
    evidence = gpu_bench.evidence()
    assert evidence.to_json()["switch_token"] is None
    assert verify_gpu_evidence(evidence, NONCE, gpu_bench.rule, NOW).switches == ()


def test_evidence_under_a_rotated_key_is_accepted_by_the_same_policy(gpu_bench: GpuBench) -> None:
    later = NOW + 86400
    tomorrow = replace(gpu_bench, nras=gpu_bench.nras.rotated(later))
    assert tomorrow.nras.key_id != gpu_bench.nras.key_id
    token = tomorrow.nras.attest(gpu_bench.posted(), NONCE, later)
    verdict = verify_gpu_evidence(tomorrow.evidence(token=token), NONCE, gpu_bench.rule, later)
    assert verdict.valid_until == later + MAXIMUM_AGE


def test_verdict_holds_no_longer_than_the_certificates_of_the_key(gpu_bench: GpuBench) -> None:
    end = gpu_bench.nras.signing.ends_at
    token = gpu_bench.nras.attest(gpu_bench.posted(), NONCE, end - 5)
    verdict = verify_gpu_evidence(gpu_bench.evidence(token=token), NONCE, gpu_bench.rule, end)
    assert verdict.valid_until == end
    assert _refusal(gpu_bench.evidence(token=token), gpu_bench.rule, now=end + 1) == "GPU_TOKEN_KEY_CHAIN_NOT_CURRENT"


def test_pinned_key_needs_no_certificates(gpu_bench: GpuBench) -> None:
    spki = gpu_bench.nras.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    rule = gpu_bench.changed(issuers={ISSUER: Issuer({gpu_bench.nras.key_id: spki}, ())})
    evidence = replace(gpu_bench.evidence(), keys={})
    assert verify_gpu_evidence(evidence, NONCE, rule, NOW).valid_until == NOW + MAXIMUM_AGE


def test_certificates_are_needed_where_policy_pins_no_key(gpu_bench: GpuBench) -> None:
    for keys in ({}, {"another": gpu_bench.nras.signing.chain}):
        assert _refusal(replace(gpu_bench.evidence(), keys=keys), gpu_bench.rule) == "GPU_TOKEN_KEY_NOT_TRUSTED"


def test_certificates_do_not_serve_another_issuer(gpu_bench: GpuBench) -> None:
    issuers = {ISSUER: Issuer({}, (gpu_bench.vendor.root.der,)), "https://other.devtee.invalid": _trusted(gpu_bench)}
    assert _refusal(gpu_bench.evidence(), gpu_bench.changed(issuers=issuers)) == "GPU_TOKEN_KEY_NOT_TRUSTED"


def test_switch_in_the_gpus_bundle_is_refused(gpu_bench: GpuBench) -> None:
    token = gpu_bench.bundle(TokenShape(switches=("77",)))
    assert _refusal(gpu_bench.evidence(token=token), gpu_bench.rule) == "GPU_TOKEN_DEVICE_MISPLACED"


def test_gpu_in_the_switches_bundle_is_refused(gpu_bench: GpuBench) -> None:
    evidence = replace(gpu_bench.evidence(), switch_eat=DetachedEat.parse(gpu_bench.bundle()))
    assert _refusal(evidence, gpu_bench.rule) == "GPU_TOKEN_DEVICE_MISPLACED"


def test_switches_that_answered_another_challenge_are_refused(gpu_bench: GpuBench) -> None:
    stale = gpu_bench.nras.attest([], bytes(32), NOW, TokenShape(switches=("77",)))
    evidence = replace(gpu_bench.evidence(), switch_eat=DetachedEat.parse(stale))
    assert _refusal(evidence, gpu_bench.rule) == "GPU_NONCE_MISMATCH"


def test_verdict_holds_no_longer_than_the_switches_tokens(gpu_bench: GpuBench) -> None:
    short = gpu_bench.switch_bundle(TokenShape(switches=("77",), lifetime_seconds=100))
    evidence = replace(gpu_bench.evidence(), switch_eat=DetachedEat.parse(short))
    assert verify_gpu_evidence(evidence, NONCE, gpu_bench.rule, NOW).valid_until == NOW + 99


def test_switches_that_another_trusted_issuer_vouches_for_are_refused(gpu_bench: GpuBench) -> None:
    other = "https://other.devtee.invalid"
    switches = gpu_bench.switch_bundle(TokenShape(switches=("77",), issuer=other))
    evidence = replace(gpu_bench.evidence(), switch_eat=DetachedEat.parse(switches))
    rule = gpu_bench.changed(issuers={ISSUER: _trusted(gpu_bench), other: _trusted(gpu_bench)})
    assert _refusal(evidence, rule) == "GPU_TOKEN_ISSUERS_DIFFER"
    assert _refusal(evidence, gpu_bench.rule) == "GPU_TOKEN_ISSUER_NOT_TRUSTED"


def test_switches_that_failed_as_a_whole_are_refused(gpu_bench: GpuBench) -> None:
    for claims, reason in (
        ({"x-nvidia-overall-att-result": False}, "GPU_OVERALL_FAILED"),
        ({"x-nvidia-ver": "2.0"}, "GPU_CLAIMS_VERSION"),
    ):
        switches = gpu_bench.switch_bundle(TokenShape(switches=("77",), overall=claims))
        evidence = replace(gpu_bench.evidence(), switch_eat=DetachedEat.parse(switches))
        assert _refusal(evidence, gpu_bench.rule) == reason


def _trusted(bench: GpuBench) -> Issuer:
    return bench.rule.issuers[ISSUER]


def test_token_alone_is_enough_where_policy_asks_for_no_reports(gpu_bench: GpuBench) -> None:
    verdict = verify_gpu_evidence(gpu_bench.evidence(), NONCE, gpu_bench.changed(device_roots=()), NOW)
    assert not verdict.reports_verified


def test_claims_as_nras_words_them_are_accepted(gpu_bench: GpuBench) -> None:
    """NRAS names neither claims version nor kind in a device's token, nor how it checked an OCSP answer."""
    silent = {"x-nvidia-gpu-claims-version": ABSENT, "x-nvidia-attestation-warning": ABSENT}
    silent["x-nvidia-mismatch-measurement-records"] = ABSENT
    ocsp = {"x-nvidia-cert-ocsp-response-valid": ABSENT, "x-nvidia-cert-ocsp-nonce-matches": ABSENT}
    shape = TokenShape(devices=silent, chains=ocsp)
    assert verify_gpu_evidence(gpu_bench.evidence(shape), NONCE, gpu_bench.rule, NOW).devices
    stated = TokenShape(devices={"x-nvidia-device-type": "gpu", "x-nvidia-mismatch-measurement-records": []})
    assert verify_gpu_evidence(gpu_bench.evidence(stated), NONCE, gpu_bench.rule, NOW).devices


_CLAIMS: list[tuple[str, Any, str]] = [
    ("x-nvidia-gpu-claims-version", "2.0", "GPU_CLAIMS_VERSION"),
    ("x-nvidia-gpu-claims-version", None, "GPU_CLAIMS_VERSION"),
    ("x-nvidia-device-type", "nvswitch", "GPU_CLAIMS_MALFORMED"),
    ("x-nvidia-gpu-arch-check", False, "GPU_ARCHITECTURE_MISMATCH"),
    ("x-nvidia-gpu-attestation-report-parsed", False, "GPU_DEVICE_REPORT_NOT_VERIFIED"),
    ("x-nvidia-gpu-attestation-report-signature-verified", False, "GPU_DEVICE_REPORT_NOT_VERIFIED"),
    ("x-nvidia-gpu-attestation-report-nonce-match", False, "GPU_NONCE_MISMATCH"),
    ("x-nvidia-gpu-attestation-report-cert-chain-fwid-match", False, "GPU_FWID_MISMATCH"),
    ("x-nvidia-gpu-driver-rim-fetched", False, "GPU_DRIVER_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-driver-rim-signature-verified", False, "GPU_DRIVER_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-driver-rim-version-match", False, "GPU_DRIVER_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-driver-rim-measurements-available", False, "GPU_DRIVER_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-vbios-rim-fetched", False, "GPU_VBIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-vbios-rim-signature-verified", False, "GPU_VBIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-vbios-rim-version-match", False, "GPU_VBIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-vbios-rim-measurements-available", False, "GPU_VBIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-vbios-index-no-conflict", False, "GPU_VBIOS_RIM_NOT_VERIFIED"),
    (_CHAIN, ABSENT, "GPU_REVOCATION_UNKNOWN"),
    (_CHAIN, "valid", "GPU_REVOCATION_UNKNOWN"),
    ("x-nvidia-gpu-driver-rim-cert-chain", ABSENT, "GPU_REVOCATION_UNKNOWN"),
    ("x-nvidia-gpu-vbios-rim-cert-chain", ABSENT, "GPU_REVOCATION_UNKNOWN"),
    ("measres", "fail", "GPU_MEASUREMENTS_FAILED"),
    ("measres", "not-run", "GPU_MEASUREMENTS_FAILED"),
    ("measres", "absent", "GPU_MEASUREMENTS_FAILED"),
    ("measres", "Success", "GPU_MEASUREMENTS_FAILED"),
    ("measres", ABSENT, "GPU_MEASUREMENTS_FAILED"),
    ("x-nvidia-mismatch-measurement-records", [{"index": 9}], "GPU_MEASUREMENTS_FAILED"),
    ("x-nvidia-mismatch-measurement-records", "9", "GPU_MEASUREMENTS_FAILED"),
    ("dbgstat", "enabled", "GPU_DEBUG_ENABLED"),
    ("dbgstat", None, "GPU_DEBUG_ENABLED"),
    ("dbgstat", ABSENT, "GPU_DEBUG_ENABLED"),
    ("secboot", False, "GPU_SECURE_BOOT_OFF"),
    ("secboot", None, "GPU_SECURE_BOOT_OFF"),
    ("secboot", "true", "GPU_SECURE_BOOT_OFF"),
    ("x-nvidia-attestation-warning", "THE CERTIFICATE IS ON HOLD", "GPU_WARNING"),
    ("x-nvidia-attestation-warning", "", "GPU_WARNING"),
    ("ueid", ABSENT, "GPU_CLAIMS_MALFORMED"),
    ("ueid", 7, "GPU_CLAIMS_MALFORMED"),
    ("ueid", "", "GPU_CLAIMS_MALFORMED"),
    ("ueid", "12\n", "GPU_CLAIMS_MALFORMED"),
    ("ueid", "9" * 61, "GPU_CLAIMS_MALFORMED"),
    ("hwmodel", ABSENT, "GPU_CLAIMS_MALFORMED"),
    ("hwmodel", "\ud800", "GPU_TOKEN_MALFORMED"),
    ("hwmodel", "GH100 ", "GPU_CLAIMS_MALFORMED"),
    ("x-nvidia-gpu-driver-version", ABSENT, "GPU_CLAIMS_MALFORMED"),
    ("x-nvidia-gpu-driver-version", "newest", "GPU_CLAIMS_MALFORMED"),
    ("x-nvidia-gpu-vbios-version", None, "GPU_CLAIMS_MALFORMED"),
]


@pytest.mark.parametrize(("claim", "value", "reason"), _CLAIMS)
def test_claim_of_a_gpu_is_judged(gpu_bench: GpuBench, claim: str, value: Any, reason: str) -> None:
    evidence = gpu_bench.evidence(token=gpu_bench.forged(device={claim: value}))
    assert _refusal(evidence, gpu_bench.rule) == reason


_MUST_HOLD = sorted({claim for claim, value, _ in _CLAIMS if value is False})


@pytest.mark.parametrize("claim", _MUST_HOLD)
@pytest.mark.parametrize("value", [ABSENT, None, 1, "true"])
def test_claim_that_is_not_exactly_true_does_not_hold(gpu_bench: GpuBench, claim: str, value: Any) -> None:
    evidence = gpu_bench.evidence(token=gpu_bench.forged(device={claim: value}))
    assert _refusal(evidence, gpu_bench.rule) in {reason for each, _, reason in _CLAIMS if each == claim}


_CERTIFICATES: list[tuple[str, Any, str]] = [
    ("x-nvidia-cert-status", "revoked", "GPU_CERTIFICATE_REVOKED"),
    ("x-nvidia-cert-ocsp-status", "revoked", "GPU_CERTIFICATE_REVOKED"),
    ("x-nvidia-cert-revocation-reason", "CERTIFICATE_HOLD", "GPU_CERTIFICATE_REVOKED"),
    ("x-nvidia-cert-status", "expired", "GPU_CERTIFICATE_NOT_VALID"),
    ("x-nvidia-cert-status", "invalid", "GPU_CERTIFICATE_NOT_VALID"),
    ("x-nvidia-cert-status", ABSENT, "GPU_CERTIFICATE_NOT_VALID"),
    ("x-nvidia-cert-ocsp-status", "unknown", "GPU_REVOCATION_UNKNOWN"),
    ("x-nvidia-cert-ocsp-status", "GOOD", "GPU_REVOCATION_UNKNOWN"),
    ("x-nvidia-cert-ocsp-status", None, "GPU_REVOCATION_UNKNOWN"),
    ("x-nvidia-cert-ocsp-status", ABSENT, "GPU_REVOCATION_UNKNOWN"),
    ("x-nvidia-cert-ocsp-response-valid", False, "GPU_REVOCATION_UNKNOWN"),
    ("x-nvidia-cert-ocsp-response-valid", None, "GPU_REVOCATION_UNKNOWN"),
    ("x-nvidia-cert-ocsp-nonce-matches", False, "GPU_REVOCATION_UNKNOWN"),
    ("x-nvidia-cert-ocsp-nonce-matches", "true", "GPU_REVOCATION_UNKNOWN"),
]


@pytest.mark.parametrize("chain", ["attestation-report", "driver-rim", "vbios-rim"])
@pytest.mark.parametrize(("claim", "value", "reason"), _CERTIFICATES)
def test_certificates_of_a_gpu_are_judged(gpu_bench: GpuBench, chain: str, claim: str, value: Any, reason: str) -> None:
    name = f"x-nvidia-gpu-{chain}-cert-chain"
    good = read_claims(gpu_bench.bundle()[1]["GPU-0"])[name]
    changed = {each: said for each, said in {**good, claim: value}.items() if said is not ABSENT}
    evidence = gpu_bench.evidence(token=gpu_bench.forged(device={name: changed}))
    assert _refusal(evidence, gpu_bench.rule) == reason


_SWITCH_CLAIMS: list[tuple[str, Any, str]] = [
    ("x-nvidia-switch-claims-version", "2.0", "GPU_CLAIMS_VERSION"),
    ("x-nvidia-switch-arch-check", False, "GPU_ARCHITECTURE_MISMATCH"),
    ("x-nvidia-switch-attestation-report-nonce-match", ABSENT, "GPU_NONCE_MISMATCH"),
    ("x-nvidia-switch-bios-rim-fetched", False, "GPU_SWITCH_BIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-switch-bios-rim-signature-verified", False, "GPU_SWITCH_BIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-switch-bios-rim-version-match", False, "GPU_SWITCH_BIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-switch-bios-rim-measurements-available", False, "GPU_SWITCH_BIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-switch-attestation-report-cert-chain", ABSENT, "GPU_REVOCATION_UNKNOWN"),
    ("x-nvidia-switch-bios-rim-cert-chain", ABSENT, "GPU_REVOCATION_UNKNOWN"),
    ("x-nvidia-switch-bios-version", ABSENT, "GPU_CLAIMS_MALFORMED"),
]


@pytest.mark.parametrize(("claim", "value", "reason"), _SWITCH_CLAIMS)
def test_claim_of_a_switch_is_judged(gpu_bench: GpuBench, claim: str, value: Any, reason: str) -> None:
    switches = gpu_bench.switch_bundle(TokenShape(switches=("77",), devices={claim: value}))
    evidence = replace(gpu_bench.evidence(), switch_eat=DetachedEat.parse(switches))
    assert _refusal(evidence, gpu_bench.rule) == reason


_OVERALL: list[tuple[str, Any, str]] = [
    ("x-nvidia-ver", "2.0", "GPU_CLAIMS_VERSION"),
    ("x-nvidia-ver", ABSENT, "GPU_CLAIMS_VERSION"),
    ("x-nvidia-overall-att-result", False, "GPU_OVERALL_FAILED"),
    ("x-nvidia-overall-att-result", "true", "GPU_OVERALL_FAILED"),
    ("x-nvidia-overall-att-result", 1, "GPU_OVERALL_FAILED"),
    ("x-nvidia-overall-att-result", ABSENT, "GPU_OVERALL_FAILED"),
    ("sub", "someone", "GPU_TOKEN_SUBJECT_UNKNOWN"),
]


@pytest.mark.parametrize(("claim", "value", "reason"), _OVERALL)
def test_overall_claim_is_judged(gpu_bench: GpuBench, claim: str, value: Any, reason: str) -> None:
    assert _refusal(gpu_bench.evidence(TokenShape(overall={claim: value})), gpu_bench.rule) == reason


def test_gpu_that_runs_something_else_is_refused_for_that_reason(gpu_bench: GpuBench) -> None:
    """The service then also denies the whole platform, and says nothing of debugging and secure boot."""
    reports = gpu_bench.posted(shape=ReportShape(measurements={9: bytes(48)}))
    token = gpu_bench.nras.attest(reports, NONCE, NOW)
    assert read_claims(token[0][1])["x-nvidia-overall-att-result"] is False
    assert _refusal(gpu_bench.evidence(token=token), gpu_bench.rule) == "GPU_MEASUREMENTS_FAILED"


def test_one_bad_gpu_among_good_ones_is_enough(gpu_bench: GpuBench) -> None:
    good, bad = gpu_bench.posted()[:1], gpu_bench.posted(shape=ReportShape(measurements={1: bytes(48)}))[1:]
    token = gpu_bench.nras.attest(good + bad, NONCE, NOW)
    with pytest.raises(MeshError, match="GPU-1") as refusal:
        verify_gpu_evidence(gpu_bench.evidence(token=token), NONCE, gpu_bench.rule, NOW)
    assert refusal.value.reason == "GPU_MEASUREMENTS_FAILED"


def test_token_for_another_challenge_is_refused(gpu_bench: GpuBench) -> None:
    assert _refusal(gpu_bench.evidence(), gpu_bench.rule, nonce=bytes(32)) == "GPU_NONCE_MISMATCH"


def test_token_of_another_service_is_refused(gpu_bench: GpuBench) -> None:
    other = Nras.create(gpu_bench.vendor.root.certificate, NOW)
    token = other.attest(gpu_bench.posted(), NONCE, NOW)
    assert _refusal(gpu_bench.evidence(token=token), gpu_bench.rule) == "GPU_TOKEN_KEY_NOT_TRUSTED"
    assert _refusal(gpu_bench.evidence(), gpu_bench.changed(issuers={})) == "GPU_TOKEN_ISSUER_NOT_TRUSTED"


def test_token_older_than_the_rule_accepts_is_refused(gpu_bench: GpuBench) -> None:
    evidence = gpu_bench.evidence()
    assert _refusal(evidence, gpu_bench.rule, now=NOW + MAXIMUM_AGE + 1) == "GPU_TOKEN_TOO_OLD"
    assert _refusal(evidence, gpu_bench.changed(maximum_token_age_seconds=0), now=NOW + 1) == "GPU_TOKEN_TOO_OLD"


def test_device_in_two_places_is_refused(gpu_bench: GpuBench) -> None:
    gpu = gpu_bench.gpus[0]
    token = gpu_bench.nras.attest(gpu_bench.posted(gpus=(gpu, gpu)), NONCE, NOW)
    assert _refusal(gpu_bench.evidence(token=token), gpu_bench.rule) == "GPU_DEVICE_LISTED_TWICE"
    shape = TokenShape(switches=(gpu.ueid,))
    assert _refusal(gpu_bench.evidence(shape), gpu_bench.rule) == "GPU_DEVICE_LISTED_TWICE"


def test_revoked_device_is_refused_even_when_listed(gpu_bench: GpuBench) -> None:
    ueids = frozenset(gpu.ueid for gpu in gpu_bench.gpus)
    rule = gpu_bench.changed(allowed_ueids=ueids, revoked_ueids=frozenset({gpu_bench.gpus[1].ueid}))
    assert _refusal(gpu_bench.evidence(), rule) == "GPU_DEVICE_REVOKED"


def test_revoked_switch_is_refused(gpu_bench: GpuBench) -> None:
    rule = gpu_bench.changed(revoked_ueids=frozenset({"77"}))
    assert _refusal(gpu_bench.evidence(TokenShape(switches=("77",))), rule) == "GPU_DEVICE_REVOKED"


def test_gpu_that_is_not_listed_is_refused(gpu_bench: GpuBench) -> None:
    one, both = (frozenset(gpu.ueid for gpu in gpu_bench.gpus[:count]) for count in (1, 2))
    assert verify_gpu_evidence(gpu_bench.evidence(), NONCE, gpu_bench.changed(allowed_ueids=both), NOW).devices
    assert _refusal(gpu_bench.evidence(), gpu_bench.changed(allowed_ueids=one)) == "GPU_DEVICE_NOT_ALLOWED"


def test_model_that_is_not_listed_is_refused(gpu_bench: GpuBench) -> None:
    rule = gpu_bench.changed(allowed_models=frozenset({HWMODEL}))
    assert verify_gpu_evidence(gpu_bench.evidence(), NONCE, rule, NOW).devices
    rule = gpu_bench.changed(allowed_models=frozenset({"GH100 A01 GSP BROM"}))
    assert _refusal(gpu_bench.evidence(), rule) == "GPU_MODEL_NOT_ALLOWED"


def test_token_without_the_reports_that_policy_asks_for_is_refused(gpu_bench: GpuBench) -> None:
    assert _refusal(gpu_bench.evidence(), gpu_bench.changed(reports_required=True)) == "GPU_REPORTS_REQUIRED"


def test_gpu_without_a_report_beside_one_that_has_it_is_refused(gpu_bench: GpuBench) -> None:
    assert _refusal(gpu_bench.evidence(reports=gpu_bench.posted()[:1]), gpu_bench.rule) == "GPU_REPORT_MISSING"


def test_report_of_a_gpu_that_the_token_does_not_name_is_refused(gpu_bench: GpuBench) -> None:
    reports = [*gpu_bench.posted(), *gpu_bench.posted(gpus=(gpu_bench.vendor.make_gpu(NOW),))]
    assert _refusal(gpu_bench.evidence(reports=reports), gpu_bench.rule) == "GPU_REPORT_UNMATCHED"


def test_second_report_of_one_gpu_is_refused(gpu_bench: GpuBench) -> None:
    reports = [*gpu_bench.posted(), *gpu_bench.posted()]
    assert _refusal(gpu_bench.evidence(reports=reports), gpu_bench.rule) == "GPU_REPORT_UNMATCHED"


@pytest.mark.parametrize("shape", [ReportShape(driver="550.90.07"), ReportShape(vbios="96.00.9F.00.02")])
def test_report_that_names_other_software_than_the_token_is_refused(gpu_bench: GpuBench, shape: ReportShape) -> None:
    reports = gpu_bench.posted(shape=shape)
    assert _refusal(gpu_bench.evidence(reports=reports), gpu_bench.rule) == "GPU_REPORT_DISAGREES"


def test_version_in_lower_case_is_the_same_version(gpu_bench: GpuBench) -> None:
    shape = TokenShape(devices={"x-nvidia-gpu-vbios-version": VBIOS_VERSION.lower()})
    assert verify_gpu_evidence(gpu_bench.evidence(shape, gpu_bench.posted()), NONCE, gpu_bench.rule, NOW).devices


def test_report_for_another_challenge_is_refused_beside_a_good_token(gpu_bench: GpuBench) -> None:
    evidence = gpu_bench.evidence(reports=gpu_bench.posted(bytes(32)))
    assert _refusal(evidence, gpu_bench.rule) == "GPU_REPORT_NONCE_MISMATCH"


def test_report_under_a_root_that_policy_does_not_name_is_refused(gpu_bench: GpuBench) -> None:
    evidence = gpu_bench.evidence(reports=gpu_bench.posted())
    assert _refusal(evidence, gpu_bench.changed(device_roots=())) == "GPU_CHAIN_NOT_TRUSTED"
    roots = (GpuVendor.create(NOW).root.der,)
    assert _refusal(evidence, gpu_bench.changed(device_roots=roots)) == "GPU_CHAIN_NOT_TRUSTED"


def test_evidence_has_one_json_form(gpu_bench: GpuBench) -> None:
    for shape in (TokenShape(), TokenShape(switches=("77",))):
        evidence = gpu_bench.evidence(shape, gpu_bench.posted())
        assert GpuEvidence.parse(jcs.loads_object(jcs.dumps(evidence.to_json()))) == evidence


@pytest.mark.parametrize(
    "change",
    [
        lambda value: None,
        lambda value: [],
        lambda value: {**value, "v": 2},
        lambda value: {**value, "v": True},
        lambda value: {**value, "vendor": "amd"},
        lambda value: {**value, "extra": 1},
        lambda value: {name: value[name] for name in ("v", "vendor", "token", "switch_token", "keys")},
        lambda value: {name: each for name, each in value.items() if name != "keys"},
        lambda value: {name: each for name, each in value.items() if name != "switch_token"},
        lambda value: {**value, "keys": None},
        lambda value: {**value, "keys": []},
        lambda value: {**value, "keys": {str(number): ["00"] for number in range(5)}},
        lambda value: {**value, "keys": {"": ["00"]}},
        lambda value: {**value, "keys": {"k" * 129: ["00"]}},
        lambda value: {**value, "keys": {"k/k": ["00"]}},
        lambda value: {**value, "keys": {"k": "00"}},
        lambda value: {**value, "keys": {"k": []}},
        lambda value: {**value, "keys": {"k": ["00"] * 5}},
        lambda value: {**value, "keys": {"k": [""]}},
        lambda value: {**value, "keys": {"k": ["AA"]}},
        lambda value: {**value, "keys": {"k": [None]}},
        lambda value: {**value, "keys": {"k": ["00" * 4097]}},
        lambda value: {**value, "reports": {}},
        lambda value: {**value, "reports": value["reports"] * 17},
        lambda value: {**value, "reports": [{"report": "AA", "certificate_chain": ""}]},
        lambda value: {**value, "reports": [{"report": "", "certificate_chain": None}]},
        lambda value: {**value, "reports": [{"report": ""}]},
        lambda value: {**value, "reports": [{"report": "00" * 16385, "certificate_chain": ""}]},
        lambda value: {**value, "reports": [{"report": "", "certificate_chain": " " * 32769}]},
        lambda value: {**value, "reports": [{"report": "", "certificate_chain": "\ud800"}]},
    ],
)
def test_evidence_of_another_shape_is_refused(gpu_bench: GpuBench, change: Callable[[dict[str, Any]], Any]) -> None:
    value = gpu_bench.evidence(reports=gpu_bench.posted()[:1]).to_json()
    with pytest.raises(GpuEvidenceMalformed):
        GpuEvidence.parse(change(value))


def test_token_of_another_shape_keeps_its_own_reason(gpu_bench: GpuBench) -> None:
    for name in ("token", "switch_token"):
        value = {**gpu_bench.evidence().to_json(), name: json.loads("[]")}
        with pytest.raises(TokenMalformed):
            GpuEvidence.parse(value)
