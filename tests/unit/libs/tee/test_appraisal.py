from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from libs import jcs
from libs.errors import MeshError
from libs.tee.appraisal import OwnNonce, appraise
from libs.tee.challenge import Challenge
from libs.tee.eventlog import Event
from libs.tee.rules import DeviceRule
from services.devtee.collateral import CollateralShape
from services.devtee.quotes import TD_ATTRIBUTES_DEBUG
from tests.unit.libs.tee.bench import CLAIMS, COMPOSE, DAY, NOW, Bench, Issuer

WEIGHTS = "ab" * 32
NODE_CLAIMS: dict[str, Any] = {
    "role": "node",
    "engine": "vllm",
    "engine_args_sha256": "00" * 32,
    "models": [{"id": "smollm2-135m", "weights_sha256": WEIGHTS}],
    "receipt_key": "00" * 32,
    "gpu_evidence_sha256": None,
}


def test_good_evidence_is_appraised(bench: Bench) -> None:
    evidence = bench.evidence()
    appraisal = appraise(evidence, bench.rules(), bench.context())
    assert appraisal.role == "router"
    assert appraisal.measurement == bench.measurement
    assert appraisal.spki_sha256 == hashlib.sha256(bench.spki).digest()
    assert appraisal.evidence_digest == hashlib.sha256(evidence.document).digest()
    assert (appraisal.policy_version, appraisal.appraised_at) == (7, NOW)
    assert appraisal.device_id == bench.machine.device_id.hex()
    assert appraisal.instance_id == bench.td.identity.instance_id.hex()
    assert appraisal.vendor_root_sha256 == hashlib.sha256(bench.machine.vendor_root).digest()
    assert appraisal.workload_claims == CLAIMS
    assert jcs.loads_object(jcs.dumps(appraisal.to_json()))["claims"] == {
        "tee_attested": {
            "status": "asserted",
            "source": "hardware_proven",
            "reason": "TDX quote verified to a vendor root of policy",
        },
        "gpu_attested": {"status": "unknown"},
        "tcb_up_to_date": {"status": "asserted", "source": "hardware_proven", "reason": "TCB status UpToDate"},
        "os_known_good": {
            "status": "asserted",
            "source": "verifier_derived",
            "reason": "os_image_hash and boot registers are in the policy's allow list",
        },
        "serving_software_known_good": {
            "status": "asserted",
            "source": "verifier_derived",
            "reason": "compose_hash is in the policy's allow list",
        },
        "model_weights_provenance": {"status": "unknown"},
    }


def test_own_nonce_needs_no_signature(bench: Bench) -> None:
    challenge = Challenge.unsigned("router/1", "boot", NOW)
    context = replace(bench.context(), challenge=OwnNonce(challenge.nonce))
    assert appraise(bench.evidence(challenge=challenge), bench.rules(), context).appraised_at == NOW


def test_appraisal_ends_with_the_collateral_or_its_accepted_age(bench: Bench) -> None:
    until_expiry = appraise(bench.evidence(), bench.tcb(maximum_collateral_age_seconds=365 * DAY), bench.context())
    assert until_expiry.valid_until == NOW + 30 * DAY - 1
    until_age = appraise(bench.evidence(), bench.tcb(maximum_collateral_age_seconds=DAY), bench.context())
    assert NOW + DAY - 600 <= until_age.valid_until <= NOW + DAY


def test_appraisal_ends_with_the_vendor_certificates(bench: Bench) -> None:
    shape = CollateralShape(NOW, validity_seconds=40 * 365 * DAY)
    rules = bench.tcb(maximum_collateral_age_seconds=100 * 365 * DAY)
    appraisal = appraise(bench.evidence(shape=shape), rules, bench.context())
    assert appraisal.valid_until == int(bench.machine.pki.pck.certificate.not_valid_after_utc.timestamp()) - 1


def test_stripped_digests_are_recomputed(bench: Bench) -> None:
    log = [replace(event, digest=b"") if event.imr == 3 else event for event in bench.event_log]
    assert appraise(bench.evidence(event_log=log), bench.rules(), bench.context()).role == "router"


