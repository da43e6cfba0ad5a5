from __future__ import annotations

import struct

import pytest

from libs.tee import tdx
from libs.tee.tdx import QuoteMalformed
from services.devtee import quotes
from tests.unit.libs.tee.bench import NOW, Bench


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


@pytest.mark.parametrize("service_td", [None, bytes(48)])
def test_both_bodies_of_version_5_are_verified(bench: Bench, service_td: bytes | None) -> None:
    report = quotes.TdReport(report_data=bytes(range(64)), rtmrs=bench.td.rtmrs, mr_service_td=service_td)
    quote = quotes.make_quote(bench.machine.pki, report, version=5)
    assert tdx.cut(quote + bytes(70)) == quote
    verified = tdx.verify(quote, bench.collateral(), [bench.machine.vendor_root], NOW)
    assert verified.report.report_data == bytes(range(64))
    assert verified.report.rtmrs == bench.td.rtmrs
    assert verified.report.mr_service_td == bytes(48)
