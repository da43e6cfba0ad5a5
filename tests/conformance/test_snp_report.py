"""A real report of a Milan machine, its VCEK and its chain under AMD's root."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from libs.errors import MeshError
from libs.tee.snp import judgement, verification
from libs.tee.snp import report as reports
from libs.tee.snp.chain import Chain, verify_chain
from libs.tee.snp.endorsement import SnpEndorsement
from libs.tee.snp.report import PlatformFlag, PolicyFlag, Product, Tcb
from libs.tee.snp.rules import SnpRule

_FOLDER = os.environ.get("TEEMESH_FIXTURES")
pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(_FOLDER is None, reason="TEEMESH_FIXTURES does not name the outside vectors"),
]
_SNP = Path(_FOLDER or "") / "quotes" / "snp"

# AMD's root for Milan, as its Key Distribution Service publishes it.
_ARK_MILAN_SHA256 = "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"
# The VCEK is valid from 2022-09-24 00:55:28 to 2029-09-24 00:55:28.
_START, _END = 1663980928, 1884905728
_NOW = 1_700_000_000
_TCB = Tcb(bootloader=2, tee=0, snp=5, microcode=68)


def _report() -> bytes:
    return (_SNP / "attestation.bin").read_bytes()


def _endorsement() -> SnpEndorsement:
    vcek, chain = (_SNP / "vcek.der").read_bytes(), (_SNP / "milan-chain.pem").read_text()
    return SnpEndorsement.parse({"vcek": vcek.hex(), "chain": chain, "crl": ""})


def _chain(now: int = _NOW) -> Chain:
    endorsement = _endorsement()
    return verify_chain(endorsement, [endorsement.ark.der], now)


def _reason(action: Callable[[], object]) -> str:
    with pytest.raises(MeshError) as refusal:
        action()
    return refusal.value.reason


def test_chain_leads_to_the_root_that_amd_publishes() -> None:
    chain = _chain()
    assert chain.root_sha256.hex() == _ARK_MILAN_SHA256
    assert (chain.vcek.product, chain.vcek.tcb, len(chain.vcek.hwid)) == (Product.MILAN, _TCB, 64)
    assert chain.valid_until == _END


@pytest.mark.parametrize("now", [_START, _END])
def test_chain_holds_from_its_first_to_its_last_second(now: int) -> None:
    assert _chain(now).vcek.product is Product.MILAN


@pytest.mark.parametrize("now", [_START - 1, _END + 1])
def test_chain_does_not_hold_outside(now: int) -> None:
    assert _reason(lambda: _chain(now)) == "SNP_CERTIFICATE_NOT_CURRENT"


def test_report_is_signed_by_the_vcek_at_its_patch_levels() -> None:
    report = reports.parse(_report())
    tcbs = verification.verify_report(report, _chain().vcek)
    assert tcbs == verification.ReportTcbs(_TCB, _TCB, _TCB, _TCB)
    assert (report.version, report.vmpl, report.minimum_abi, report.cpu) == (2, 0, (0, 0), None)
    assert report.policy == PolicyFlag.DEBUG_ALLOWED | PolicyFlag.SMT_ALLOWED
    assert report.platform == PlatformFlag.SMT_ENABLED
    assert report.report_data == bytes((1, 2, 3, 4, 5)) + bytes(59)
    assert report.current_firmware == report.committed_firmware == (1, 49, 3)


@pytest.mark.parametrize("at", [0x04, 0x10, 0x50, 0x90, 0xC0, 0x140, 0x1E8, 0x2A0, 0x2E8])
def test_flipped_bit_is_refused(at: int) -> None:
    altered = bytearray(_report())
    altered[at] ^= 1
    vcek = _chain().vcek
    assert _reason(lambda: verification.verify_report(reports.parse(bytes(altered)), vcek)) == "SNP_SIGNATURE_INVALID"


def test_flipped_bit_of_a_reserved_byte_is_refused() -> None:
    altered = bytearray(_report())
    altered[0x29F] ^= 1
    assert _reason(lambda: reports.parse(bytes(altered))) == "SNP_REPORT_MALFORMED"


def test_flipped_bit_of_the_vcek_is_refused() -> None:
    endorsement = _endorsement()
    der = bytearray(endorsement.vcek.der)
    der[15] ^= 1  # Its serial number, 0, for which the parser is given another.
    members = endorsement.to_json() | {"vcek": der.hex()}
    altered = SnpEndorsement.parse(members)
    assert _reason(lambda: verify_chain(altered, [endorsement.ark.der], _NOW)) == "SNP_CHAIN_INVALID"


def test_without_a_crl_the_report_is_refused() -> None:
    endorsement = _endorsement()
    roots = [endorsement.ark.der]
    assert _reason(lambda: verification.verify(_report(), endorsement, roots, _NOW)) == "SNP_REVOCATION_UNKNOWN"


def test_debugging_alone_refuses_it() -> None:
    report = reports.parse(_report())
    default = SnpRule({Product.MILAN: _TCB}, maximum_crl_age_seconds=0)
    lenient = replace(default, allow_smt=True, required_platform=PlatformFlag(0))
    assert _reason(lambda: judgement.judge_guest(report, default)) == "SNP_DEBUG"
    assert _reason(lambda: judgement.judge_guest(report, lenient)) == "SNP_DEBUG"
    judgement.judge_guest(replace(report, policy=report.policy & ~PolicyFlag.DEBUG_ALLOWED), lenient)