def test_allowed_models_are_asserted(bench: Bench) -> None:
    rules = replace(bench.rules("node"), models={"smollm2-135m": frozenset({WEIGHTS})})
    appraisal = appraise(bench.evidence(claims=NODE_CLAIMS), rules, bench.context())
    assert appraisal.claims.model_weights_provenance.to_json()["source"] == "verifier_derived"


def test_accepted_status_that_is_not_up_to_date_is_refuted(bench: Bench) -> None:
    evidence = bench.evidence(shape=CollateralShape(NOW, tcb_status="SWHardeningNeeded", advisories=("INTEL-SA-1",)))
    appraisal = appraise(evidence, bench.tcb(statuses=frozenset({"SWHardeningNeeded"})), bench.context())
    assert appraisal.claims.tcb_up_to_date.to_json()["status"] == "refuted"
    assert appraisal.advisories == ("INTEL-SA-1",)


def test_out_of_date_is_accepted_within_grace_and_no_longer(bench: Bench) -> None:
    evidence = bench.evidence(shape=CollateralShape(NOW, tcb_status="OutOfDate", tcb_date=NOW - 10 * DAY))
    rules = bench.tcb(statuses=frozenset({"OutOfDate"}), grace_seconds=11 * DAY)
    assert appraise(evidence, rules, bench.context()).valid_until == NOW + DAY


def _reason(action: Callable[[], object]) -> str:
    with pytest.raises(MeshError) as refusal:
        action()
    return refusal.value.reason


def _renamed(log: tuple[Event, ...], name: str, other: Event) -> list[Event]:
    return [other if event.name == name else event for event in log]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tcb_status": "OutOfDate"}, "TCB_STATUS_NOT_ALLOWED"),
        ({"qe_status": "OutOfDate"}, "TCB_STATUS_NOT_ALLOWED"),
        ({"module_status": "OutOfDate"}, "TCB_STATUS_NOT_ALLOWED"),
        ({"tcb_status": "Revoked"}, "QUOTE_NOT_VERIFIED"),
        ({"advisories": ("INTEL-SA-2",)}, "TCB_ADVISORY_REFUSED"),
        ({"evaluation_number": 16}, "TCB_EVALUATION_TOO_LOW"),
        ({"issued_at": NOW - 40 * DAY, "validity_seconds": 50 * DAY}, "COLLATERAL_TOO_OLD"),
        ({"issued_at": NOW - 40 * DAY}, "COLLATERAL_NOT_CURRENT"),
        ({"issued_at": NOW + DAY}, "COLLATERAL_NOT_CURRENT"),
        ({"fmspc": b"\x01" * 6}, "QUOTE_NOT_VERIFIED"),
        ({"minimum_module_svn": 9}, "QUOTE_NOT_VERIFIED"),
        ({"revoked": frozenset({"pck"})}, "QUOTE_NOT_VERIFIED"),
        ({"revoked": frozenset({"platform_ca"})}, "QUOTE_NOT_VERIFIED"),
        ({"revoked": frozenset({"tcb_signing"})}, "QUOTE_NOT_VERIFIED"),
    ],
)
def test_platform_state_is_refused(bench: Bench, changes: dict[str, Any], reason: str) -> None:
    evidence = bench.evidence(shape=CollateralShape(**({"issued_at": NOW} | changes)))
    rules = bench.tcb(refused_advisories=frozenset({"INTEL-SA-2"}))
    assert _reason(lambda: appraise(evidence, rules, bench.context())) == reason


@pytest.mark.parametrize(
    "shape",
    [
        {"tcb_date": NOW - 12 * DAY, "tcb_status": "OutOfDate"},
        {"tcb_date": NOW - 12 * DAY, "module_status": "OutOfDate"},
        {"issued_at": NOW - 12 * DAY, "qe_status": "OutOfDate"},
    ],
)
def test_grace_that_is_over_is_refused(bench: Bench, shape: dict[str, Any]) -> None:
    rules = bench.tcb(statuses=frozenset({"OutOfDate"}), grace_seconds=11 * DAY)
    evidence = bench.evidence(shape=CollateralShape(**({"issued_at": NOW} | shape)))
    assert _reason(lambda: appraise(evidence, rules, bench.context())) == "TCB_TOO_OLD"


