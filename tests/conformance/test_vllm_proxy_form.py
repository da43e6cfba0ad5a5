"""A recorded quote and event log of a real guest, in the form in which a dstack-vllm-proxy worker reports them.

No report of a worker was recorded. This one binds other bytes than a worker's would, and that alone is what it is
refused for: its quote has passed under Intel's root by then.
"""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.client.foreign import VLLM_PROXY_FORMAT, ForeignEvidence
from libs.client.vllm_proxy import WorkerReportDataMismatch, verify_worker
from libs.policy.document import read
from libs.tee.collateral import Collateral
from tests.conformance import recorded
from tests.fakes.policy_draft import policy_draft

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(recorded.FOLDER is None, reason="TEEMESH_FIXTURES does not name the outside vectors"),
]

_NOW = 1782700967
_COLLATERAL = "intel-pcs/tdx-90c06f000000-20260629.json"
_ORIGIN = "https://worker.example"


def _evidence(collateral: Collateral) -> ForeignEvidence:
    reply = json.loads((recorded.QUOTES / "dstack/quote-report.json").read_bytes())
    report = {
        "signing_address": "ab" * 32,
        "signing_algo": "ed25519",
        "request_nonce": "cd" * 32,
        "intel_quote": reply["quote"],
        "nvidia_payload": "{}",
        "info": {"tcb_info": {"app_compose": "not recorded"}},
        "event_log": reply["event_log"],
        "vm_config": reply["vm_config"],
    }
    return ForeignEvidence(_ORIGIN, "cd" * 32, json.dumps(report), collateral, format=VLLM_PROXY_FORMAT)


def test_a_recorded_quote_in_a_workers_report_is_refused_for_what_it_binds() -> None:
    provider = {
        "name": "worker",
        "kind": "dstack-vllm-proxy",
        "origin": _ORIGIN,
        "models": {"here": "there"},
        "measurements": [],
        "best_effort": False,
    }
    draft = policy_draft(
        "here.test",
        [Ed25519PrivateKey.generate() for _ in range(2)],
        recorded.root(),
        {},
        not_before=_NOW - 1,
        not_after=_NOW + 1,
        roles={"router": {"measurements": [], "gpu_required": False}},
        foreign_providers=[provider],
    )
    draft["vendor_roots"][0].update(name="intel", development=False)
    policy = read(draft)
    with pytest.raises(WorkerReportDataMismatch):
        verify_worker(_evidence(recorded.collateral(_COLLATERAL)), policy.foreign_providers[0], policy, _NOW)
