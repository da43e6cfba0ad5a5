from __future__ import annotations

import hashlib

import pytest
from cryptography import x509

from libs.tee.snp import chain as chains
from libs.tee.snp import report as reports
from libs.tee.snp import verification
from libs.tee.snp.certificates import ChainInvalid
from libs.tee.snp.report import Cpu, PlatformFlag, PolicyFlag, Product, Tcb
from libs.tee.snp.verification import VerifiedSnpReport
from tests.fakes.snp_platform import DAY, NOW, SnpChip, chip, encode_tcb, number, twin, vcek_extensions

_ARC = "1.3.6.1.4.1.3704.1"


def _verify(one: SnpChip, report: bytes, now: int = NOW, **certificates: bytes) -> VerifiedSnpReport:
    return verification.verify(report, one.endorsement(**certificates), [b"another root", one.root], now)


@pytest.mark.parametrize("product", Product)
@pytest.mark.parametrize("version", [2, 3, 5])
def test_every_product_and_version_is_verified(product: Product, version: int) -> None:
    one = chip(product)
    verified = _verify(one, one.report(version=version))
    assert verified.product is product
    assert verified.tcbs == verification.ReportTcbs(one.tcb, one.tcb, one.tcb, one.tcb)
    assert verified.vendor_root_sha256 == hashlib.sha256(one.root).digest()
    assert verified.device_id == hashlib.sha256(one.hwid.ljust(64, b"\0")).hexdigest()
    assert (verified.report.cpu is None) == (version == 2)
    assert verified.report.mitigations == ((3, 7) if version == 5 else None)


def test_report_says_what_the_chip_wrote() -> None:
    one = chip()
    report = reports.parse(one.report(vmpl=2, guest_svn=9, family_id=b"f" * 16, image_id=b"i" * 16, version=5))
    assert (report.version, report.vmpl, report.guest_svn, report.minimum_abi) == (5, 2, 9, (1, 0x37))
    assert (report.family_id, report.image_id) == (b"f" * 16, b"i" * 16)
    assert (report.report_data, report.measurement, report.host_data) == (bytes(range(64)), b"\x0c" * 48, b"\x0d" * 32)
    assert report.policy == PolicyFlag.SINGLE_SOCKET_REQUIRED
    assert report.platform == PlatformFlag.ECC_ENABLED | PlatformFlag.ALIAS_CHECK_COMPLETE
    assert report.cpu == Cpu(0x19, 1, 1)
    assert report.current_firmware == report.committed_firmware == (1, 55, 41)


def test_four_patch_levels_are_told_apart() -> None:
    one = chip()
    tcbs = [Tcb(4, 1, 24, level) for level in (220, 221, 222)]
    current, committed, launch = (encode_tcb(tcb) for tcb in tcbs)
    report = one.report(current_tcb=current, committed_tcb=committed, launch_tcb=launch)
    assert _verify(one, report).tcbs == verification.ReportTcbs(one.tcb, *tcbs)


def test_turins_patch_levels_lie_elsewhere() -> None:
    raw = bytes((1, 2, 3, 4, 0, 0, 0, 5))
    assert Tcb.decode(raw, Product.TURIN) == Tcb(bootloader=2, tee=3, snp=4, microcode=5, fmc=1)
    with pytest.raises(reports.ReportMalformed):
        Tcb.decode(raw, Product.GENOA)
    with pytest.raises(reports.ReportMalformed):
        Tcb.decode(bytes((1, 2, 3, 4, 0, 0, 1, 5)), Product.TURIN)
    assert Tcb.decode(bytes((1, 2, 0, 0, 0, 0, 4, 5)), Product.GENOA) == Tcb(1, 2, 4, 5)


@pytest.mark.parametrize(
    ("family", "model", "product"),
    [
        (0x19, 0x00, Product.MILAN),
        (0x19, 0x0F, Product.MILAN),
        (0x19, 0x10, Product.GENOA),
        (0x19, 0x1F, Product.GENOA),
        (0x19, 0x20, None),
        (0x19, 0x9F, None),
        (0x19, 0xA0, Product.GENOA),
        (0x19, 0xAF, Product.GENOA),
        (0x19, 0xB0, None),
        (0x1A, 0x00, Product.TURIN),
        (0x1A, 0x11, Product.TURIN),
        (0x1A, 0x12, None),
        (0x17, 0x01, None),
    ],
)
def test_product_follows_from_family_and_model(family: int, model: int, product: Product | None) -> None:
    assert Cpu(family, model, 0).product() is product


