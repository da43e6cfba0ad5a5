"""One row per way to be refused: accepted evidence, one thing about it changed, exactly that reason."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import libs.tee.snp
from libs.errors import MeshError
from libs.tee.snp import judgement, verification
from libs.tee.snp.endorsement import SnpEndorsement
from libs.tee.snp.report import PlatformFlag, PolicyFlag, Product, Tcb
from libs.tee.snp.rules import SnpRule
from libs.tee.tdx import VendorRootNotTrusted
from tests.fakes.snp_platform import DAY, NOW, SnpChip, chip, encode_tcb, number, policy, vcek_extensions

_ARC = "1.3.6.1.4.1.3704.1"
_LOW = Tcb(4, 1, 23, 219)
Act = Callable[[SnpChip], object]


def _rule(one: SnpChip) -> SnpRule:
    return SnpRule(
        minimum_tcb={one.product: one.tcb},
        maximum_crl_age_seconds=2 * DAY,
        minimum_abi=(1, 55),
        require_single_socket=True,
    )


def _appraise(
    one: SnpChip,
    report: bytes | None = None,
    endorsement: SnpEndorsement | None = None,
    roots: list[bytes] | None = None,
    rule: SnpRule | None = None,
    now: int = NOW,
) -> int:
    verified = verification.verify(
        one.report() if report is None else report,
        one.endorsement() if endorsement is None else endorsement,
        [one.root] if roots is None else roots,
        now,
    )
    rule = rule or _rule(one)
    until = judgement.judge_tcb(verified, rule, now)
    judgement.judge_guest(verified.report, rule)
    return until


def _with_vcek(**changes: object) -> Act:
    return lambda one: _appraise(one, endorsement=one.endorsement(vcek=one.vcek(**changes)))  # type: ignore[arg-type]


def _with_ask(**changes: object) -> Act:
    return lambda one: _appraise(one, endorsement=one.endorsement(ask=one.ask(**changes)))  # type: ignore[arg-type]


def _with_ark(**changes: object) -> Act:
    def act(one: SnpChip) -> object:
        ark = one.ark(**changes)  # type: ignore[arg-type]
        return _appraise(one, endorsement=one.endorsement(ark=ark), roots=[ark])

    return act


def _with_crl(**changes: object) -> Act:
    return lambda one: _appraise(one, endorsement=one.endorsement(crl=one.crl(**changes)))  # type: ignore[arg-type]


def _with_report(patches: dict[int, bytes] | None = None, **changes: int | bytes) -> Act:
    return lambda one: _appraise(one, report=one.report(patches, **changes))


def _with_rule(**changes: object) -> Act:
    return lambda one: _appraise(one, rule=replace(_rule(one), **changes))  # type: ignore[arg-type]


def _with_amd(last: str, value: bytes | None) -> Act:
    """Change one extension of the VCEK, or leave it out."""

    def act(one: SnpChip) -> object:
        amd = {oid: old for oid, old in one.vcek_form.amd.items() if oid != f"{_ARC}.{last}"}
        if value is not None:
            amd[f"{_ARC}.{last}"] = value
        return _appraise(one, endorsement=one.endorsement(vcek=one.vcek(amd=amd)))

    return act


def _flags(*more: PolicyFlag) -> int:
    return policy(PolicyFlag.SINGLE_SOCKET_REQUIRED, *more)


def _foreign() -> SnpChip:
    return chip(Product.GENOA)


def _flipped(at: int) -> Act:
    def act(one: SnpChip) -> object:
        report = bytearray(one.report())
        report[at] ^= 1
        return _appraise(one, report=bytes(report))

    return act


def _without_crl(one: SnpChip) -> object:
    return _appraise(one, endorsement=SnpEndorsement.parse(one.members() | {"crl": ""}))


def _with_ark_of_another_product(one: SnpChip) -> object:
    ark = one.ark(subject="ARK-Genoa", issuer="ARK-Genoa")
    return _appraise(one, endorsement=one.endorsement(ark=ark, ask=one.ask(issuer="ARK-Genoa")), roots=[ark])


def _with_nameless_ask(one: SnpChip) -> object:
    return _appraise(one, endorsement=one.endorsement(ask=one.ask(subject=""), vcek=one.vcek(issuer="")))


def _with_ark_of_another_kind(one: SnpChip) -> object:
    """Pin a root whose key cannot have signed anything here, as another vendor's would be."""
    name = one.ark_form.subject
    ark = one.vcek(subject=name, issuer=name, serial=9, ca=True, signs_certificates=True, signs_crls=True, amd={})
    return _appraise(one, endorsement=one.endorsement(ark=ark), roots=[ark])


