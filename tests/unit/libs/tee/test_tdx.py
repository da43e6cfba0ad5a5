from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from libs.errors import MeshError
from libs.tee import tdx
from libs.tee.tdx import QuoteMalformed, TdReport
from services.devtee.quotes import TD_ATTRIBUTES
from tests.unit.libs.tee.bench import Bench

LISTED = frozenset({TD_ATTRIBUTES.hex()})
REPORT = TdReport(bytes(48), TD_ATTRIBUTES, bytes(48), bytes(48), (bytes(48),) * 4, bytes(64))


def _reason(report: TdReport, listed: frozenset[str] = LISTED) -> str:
    with pytest.raises(MeshError) as refusal:
        tdx.judge_td(report, listed)
    return refusal.value.reason


def test_plain_td_is_accepted() -> None:
    tdx.judge_td(REPORT, LISTED)


def test_debug_td_is_refused_even_when_policy_lists_its_attributes() -> None:
    debug = replace(REPORT, td_attributes=bytes.fromhex("0100001000000000"))
    assert _reason(debug, frozenset({"0100001000000000"})) == "TD_DEBUG"


def test_foreign_seam_signer_is_refused() -> None:
    assert _reason(replace(REPORT, mr_signer_seam=bytes(47) + b"\x01")) == "SEAM_SIGNER_NOT_ALLOWED"


def test_unlisted_attributes_are_refused() -> None:
    assert _reason(REPORT, frozenset()) == "TD_ATTRIBUTES_NOT_ALLOWED"


def test_service_td_is_refused() -> None:
    assert _reason(replace(REPORT, mr_service_td=b"\x01" + bytes(47))) == "SERVICE_TD_NOT_ALLOWED"


def test_zero_padding_is_cut_and_nothing_else(bench: Bench) -> None:
    quote = bench.td.quote(bytes(64))
    assert tdx.cut(quote) == quote
    assert tdx.cut(quote + bytes(70)) == quote
    with pytest.raises(QuoteMalformed, match="zero padding"):
        tdx.cut(quote + b"\x00\x01")


@pytest.mark.parametrize("length", [0, 7, 8, 47, 631, 635, 700, 1218, 3000])
def test_short_quote_is_refused(bench: Bench, length: int) -> None:
    with pytest.raises(QuoteMalformed):
        tdx.cut(bench.td.quote(bytes(64))[:length])


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (0, "<H", 3),
        (2, "<H", 3),
        (4, "<I", 0),
        (764, "<H", 7),
        (766, "<I", 10),
        (1218, "<H", 31),
        (1252, "<H", 4),
        (1254, "<I", 10),
    ],
)
def test_lengths_and_types_must_add_up(bench: Bench, offset: int, form: str, value: int) -> None:
    quote = bytearray(bench.td.quote(bytes(64)))
    struct.pack_into(form, quote, offset, value)
    with pytest.raises(QuoteMalformed):
        tdx.cut(bytes(quote))


def test_slack_in_the_authentication_data_is_refused(bench: Bench) -> None:
    quote = bytearray(bench.td.quote(bytes(64))) + bytes(8)
    struct.pack_into("<I", quote, 632, struct.unpack_from("<I", quote, 632)[0] + 8)
    with pytest.raises(QuoteMalformed, match="add up"):
        tdx.cut(bytes(quote))
