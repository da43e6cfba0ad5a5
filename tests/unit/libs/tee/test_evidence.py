from __future__ import annotations

import json
from typing import Any

import pytest

from libs import jcs
from libs.errors import MeshError
from libs.tee import evidence
from tests.unit.libs.tee.bench import Bench


def _reason(document: bytes) -> str:
    with pytest.raises(MeshError) as refusal:
        evidence.parse(document)
    return refusal.value.reason


def test_document_is_its_own_only_form(bench: Bench) -> None:
    made = bench.evidence()
    assert evidence.parse(made.document) == made
    spaced = json.dumps(json.loads(made.document)).encode()
    assert _reason(spaced) == "EVIDENCE_MALFORMED"


def test_padding_is_cut_when_made_and_refused_when_read(bench: Bench) -> None:
    made = bench.evidence()
    value = jcs.loads_object(made.document)
    value["quote"] += "00" * 70
    assert _reason(jcs.dumps(value)) == "EVIDENCE_MALFORMED"
    padded = evidence.assemble(
        quote=made.quote + bytes(70),
        event_log=made.event_log,
        app_compose=made.app_compose,
        spki=made.spki,
        claims=made.claims,
        challenge=made.challenge,
        collateral=made.collateral,
    )
    assert padded.digest == made.digest


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"v": 2}, "EVIDENCE_MALFORMED"),
        ({"v": True}, "EVIDENCE_MALFORMED"),
        ({"tee_type": "nitro"}, "TEE_TYPE_NOT_SUPPORTED"),
        ({"tee_type": "sev-snp"}, "SNP_REPORT_MALFORMED"),
        ({"quote": "00"}, "QUOTE_MALFORMED"),
        ({"quote": "XX"}, "EVIDENCE_MALFORMED"),
        ({"event_log": {}}, "EVENT_LOG_MALFORMED"),
        ({"app_compose": None}, "EVIDENCE_MALFORMED"),
        ({"spki": ""}, "EVIDENCE_MALFORMED"),
        ({"claims": []}, "EVIDENCE_MALFORMED"),
        ({"challenge": {}}, "CHALLENGE_MALFORMED"),
        ({"gpu_evidence": "x"}, "GPU_EVIDENCE_MALFORMED"),
        ({"collateral": {}}, "COLLATERAL_MALFORMED"),
        ({"more": 1}, "EVIDENCE_MALFORMED"),
    ],
)
def test_other_shapes_are_refused(bench: Bench, change: dict[str, Any], reason: str) -> None:
    value = jcs.loads_object(bench.evidence().document)
    assert _reason(jcs.dumps(value | change)) == reason


def test_missing_member_is_refused(bench: Bench) -> None:
    value = jcs.loads_object(bench.evidence().document)
    del value["gpu_evidence"]
    assert _reason(jcs.dumps(value)) == "EVIDENCE_MALFORMED"


def test_replacement_for_the_quotes_own_chain_is_refused(bench: Bench) -> None:
    value = jcs.loads_object(bench.evidence().document)
    value["collateral"]["pck_certificate_chain"] = value["collateral"]["pck_crl_issuer_chain"]
    assert _reason(jcs.dumps(value)) == "COLLATERAL_MALFORMED"


def test_oversized_document_is_refused_before_it_is_read() -> None:
    assert _reason(b"[" * (512 * 1024 + 1)) == "EVIDENCE_TOO_LARGE"