def _with_negative_serial(one: SnpChip) -> object:
    vcek = one.vcek().replace(b"\xa0\x03\x02\x01\x02\x02\x01\x00", b"\xa0\x03\x02\x01\x02\x02\x01\x80", 1)
    return _appraise(one, endorsement=one.endorsement(vcek=vcek))


_ROWS: list[tuple[str, str, Act]] = [
    # Step 1: form.
    ("SNP_REPORT_MALFORMED", "one byte short", lambda one: _appraise(one, report=one.report()[:-1])),
    ("SNP_REPORT_MALFORMED", "zero padding", lambda one: _appraise(one, report=one.report() + b"\0")),
    ("SNP_REPORT_MALFORMED", "version 1", _with_report(version=1)),
    ("SNP_REPORT_MALFORMED", "version 4", _with_report(version=4)),
    ("SNP_REPORT_MALFORMED", "version 6", _with_report(version=6)),
    ("SNP_REPORT_MALFORMED", "another algorithm", _with_report(algorithm=2)),
    ("SNP_REPORT_MALFORMED", "policy's constant bit clear", _with_report(policy=_flags() ^ 1 << 17)),
    ("SNP_REPORT_MALFORMED", "policy's reserved bit", _with_report(policy=_flags() | 1 << 26)),
    ("SNP_REPORT_MALFORMED", "platform's reserved bit 6", _with_report(platform=1 << 6 | 1 << 5)),
    ("SNP_REPORT_MALFORMED", "platform's reserved bit 8", _with_report(platform=1 << 8 | 1 << 5)),
    ("SNP_REPORT_MALFORMED", "key info's reserved bit", _with_report(key_info=1 << 5)),
    ("SNP_REPORT_MALFORMED", "reserved signing key", _with_report(key_info=2 << 2)),
    ("SNP_REPORT_MALFORMED", "reserved after key info", _with_report({0x4C: b"\1"})),
    ("SNP_REPORT_MALFORMED", "author key not enabled", _with_report(author_key_digest=b"\1" * 48)),
    ("SNP_REPORT_MALFORMED", "CPU in version 2", _with_report({0x188: b"\1"}, version=2)),
    ("SNP_REPORT_MALFORMED", "reserved after CPU", _with_report({0x18B: b"\1"})),
    ("SNP_REPORT_MALFORMED", "reserved in firmware version", _with_report({0x1EB: b"\1"})),
    ("SNP_REPORT_MALFORMED", "mitigations in version 3", _with_report({0x1F8: b"\1"})),
    ("SNP_REPORT_MALFORMED", "reserved end of version 5", _with_report({0x208: b"\1"}, version=5)),
    ("SNP_REPORT_MALFORMED", "r beyond P-384", _flipped(0x2A0 + 48)),
    ("SNP_REPORT_MALFORMED", "s beyond P-384", _flipped(0x2A0 + 72 + 48)),
    ("SNP_REPORT_MALFORMED", "reserved after signature", _flipped(0x49F)),
    ("SNP_REPORT_MALFORMED", "reserved in a TCB", _with_report(launch_tcb=b"\4\1\1\0\0\0\x18\xdb")),
    ("SNP_ENDORSEMENT_MALFORMED", "not an object", lambda one: SnpEndorsement.parse([])),
    ("SNP_ENDORSEMENT_MALFORMED", "negative serial number", _with_negative_serial),
    # Step 2: signature, chain, revocation.
    ("SNP_SIGNING_KEY_NOT_ALLOWED", "unsigned", _with_report(key_info=7 << 2)),
    ("SNP_VLEK_NOT_SUPPORTED", "report by a VLEK", _with_report(key_info=1 << 2)),
    ("SNP_VLEK_NOT_SUPPORTED", "certificate of a VLEK", _with_vcek(subject="SEV-VLEK")),
    (
        "SNP_VLEK_NOT_SUPPORTED",
        "chain of a VLEK",
        lambda one: _appraise(
            one,
            endorsement=one.endorsement(ask=one.ask(subject="SEV-VLEK-Milan"), vcek=one.vcek(issuer="SEV-VLEK-Milan")),
        ),
    ),
    ("SNP_CHIP_MASKED", "chip key masked", _with_report(key_info=1 << 1)),
    ("SNP_CHIP_MASKED", "chip id masked", _with_report(chip_id=bytes(64))),
    ("VENDOR_ROOT_NOT_TRUSTED", "another root", lambda one: _appraise(one, roots=[_foreign().root])),
    ("VENDOR_ROOT_NOT_TRUSTED", "no root", lambda one: _appraise(one, roots=[])),
    ("SNP_CHAIN_INVALID", "ARK not signed by itself", _with_ark(key=_foreign().ark_key)),
    ("SNP_CHAIN_INVALID", "ASK signed by another", _with_ask(key=_foreign().ark_key)),
    ("SNP_CHAIN_INVALID", "VCEK signed by another", _with_vcek(key=_foreign().ask_key)),
    ("SNP_CHAIN_INVALID", "VCEK signed by the ARK", lambda one: _with_vcek(key=one.ark_key)(one)),
    ("SNP_CHAIN_INVALID", "ARK's issuer", _with_ark(issuer="ARK-Genoa")),
    ("SNP_CHAIN_INVALID", "ASK's issuer", _with_ask(issuer="ARK-Genoa")),
    ("SNP_CHAIN_INVALID", "VCEK's issuer", _with_vcek(issuer="SEV-Genoa")),
    (
        "SNP_CHAIN_INVALID",
        "ASK of another product",
        lambda one: _appraise(
            one,
            endorsement=one.endorsement(ask=one.ask(subject="SEV-Genoa"), vcek=one.vcek(issuer="SEV-Genoa")),
        ),
    ),
    ("SNP_CHAIN_INVALID", "ARK of another product", _with_ark_of_another_product),
    ("SNP_CHAIN_INVALID", "ARK with another kind of key", _with_ark_of_another_kind),
    ("SNP_CHAIN_INVALID", "ASK without a name", _with_nameless_ask),
    ("SNP_CHAIN_INVALID", "VCEK's name", _with_vcek(subject="SEV-Milan")),
    ("SNP_CHAIN_INVALID", "VCEK with authority", _with_vcek(ca=True)),
    ("SNP_CHAIN_INVALID", "ASK without authority", _with_ask(ca=False)),
    ("SNP_CHAIN_INVALID", "ASK that may not sign", _with_ask(signs_certificates=False)),
    ("SNP_CHAIN_INVALID", "ARK without authority", _with_ark(ca=False)),
    ("SNP_CHAIN_INVALID", "ARK that may not sign", _with_ark(signs_certificates=False)),
    ("SNP_CHAIN_INVALID", "ARK that may not sign CRLs", _with_ark(signs_crls=False)),
    ("SNP_CHAIN_INVALID", "unknown critical extension", _with_vcek(odd=(x509.OCSPNoCheck(),))),
    ("SNP_CHAIN_INVALID", "unknown critical extension of the ASK", _with_ask(odd=(x509.OCSPNoCheck(),))),
    ("SNP_CHAIN_INVALID", "key on P-256", _with_vcek(subject_key=ec.generate_private_key(ec.SECP256R1()))),
    ("SNP_CHAIN_INVALID", "RSA key", _with_vcek(subject_key=rsa.generate_private_key(65537, 2048))),
    ("SNP_CHAIN_INVALID", "extension twice", _with_vcek(patch=(b"\x9c\x78\x01\x03\x02", b"\x9c\x78\x01\x03\x01"))),
    ("SNP_CHAIN_INVALID", "no struct version", _with_amd("1", None)),
    ("SNP_CHAIN_INVALID", "unknown struct version", _with_amd("1", number(2))),
    ("SNP_CHAIN_INVALID", "no product name", _with_amd("2", None)),
    ("SNP_CHAIN_INVALID", "unknown product", _with_amd("2", b"\x16\x07Rome-B0")),
    ("SNP_CHAIN_INVALID", "product name of another type", _with_amd("2", b"\x0c\x08Milan-B0")),
    ("SNP_CHAIN_INVALID", "product name of another length", _with_amd("2", b"\x16\x09Milan-B0")),
    ("SNP_CHAIN_INVALID", "no patch level", _with_amd("3.3", None)),
    ("SNP_CHAIN_INVALID", "patch level of two bytes", _with_amd("3.3", b"\x02\x02\x01\x18")),
    ("SNP_CHAIN_INVALID", "patch level padded", _with_amd("3.3", b"\x02\x02\x00\x18")),
    ("SNP_CHAIN_INVALID", "negative patch level", _with_amd("3.3", b"\x02\x01\x98")),
    ("SNP_CHAIN_INVALID", "reserved patch level", _with_amd("3.4", number(1))),
    ("SNP_CHAIN_INVALID", "patch level of another product", _with_amd("3.9", number(2))),
    ("SNP_CHAIN_INVALID", "no hardware identity", _with_amd("4", None)),
    ("SNP_CHAIN_INVALID", "short hardware identity", _with_amd("4", bytes(63))),
    ("SNP_CERTIFICATE_NOT_CURRENT", "ARK expired", _with_ark(end=NOW - 1)),
    ("SNP_CERTIFICATE_NOT_CURRENT", "ASK expired", _with_ask(end=NOW - 1)),
    ("SNP_CERTIFICATE_NOT_CURRENT", "VCEK expired", _with_vcek(end=NOW - 1)),
    ("SNP_CERTIFICATE_NOT_CURRENT", "VCEK not valid yet", _with_vcek(start=NOW + 1)),
    ("SNP_REVOCATION_UNKNOWN", "no CRL", _without_crl),
    ("SNP_CRL_INVALID", "CRL signed by another", _with_crl(key=_foreign().ark_key)),
    ("SNP_CRL_INVALID", "CRL signed by the ASK", lambda one: _with_crl(key=one.ask_key)(one)),
    ("SNP_CRL_INVALID", "CRL of another issuer", _with_crl(issuer="ARK-Genoa")),
    ("SNP_CRL_INVALID", "part of a CRL", _with_crl(critical=x509.DeltaCRLIndicator(1))),
    ("SNP_CRL_NOT_CURRENT", "CRL ends now", _with_crl(end=NOW)),
    ("SNP_CRL_NOT_CURRENT", "CRL not valid yet", _with_crl(start=NOW + 1)),
    ("SNP_CERTIFICATE_REVOKED", "ASK revoked", _with_crl(revoked=[1, 65537])),
    ("SNP_CERTIFICATE_REVOKED", "ARK revoked", _with_crl(revoked=[65536])),
    ("SNP_SIGNATURE_INVALID", "report altered", _flipped(0x50)),
    ("SNP_SIGNATURE_INVALID", "signature altered", _flipped(0x2A0)),
    (
        "SNP_SIGNATURE_INVALID",
        "VCEK for another key",
        _with_vcek(subject_key=ec.generate_private_key(ec.SECP384R1())),
    ),
    (
        "SNP_SIGNATURE_INVALID",
        "signature of zeros",
        lambda one: _appraise(one, report=one.report()[:0x2A0] + bytes(512)),
    ),
    ("SNP_PRODUCT_MISMATCH", "CPU of another product", _with_report(cpu=b"\x19\x11\x00")),
    ("SNP_PRODUCT_MISMATCH", "unknown model", _with_report(cpu=b"\x19\x20\x00")),
    ("SNP_PRODUCT_MISMATCH", "unknown family", _with_report(cpu=b"\x17\x01\x00")),
    ("SNP_TCB_MISMATCH", "report for another TCB", _with_report(reported_tcb=encode_tcb(_LOW))),
    (
        "SNP_TCB_MISMATCH",
        "VCEK for another TCB",
        lambda one: _with_vcek(amd=vcek_extensions(one.product, _LOW, one.hwid))(one),
    ),
    ("SNP_CHIP_MISMATCH", "report of another chip", _with_report(chip_id=b"\x07" * 64)),
    ("SNP_CHIP_MISMATCH", "VCEK of another chip", _with_amd("4", b"\x07" * 64)),
    # Step 3: platform.
    ("SNP_PRODUCT_NOT_ALLOWED", "no minimum", _with_rule(minimum_tcb={Product.GENOA: _LOW})),
    ("SNP_TCB_TOO_LOW", "reported", _with_rule(minimum_tcb={Product.MILAN: Tcb(4, 1, 25, 219)})),
    ("SNP_TCB_TOO_LOW", "current", _with_report(current_tcb=encode_tcb(_LOW))),
    ("SNP_TCB_TOO_LOW", "committed", _with_report(committed_tcb=encode_tcb(_LOW))),
    ("SNP_TCB_TOO_LOW", "launch", _with_report(launch_tcb=encode_tcb(_LOW))),
    ("SNP_CRL_TOO_OLD", "older than policy accepts", _with_rule(maximum_crl_age_seconds=DAY - 1)),
    # Step 4: guest.
    ("SNP_DEBUG", "debugging", _with_report(policy=_flags(PolicyFlag.DEBUG_ALLOWED))),
    ("SNP_MIGRATION_ALLOWED", "migration", _with_report(policy=_flags(PolicyFlag.MIGRATION_AGENT_ALLOWED))),
    ("SNP_MIGRATION_AGENT_BOUND", "agent", _with_report(report_id_ma=b"\1" * 32)),
    ("SNP_SMT_NOT_ALLOWED", "SMT", _with_report(policy=_flags(PolicyFlag.SMT_ALLOWED))),
    ("SNP_CXL_NOT_ALLOWED", "CXL", _with_report(policy=_flags(PolicyFlag.CXL_ALLOWED))),
    ("SNP_SINGLE_SOCKET_REQUIRED", "several sockets", _with_report(policy=policy())),
    ("SNP_ABI_TOO_OLD", "minor", _with_report(policy=policy(PolicyFlag.SINGLE_SOCKET_REQUIRED, abi=0x0136))),
    ("SNP_ABI_TOO_OLD", "major", _with_report(policy=policy(PolicyFlag.SINGLE_SOCKET_REQUIRED, abi=0x00FF))),
    ("SNP_PLATFORM_NOT_ALLOWED", "no alias check", _with_report(platform=int(PlatformFlag.ECC_ENABLED))),
    ("SNP_VMPL_NOT_ALLOWED", "VMPL 1", _with_report(vmpl=1)),
    ("SNP_VMPL_NOT_ALLOWED", "asked for by the host", _with_report(vmpl=0xFFFFFFFF)),
    ("SNP_ID_KEY_NOT_ALLOWED", "unknown ID key", _with_report(id_key_digest=b"\1" * 48)),
    ("SNP_AUTHOR_KEY_NOT_ALLOWED", "unknown author key", _with_report(key_info=1, author_key_digest=b"\1" * 48)),
    ("SNP_AUTHOR_KEY_NOT_ALLOWED", "author key of zeros", _with_report(key_info=1)),
    ("SNP_GUEST_SVN_TOO_LOW", "older guest", _with_rule(minimum_guest_svn=1)),
]


def test_the_evidence_that_the_rows_change_is_accepted() -> None:
    one = chip()
    assert _appraise(one) == NOW + DAY


@pytest.mark.parametrize(
    ("reason", "act"), [(row[0], row[2]) for row in _ROWS], ids=[f"{row[0]}: {row[1]}" for row in _ROWS]
)
def test_what_breaks_one_thing_is_refused_for_it(reason: str, act: Act) -> None:
    with pytest.raises(MeshError) as refusal:
        act(chip())
    assert refusal.value.reason == reason


def test_every_reason_has_a_row() -> None:
    modules = [
        importlib.import_module(f"libs.tee.snp.{found.name}") for found in pkgutil.iter_modules(libs.tee.snp.__path__)
    ]
    reasons = {
        value.reason
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, MeshError) and value.__module__ == module.__name__
    }
    assert reasons == {row[0] for row in _ROWS} - {VendorRootNotTrusted.reason}