def test_other_vendor_root_is_refused(bench: Bench) -> None:
    rules = replace(bench.rules(), vendor_roots=(Bench.create().machine.vendor_root,))
    assert _reason(lambda: appraise(bench.evidence(), rules, bench.context())) == "VENDOR_ROOT_NOT_TRUSTED"
    none = replace(rules, vendor_roots=())
    assert _reason(lambda: appraise(bench.evidence(), none, bench.context())) == "VENDOR_ROOT_NOT_TRUSTED"


def test_flipped_report_is_refused(bench: Bench) -> None:
    evidence = bench.evidence()
    quote = bytearray(evidence.quote)
    quote[520] ^= 1
    altered = replace(evidence, quote=bytes(quote))
    assert _reason(lambda: appraise(altered, bench.rules(), bench.context())) == "QUOTE_NOT_VERIFIED"


def test_debug_td_is_refused(bench: Bench) -> None:
    # The library refuses a verified debug TD too; the reason then is its own. See test_tdx for our check.
    evidence = bench.evidence(td_attributes=TD_ATTRIBUTES_DEBUG)
    assert _reason(lambda: appraise(evidence, bench.rules(), bench.context())) == "QUOTE_NOT_VERIFIED"


def test_unlisted_td_attributes_are_refused(bench: Bench) -> None:
    evidence = bench.evidence(td_attributes=bytes.fromhex("0000005000000000"))
    assert _reason(lambda: appraise(evidence, bench.rules(), bench.context())) == "TD_ATTRIBUTES_NOT_ALLOWED"


def test_other_challenge_is_refused(bench: Bench) -> None:
    context = replace(bench.context(), challenge=OwnNonce(bytes(32)))
    assert _reason(lambda: appraise(bench.evidence(), bench.rules(), context)) == "NONCE_MISMATCH"


def test_challenge_of_other_issuer_is_refused(bench: Bench) -> None:
    evidence = bench.evidence(challenge=Issuer.create().challenge())
    assert _reason(lambda: appraise(evidence, bench.rules(), bench.context())) == "CHALLENGE_ISSUER_NOT_TRUSTED"


def test_other_key_is_refused(bench: Bench) -> None:
    context = replace(bench.context(), spki=bench.issuer.spki)
    assert _reason(lambda: appraise(bench.evidence(), bench.rules(), context)) == "SPKI_MISMATCH"


def test_replayed_quote_is_refused(bench: Bench) -> None:
    evidence = bench.evidence(report_data=bytes(63) + b"\x01")
    assert _reason(lambda: appraise(evidence, bench.rules(), bench.context())) == "REPORT_DATA_MISMATCH"


def test_altered_claims_are_refused(bench: Bench) -> None:
    evidence = replace(bench.evidence(), claims=CLAIMS | {"log_key": "01" * 32})
    assert _reason(lambda: appraise(evidence, bench.rules(), bench.context())) == "REPORT_DATA_MISMATCH"


def test_event_with_stale_digest_is_refused(bench: Bench) -> None:
    log = bench.event_log
    compose = next(event for event in log if event.name == "compose-hash")
    evidence = bench.evidence(event_log=_renamed(log, "compose-hash", replace(compose, payload=bytes(32))))
    assert _reason(lambda: appraise(evidence, bench.rules(), bench.context())) == "EVENT_DIGEST_MISMATCH"


@pytest.mark.parametrize("imr", [0, 1, 2, 3])
def test_log_without_its_last_event_is_refused(bench: Bench, imr: int) -> None:
    log = list(bench.event_log)
    log.remove([event for event in log if event.imr == imr][-1])
    evidence = bench.evidence(event_log=log)
    assert _reason(lambda: appraise(evidence, bench.rules(), bench.context())) == "EVENT_LOG_DOES_NOT_REPLAY"


