"""The unmodified verifier's verdict on software quotes, good and bad."""

from __future__ import annotations

from typing import Any

import dcap_qvl
import pytest

from services.devtee.collateral import TEE_TCB_SVN, Collateral, CollateralShape, Renewed, TcbStatus
from services.devtee.machine import Machine, VirtualTd
from services.devtee.quotes import TD_ATTRIBUTES_DEBUG, TdReport, make_quote

DAY = 24 * 3600


def verdict(quote: bytes, collateral: Collateral, root: bytes, now: int) -> dcap_qvl.VerifiedReport:
    parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral.to_json())
    return dcap_qvl.verify_with_root_ca(quote, parsed, root, now)


def test_a_quote_is_up_to_date_under_its_own_root(machine: Machine, td: VirtualTd, now: int) -> None:
    report = verdict(td.quote(b"x" * 64), machine.collateral(CollateralShape(now)), machine.vendor_root, now)
    assert (report.status, report.advisory_ids) == ("UpToDate", [])
    assert bytes(report.ppid) == machine.pki.platform.ppid


def test_the_strictest_policy_objects_only_to_what_real_servers_have(machine: Machine, td: VirtualTd, now: int) -> None:
    quote = td.quote(b"x")
    collateral = dcap_qvl.QuoteCollateralV3.from_json(machine.collateral(CollateralShape(now)).to_json())
    verifier = dcap_qvl.QuoteVerifier(machine.vendor_root)
    strict = dcap_qvl.QuotePolicy.strict(now)
    with pytest.raises(ValueError, match="Dynamic platform"):
        verifier.verify_with_policy(quote, collateral, now, strict)
    real = strict.allow_dynamic_platform(True).allow_cached_keys(True).allow_smt(True)
    verifier.verify_with_policy(quote, collateral, now, real)


def test_the_vendors_real_root_refuses_a_quote(machine: Machine, td: VirtualTd, now: int) -> None:
    collateral = dcap_qvl.QuoteCollateralV3.from_json(machine.collateral(CollateralShape(now)).to_json())
    with pytest.raises(ValueError, match="InvalidCrlSignature"):
        dcap_qvl.verify(td.quote(b"x"), collateral, now)


def test_another_machines_root_refuses_a_quote(machine: Machine, td: VirtualTd, now: int) -> None:
    other = Machine.create(now)
    for collateral in (machine.collateral(CollateralShape(now)), other.collateral(CollateralShape(now))):
        with pytest.raises(ValueError, match=r"Invalid|signature"):
            verdict(td.quote(b"x"), collateral, other.vendor_root, now)


def test_every_certificate_name_says_development(machine: Machine) -> None:
    pki = machine.pki
    for signer in (pki.root, pki.platform_ca, pki.pck, pki.tcb_signing):
        assert "Development" in signer.certificate.subject.rfc4514_string()


def test_the_report_in_the_quote_is_the_tds(machine: Machine, td: VirtualTd) -> None:
    report: Any = dcap_qvl.parse_quote(td.quote(b"abc")).report
    assert bytes(report.report_data) == b"abc".ljust(64, b"\0")
    assert bytes(report.mr_td) == machine.image.mrtd
    registers = (report.rt_mr0, report.rt_mr1, report.rt_mr2, report.rt_mr3)
    assert tuple(bytes(register) for register in registers) == td.rtmrs
    assert bytes(report.mr_config_id) == bytes(48)


def test_a_report_field_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="63 bytes instead of 64"):
        TdReport(report_data=bytes(63)).encode()


@pytest.mark.parametrize(
    "status",
    ["SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate"],
)
def test_a_worse_tcb_status_is_reported_with_its_advisories(
    machine: Machine, td: VirtualTd, now: int, status: TcbStatus
) -> None:
    shape = CollateralShape(now, tcb_status=status, advisories=("INTEL-SA-00001",))
    report = verdict(td.quote(b"x"), machine.collateral(shape), machine.vendor_root, now)
    assert (report.status, report.advisory_ids) == (status, ["INTEL-SA-00001"])


def test_an_old_tdx_module_or_quoting_enclave_is_reported(machine: Machine, td: VirtualTd, now: int) -> None:
    for shape in (CollateralShape(now, module_status="OutOfDate"), CollateralShape(now, qe_status="OutOfDate")):
        report = verdict(td.quote(b"x"), machine.collateral(shape), machine.vendor_root, now)
        assert report.status == "OutOfDate"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (CollateralShape(0, tcb_status="Revoked"), "[Rr]evoked"),
        (CollateralShape(0, fmspc=bytes(6)), "Fmspc mismatch"),
        (CollateralShape(0, minimum_module_svn=6), "TDX|module|TCB"),
        (CollateralShape(0, revoked=frozenset({"pck"})), "CertRevoked"),
        (CollateralShape(0, revoked=frozenset({"platform_ca"})), "CertRevoked"),
        (CollateralShape(0, revoked=frozenset({"tcb_signing"})), "CertRevoked"),
        (CollateralShape(-40 * DAY), "Expired|expired"),
        (CollateralShape(40 * DAY), "future|not yet|issue"),
    ],
)
def test_bad_news_in_collateral_is_refused(
    machine: Machine, td: VirtualTd, now: int, shape: CollateralShape, message: str
) -> None:
    """`issued_at` in these shapes counts from now."""
    issued = CollateralShape(
        now + shape.issued_at,
        tcb_status=shape.tcb_status,
        fmspc=shape.fmspc,
        minimum_module_svn=shape.minimum_module_svn,
        revoked=shape.revoked,
    )
    with pytest.raises(ValueError, match=message):
        verdict(td.quote(b"x"), machine.collateral(issued), machine.vendor_root, now)


def test_a_debug_td_is_refused(machine: Machine, td: VirtualTd, now: int) -> None:
    quote = td.quote(b"x", td_attributes=TD_ATTRIBUTES_DEBUG)
    with pytest.raises(ValueError, match="Debug mode"):
        verdict(quote, machine.collateral(CollateralShape(now)), machine.vendor_root, now)


def test_a_td_on_an_older_tdx_module_version_is_refused(machine: Machine, now: int) -> None:
    quote = make_quote(machine.pki, TdReport(bytes(64), tee_tcb_svn=TEE_TCB_SVN[:1] + b"\x02" + TEE_TCB_SVN[2:]))
    with pytest.raises(ValueError, match=r"TDX|[Mm]odule"):
        verdict(quote, machine.collateral(CollateralShape(now)), machine.vendor_root, now)


@pytest.mark.parametrize("offset", [60, 184, 376, 520, 568, 640, 800, 1160])
def test_a_flipped_bit_is_refused(machine: Machine, td: VirtualTd, now: int, offset: int) -> None:
    quote = bytearray(td.quote(b"x"))
    quote[offset] ^= 1
    with pytest.raises(ValueError, match=r"\w"):
        verdict(bytes(quote), machine.collateral(CollateralShape(now)), machine.vendor_root, now)


def test_collateral_is_reissued_before_half_its_life_and_after_a_step_back(machine: Machine, now: int) -> None:
    renewed = Renewed(machine.pki)
    first = renewed.at(now)
    assert renewed.at(now + DAY - 1) is first
    second = renewed.at(now + DAY)
    assert second.issued_at == now + DAY
    assert renewed.at(now).issued_at == now
