from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from libs.aci import report as reports
from libs.aci.keyset import KeysetMalformed
from libs.aci.report import (
    KeysetDigestMismatch,
    NonceMalformed,
    ReportDataMismatch,
    ReportMalformed,
    ReportSlotMismatch,
    SourceProvenance,
)
from libs.jcs import JsonMalformed
from tests.unit.libs.aci.documents import NOW, keyset

NONCE = "0123456789abcdef" * 4


def document(nonce: str | None = NONCE) -> bytes:
    return reports.assemble(
        keyset(),
        nonce=nonce,
        tee_type="tdx",
        provenance=SourceProvenance(repo_url="https://git.test/mesh", repo_commit="ab" * 20),
        evidence={"quote": "00", "event_log": "[]"},
    )


def changed(change: Callable[[dict[str, Any]], None]) -> bytes:
    value = json.loads(document())
    change(value)
    return json.dumps(value, indent=1).encode()


def test_assembled_report_binds_its_keyset_and_the_nonce() -> None:
    report = reports.parse(document())
    assert reports.verify_report_binding(report, NONCE) == keyset().digest
    reports.verify_slot(report, reports.slot(reports.report_data(keyset().digest, NONCE)))
    assert report.keyset == keyset()
    assert report.serving == "aggregator"
    assert report.provenance == SourceProvenance("https://git.test/mesh", "ab" * 20)


def test_any_encoding_of_the_report_verifies() -> None:
    reports.verify_report_binding(reports.parse(changed(lambda value: None)), NONCE)


@pytest.mark.parametrize(
    "nonce", ["", "ab", NONCE.upper(), NONCE + "0", "0x" + NONCE[2:], " " + NONCE[1:], "\u0660" * 64]
)
def test_nonce_that_is_not_64_lower_case_hex_digits_is_refused(nonce: str) -> None:
    with pytest.raises(NonceMalformed):
        reports.statement(keyset().digest, nonce)
    with pytest.raises(NonceMalformed):
        reports.verify_report_binding(reports.parse(document()), nonce)


def test_report_for_another_nonce_is_refused() -> None:
    with pytest.raises(ReportDataMismatch):
        reports.verify_report_binding(reports.parse(document()), "00" * 32)


def test_unchallenged_report_proves_no_freshness() -> None:
    with pytest.raises(ReportDataMismatch):
        reports.verify_report_binding(reports.parse(document(nonce=None)), NONCE)


def test_keyset_other_than_the_named_one_is_refused() -> None:
    def extend(value: dict[str, Any]) -> None:
        value["attestation"]["workload_keyset"]["not_after"] = NOW + 10**6

    with pytest.raises(KeysetDigestMismatch):
        reports.verify_report_binding(reports.parse(changed(extend)), NONCE)


def test_keyset_changed_together_with_its_digest_is_refused() -> None:
    other = reports.parse(
        reports.assemble(
            keyset(not_after=NOW + 5), nonce=NONCE, tee_type="tdx", provenance=SourceProvenance(), evidence={}
        )
    )

    def swap(value: dict[str, Any]) -> None:
        value["attestation"]["workload_keyset"] = other.keyset.document()
        value["workload_keyset_digest"] = other.keyset_digest

    with pytest.raises(ReportDataMismatch):
        reports.verify_report_binding(reports.parse(changed(swap)), NONCE)


def test_slot_with_anything_but_zeros_behind_the_report_data_is_refused() -> None:
    report = reports.parse(document())
    with pytest.raises(ReportSlotMismatch):
        reports.verify_slot(report, report.report_data + bytes(31) + b"\1")
    with pytest.raises(ReportSlotMismatch):
        reports.verify_slot(report, report.report_data)


def test_other_protocol_version_is_refused() -> None:
    with pytest.raises(ReportMalformed, match="api_version"):
        reports.parse(changed(lambda value: value.update(api_version="aci/2")))


def test_member_hidden_from_javascript_is_refused() -> None:
    with pytest.raises(JsonMalformed):
        reports.parse(document().replace(b'"event_log"', b'"__proto__"'))


def test_unknown_members_are_ignored_but_not_in_the_keyset() -> None:
    reports.parse(changed(lambda value: value.update(signing_address="0x00")))
    with pytest.raises(KeysetMalformed):
        reports.parse(changed(lambda value: value["attestation"]["workload_keyset"].update(more=1)))


def test_unknown_serving_mode_counts_as_aggregator() -> None:
    report = reports.parse(changed(lambda value: value["service_capabilities"].update(serving="upstream")))
    assert report.serving == "aggregator"
