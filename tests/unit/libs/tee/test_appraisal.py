from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from libs import jcs
from libs.tee.appraisal import OwnNonce, appraise
from libs.tee.challenge import Challenge
from services.devtee.collateral import CollateralShape
from tests.unit.libs.tee.bench import CLAIMS, DAY, NOW, Bench

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
            "reason": "tdx quote verified to a vendor root of policy",
        },
        "gpu_attested": {"status": "unknown"},
        "tcb_up_to_date": {"status": "asserted", "source": "hardware_proven", "reason": "TCB status UpToDate"},
        "os_known_good": {
            "status": "asserted",
            "source": "verifier_derived",
            "reason": "the measured operating system is in the policy's allow list",
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