def test_other_compose_text_is_refused(bench: Bench) -> None:
    evidence = bench.evidence(app_compose=COMPOSE + " ")
    assert _reason(lambda: appraise(evidence, bench.rules(), bench.context())) == "COMPOSE_HASH_MISMATCH"


@pytest.mark.parametrize(
    "member", ["compose_hash", "app_id", "os_image_hash", "key_provider", "mrtd", "rtmr0", "rtmr1", "rtmr2"]
)
def test_every_member_of_the_measurement_counts(bench: Bench, member: str) -> None:
    other = replace(bench.measurement, **{member: "00"})
    rules = replace(bench.rules(), measurements=frozenset({other}))
    with pytest.raises(MeshError, match=f"role router: {member}$") as refusal:
        appraise(bench.evidence(), rules, bench.context())
    assert refusal.value.reason == "MEASUREMENT_NOT_ALLOWED"


def test_empty_allow_list_allows_nothing(bench: Bench) -> None:
    rules = replace(bench.rules(), measurements=frozenset())
    assert _reason(lambda: appraise(bench.evidence(), rules, bench.context())) == "MEASUREMENT_NOT_ALLOWED"


def test_revoked_and_unlisted_machines_are_refused(bench: Bench) -> None:
    device = bench.machine.device_id.hex()
    evidence = bench.evidence()
    revoked = replace(bench.rules(), devices=DeviceRule(frozenset({device}), frozenset({device})))
    assert _reason(lambda: appraise(evidence, revoked, bench.context())) == "DEVICE_REVOKED"
    unlisted = replace(bench.rules(), devices=DeviceRule(frozenset({"00" * 32}), frozenset()))
    assert _reason(lambda: appraise(evidence, unlisted, bench.context())) == "DEVICE_NOT_LISTED"


def test_required_gpu_evidence_is_refused_when_missing_or_unknown(bench: Bench) -> None:
    rules = replace(bench.rules(), gpu_required=True)
    assert _reason(lambda: appraise(bench.evidence(), rules, bench.context())) == "GPU_EVIDENCE_MISSING"
    gpu = {"vendor": "nvidia"}
    evidence = bench.evidence(
        gpu_evidence=gpu, claims=CLAIMS | {"gpu_evidence_sha256": hashlib.sha256(jcs.dumps(gpu)).hexdigest()}
    )
    assert _reason(lambda: appraise(evidence, rules, bench.context())) == "GPU_EVIDENCE_NOT_SUPPORTED"
    assert appraise(evidence, bench.rules(), bench.context()).claims.gpu_attested.to_json() == {"status": "unknown"}


def test_gpu_evidence_outside_the_claims_is_refused(bench: Bench) -> None:
    evidence = bench.evidence(gpu_evidence={"vendor": "nvidia"})
    assert _reason(lambda: appraise(evidence, bench.rules(), bench.context())) == "GPU_EVIDENCE_NOT_BOUND"


def test_other_role_is_refused(bench: Bench) -> None:
    assert _reason(lambda: appraise(bench.evidence(), bench.rules("kms"), bench.context())) == "ROLE_MISMATCH"


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        ([{"id": "smollm2-135m", "weights_sha256": "cd" * 32}], "MODEL_NOT_ALLOWED"),
        ([{"id": "other", "weights_sha256": WEIGHTS}], "MODEL_NOT_ALLOWED"),
        ([{"id": "smollm2-135m"}], "CLAIMS_MALFORMED"),
        (None, "CLAIMS_MALFORMED"),
    ],
)
def test_node_claims_are_refused(bench: Bench, models: Any, reason: str) -> None:
    rules = replace(bench.rules("node"), models={"smollm2-135m": frozenset({WEIGHTS})})
    evidence = bench.evidence(claims=NODE_CLAIMS | {"models": models})
    assert _reason(lambda: appraise(evidence, rules, bench.context())) == reason