def test_signatures_twin_is_the_same_report() -> None:
    one = chip()
    report = one.report()
    assert twin(report) != report
    assert _verify(one, twin(report)) == _verify(one, report)
    assert reports.parse(one.report(guest_svn=1)) != reports.parse(report)


def test_cpu_family_names_what_the_report_states() -> None:
    one = chip(Product.GENOA)
    assert _verify(one, one.report()).cpu_family == "Genoa-19-11"
    assert _verify(one, one.report(version=2)).cpu_family == "Genoa"


def test_verdict_ends_with_the_first_certificate_or_crl() -> None:
    one = chip()
    assert _verify(one, one.report()).valid_until == NOW + 10 * DAY - 1
    assert _verify(one, one.report(), vcek=one.vcek(end=NOW + 5)).valid_until == NOW + 5
    assert _verify(one, one.report(), ask=one.ask(end=NOW + 6)).valid_until == NOW + 6
    assert _verify(one, one.report()).crl_issued_at == NOW - DAY


def test_certificates_and_crl_hold_to_their_last_second() -> None:
    one = chip()
    assert _verify(one, one.report(), vcek=one.vcek(start=NOW, end=NOW)).valid_until == NOW
    assert _verify(one, one.report(), crl=one.crl(start=NOW, end=NOW + 1)).valid_until == NOW


def test_hardware_identity_may_be_wrapped() -> None:
    for product, head in ((Product.MILAN, b"\x04\x40"), (Product.TURIN, b"\x04\x08")):
        one = chip(product)
        amd = vcek_extensions(product, one.tcb, head + one.hwid)
        assert _verify(one, one.report(), vcek=one.vcek(amd=amd)).product is product


def test_turins_certificate_must_state_its_fmc_level() -> None:
    one = chip(Product.TURIN)
    amd = vcek_extensions(one.product, one.tcb, one.hwid)
    del amd[f"{_ARC}.3.9"]
    with pytest.raises(ChainInvalid):
        _verify(one, one.report(), vcek=one.vcek(amd=amd))


def test_second_struct_version_is_read() -> None:
    one = chip()
    amd = vcek_extensions(one.product, one.tcb, one.hwid) | {f"{_ARC}.1": number(1)}
    assert _verify(one, one.report(), vcek=one.vcek(amd=amd)).tcbs.reported == one.tcb


def test_serial_number_zero_is_covered_by_the_signature() -> None:
    one = chip()
    vcek = one.vcek()
    at = vcek.index(b"\xa0\x03\x02\x01\x02\x02\x01\x00") + 7
    with pytest.raises(ChainInvalid):
        _verify(one, one.report(), vcek=vcek[:at] + b"\x01" + vcek[at + 1 :])
    # The certificate is as odd as AMD's: this is what the parser itself says of it.
    with pytest.warns(match="serial number"):
        x509.load_der_x509_certificate(vcek)


@pytest.mark.parametrize("serial", [7, 2**64])
def test_vcek_with_a_serial_number_is_read_too(serial: int) -> None:
    one = chip()
    assert _verify(one, one.report(), vcek=one.vcek(serial=serial)).product is Product.MILAN


def test_crl_that_names_others_does_not_matter() -> None:
    one = chip()
    # 0 is every VCEK's serial number, and the root does not issue VCEKs.
    assert _verify(one, one.report(), crl=one.crl(revoked=[1, 2, 65538])).product is Product.MILAN


def test_chain_is_proved_without_a_crl_and_the_report_is_not() -> None:
    one = chip()
    endorsement = type(one.endorsement()).parse(one.members() | {"crl": ""})
    assert chains.verify_chain(endorsement, [one.root], NOW).vcek.hwid == one.hwid
    with pytest.raises(chains.RevocationUnknown):
        verification.verify(one.report(), endorsement, [one.root], NOW)


def test_report_of_a_chip_under_another_pinned_root_is_refused() -> None:
    one, other = chip(), chip(Product.GENOA)
    with pytest.raises(verification.SignatureInvalid):
        verification.verify(other.report(), one.endorsement(), [one.root, other.root], NOW)
