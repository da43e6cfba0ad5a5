from __future__ import annotations

from dataclasses import replace

import pytest

from libs.errors import MeshError
from libs.tee.steps import ignore
from libs.tee.td import TdReport, judge_td
from services.devtee.quotes import TD_ATTRIBUTES

LISTED = frozenset({TD_ATTRIBUTES.hex()})
REPORT = TdReport(bytes(48), TD_ATTRIBUTES, bytes(48), bytes(48), (bytes(48),) * 4, bytes(64))


def _reason(report: TdReport, listed: frozenset[str] = LISTED) -> str:
    with pytest.raises(MeshError) as refusal:
        judge_td(report, listed, ignore)
    return refusal.value.reason


def test_plain_td_is_accepted() -> None:
    judge_td(REPORT, LISTED, ignore)


def test_debug_td_is_refused_even_when_policy_lists_its_attributes() -> None:
    debug = replace(REPORT, td_attributes=bytes.fromhex("0100001000000000"))
    assert _reason(debug, frozenset({"0100001000000000"})) == "TD_DEBUG"


def test_foreign_seam_signer_is_refused() -> None:
    assert _reason(replace(REPORT, mr_signer_seam=bytes(47) + b"\x01")) == "SEAM_SIGNER_NOT_ALLOWED"


def test_unlisted_attributes_are_refused() -> None:
    assert _reason(REPORT, frozenset()) == "TD_ATTRIBUTES_NOT_ALLOWED"


def test_service_td_is_refused() -> None:
    assert _reason(replace(REPORT, mr_service_td=b"\x01" + bytes(47))) == "SERVICE_TD_NOT_ALLOWED"
