"""Rows about SEV-SNP: whole evidence of a guest, its report, AMD's endorsement or policy wrong in one thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from libs.tee.appraisal import OwnNonce
from libs.tee.device import DeviceLists
from libs.tee.measurement import MeasurementSet
from libs.tee.rules import AnyOf
from libs.tee.snp.certificates import CERTIFICATE_BYTES
from libs.tee.snp.report import PlatformFlag, PolicyFlag, Product, Tcb
from services.devtee.der import sequence
from tests.fakes.snp_platform import DAY, NOW, SnpChip, encode_tcb, number, policy, vcek_extensions
from tests.unit.libs.tee.bad_evidence.row import Benches, Present, Row, SnpCase, edited, presenting
from tests.unit.libs.tee.bench import CLAIMS, COMPOSE

_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
_ARC = "1.3.6.1.4.1.3704.1"
_LOW = Tcb(4, 1, 23, 219)
_VERSION_3 = b"\xa0\x03\x02\x01\x02"

Make = Callable[[Benches], Present]


def case(benches: Benches) -> SnpCase:
    return SnpCase(benches.chip, benches.tdx)


def _document(change: Callable[[SnpCase, dict[str, Any]], None]) -> Make:
    """Good evidence in which a part was exchanged after it was made."""

    def make(benches: Benches) -> Present:
        one = case(benches)
        document = edited(one.evidence(), lambda value: change(one, value))
        return presenting(document, one.rules(), one.context())

    return make


def _quote(change: Callable[[bytes], bytes]) -> Make:
    def exchange(_one: SnpCase, value: dict[str, Any]) -> None:
        value["quote"] = change(bytes.fromhex(value["quote"])).hex()

    return _document(exchange)


def _reported(patches: dict[int, bytes] | None = None, **changes: Any) -> Make:
    """The chip says something else, and signs it."""

    def make(benches: Benches) -> Present:
        one = case(benches)
        challenge = one.challenge()
        report = one.report(challenge, patches, **changes)
        good = one.evidence(challenge=challenge)
        document = edited(good, lambda value: value.update(quote=report.hex()))
        return presenting(document, one.rules(), one.context())

    return make


def _endorsed(
    make: Callable[[SnpChip], dict[str, bytes]], roots: Callable[[dict[str, bytes]], Sequence[bytes]] | None = None
) -> Make:
    """Certificates and CRL as AMD would have to have issued them; the rest is the chip's own."""

    def present(benches: Benches) -> Present:
        one = case(benches)
        changed = make(one.chip)
        members = one.chip.members(**changed)
        document = edited(one.evidence(), lambda value: value.update(collateral=members))
        pinned = None if roots is None else tuple(roots(changed))
        return presenting(document, one.rules(roots=pinned), one.context())

    return present


def _vcek(**changes: Any) -> Make:
    return _endorsed(lambda chip: {"vcek": chip.vcek(**changes)})


def _ask(**changes: Any) -> Make:
    return _endorsed(lambda chip: {"ask": chip.ask(**changes)})


def _ark(**changes: Any) -> Make:
    return _endorsed(lambda chip: {"ark": chip.ark(**changes)}, lambda made: [made["ark"]])


def _crl(**changes: Any) -> Make:
    return _endorsed(lambda chip: {"crl": chip.crl(**changes)})


def _foreign(make: Callable[[SnpChip, SnpChip], dict[str, bytes]], pinned: bool = False) -> Make:
    """Signed by a key of another chip's chain."""

    def present(benches: Benches) -> Present:
        roots = (lambda made: [made["ark"]]) if pinned else None
        return _endorsed(lambda chip: make(chip, benches.other_chip), roots)(benches)

    return present


def _amd(last: str, value: bytes | None) -> Make:
    """Change one extension of the VCEK, or leave it out."""

    def make(chip: SnpChip) -> dict[str, bytes]:
        amd = {oid: old for oid, old in chip.vcek_form.amd.items() if oid != f"{_ARC}.{last}"}
        if value is not None:
            amd[f"{_ARC}.{last}"] = value
        return {"vcek": chip.vcek(amd=amd)}

    return _endorsed(make)


def _endorsement(change: Callable[[dict[str, str]], object]) -> Make:
    def exchange(_one: SnpCase, value: dict[str, Any]) -> None:
        change(value["collateral"])

    return _document(exchange)


def _der(name: str, change: Callable[[bytes], bytes]) -> Make:
    """A certificate or CRL whose bytes were changed after it was issued."""
    return _endorsement(lambda members: members.update({name: change(bytes.fromhex(members[name])).hex()}))


def _rule(**changes: Any) -> Make:
    def make(benches: Benches) -> Present:
        one = case(benches)
        return presenting(one.evidence().document, one.rules(one.rule(**changes)), one.context())

    return make


def _rules(change: Callable[[SnpCase], dict[str, Any]]) -> Make:
    def make(benches: Benches) -> Present:
        one = case(benches)
        return presenting(one.evidence().document, one.rules(**change(one)), one.context())

    return make


def _measured(**changes: str) -> Make:
    def make(benches: Benches) -> Present:
        one = case(benches)
        rules = one.rules()
        other = replace(one.measurement, **changes)
        snp = None if rules.snp is None else replace(rules.snp, measurements=MeasurementSet(frozenset({other})))
        return presenting(one.evidence().document, replace(rules, snp=snp), one.context())

    return make


def _model_not_stated(benches: Benches) -> Present:
    """A report of version 2 names no model, and one of the product is revoked."""
    one = case(benches)
    challenge = one.challenge()
    evidence = one.evidence(one.report(challenge, version=2), challenge=challenge)
    rules = one.rules(devices=DeviceLists(revoked_families=frozenset({"milan-19-01"})).rule())
    return presenting(evidence.document, rules, one.context())


def _no_alternative(benches: Benches) -> Present:
    one = case(benches)
    rules = one.rules()
    snp = None if rules.snp is None else replace(rules.snp, measurements=AnyOf(()))
    return presenting(one.evidence().document, replace(rules, snp=snp), one.context())


def flags(*more: PolicyFlag) -> int:
    return policy(PolicyFlag.SINGLE_SOCKET_REQUIRED, *more)


def _flipped(at: int) -> Make:
    def change(report: bytes) -> bytes:
        data = bytearray(report)
        data[at] ^= 1
        return bytes(data)

    return _quote(change)


def _another_product(chip: SnpChip) -> dict[str, bytes]:
    return {"ark": chip.ark(subject="ARK-Genoa", issuer="ARK-Genoa"), "ask": chip.ask(issuer="ARK-Genoa")}


def _another_kind(chip: SnpChip) -> dict[str, bytes]:
    """A root whose key cannot have signed anything here, as another vendor's would be."""
    name = chip.ark_form.subject
    made = chip.vcek(subject=name, issuer=name, serial=9, ca=True, signs_certificates=True, signs_crls=True, amd={})
    return {"ark": made}


def _product_that_is_none(chip: SnpChip) -> dict[str, bytes]:
    """A chain that is named as one without a product would be."""
    amd = {**chip.vcek_form.amd, f"{_ARC}.2": b"\x16\x07Rome-B0"}
    return {
        "ark": chip.ark(subject="ARK-None", issuer="ARK-None"),
        "ask": chip.ask(subject="SEV-None", issuer="ARK-None"),
        "vcek": chip.vcek(issuer="SEV-None", amd=amd),
        "crl": chip.crl(issuer="ARK-None"),
    }


def _turin_level(chip: SnpChip) -> dict[str, bytes]:
    return {"vcek": chip.vcek(amd={**chip.vcek_form.amd, f"{_ARC}.3.9": number(2)})}


def _own_nonce(benches: Benches) -> Present:
    one = case(benches)
    return presenting(one.evidence().document, one.rules(), replace(one.context(), challenge=OwnNonce(bytes(32))))


def _other_algorithm(der: bytes) -> bytes:
    """Name a shorter salt behind the signed part than inside it."""
    at = der.rindex(b"\x02\x01\x30")
    return der[: at + 2] + b"\x20" + der[at + 3 :]


def _padded_vcek(chip: SnpChip) -> dict[str, bytes]:
    return {"vcek": chip.vcek(amd={**chip.vcek_form.amd, f"{_ARC}.99": bytes(CERTIFICATE_BYTES)})}


def _even(make: Callable[[SnpChip], bytes]) -> Callable[[SnpChip], bytes]:
    """Sign until the last bit of the signature is clear, as it must be where it does not count."""

    def again(chip: SnpChip) -> bytes:
        return next(der for der in iter(lambda: make(chip), b"") if not der[-1] & 1)

    return again


def _half_a_byte(der: bytes) -> bytes:
    """State that the signature's last byte has unused bits."""
    at = der.rindex(b"\x03\x82\x01\x01\x00")
    return der[: at + 4] + b"\x01" + der[at + 5 :]


def _endless(chip: SnpChip) -> dict[str, bytes]:
    """A CRL that does not say when the next one comes, which no builder writes."""
    crl = x509.load_der_x509_crl(chip.crl())
    signed, update = crl.tbs_certlist_bytes, crl.next_update_utc
    if update is None:
        raise AssertionError("the chip's CRL says when the next one comes")
    stated = b"\x17\x0d" + update.strftime("%y%m%d%H%M%SZ").encode()
    # The first of its parts is the version, 02 01 01.
    content = signed[signed.index(b"\x02\x01\x01") :].replace(stated, b"")
    whole, signed = crl.public_bytes(Encoding.DER), sequence(content)
    signature = chip.ark_key.sign(signed, _PSS, hashes.SHA384())
    behind = whole.index(crl.tbs_certlist_bytes) + len(crl.tbs_certlist_bytes)
    return {"crl": sequence(signed, whole[behind : -len(signature)], signature)}


def _critical(benches: Benches) -> Present:
    return _crl(critical=x509.DeltaCRLIndicator(1))(benches)


_MALFORMED: list[tuple[str, Make]] = [
    ("zero padding", _quote(lambda report: report + b"\0")),
    ("one byte short", _quote(lambda report: report[:-1])),
    ("version 1", _reported(version=1)),
    ("version 4", _reported(version=4)),
    ("another algorithm", _reported(algorithm=2)),
    ("guest policy's constant bit clear", _reported(policy=flags() ^ 1 << 17)),
    ("guest policy's reserved bit", _reported(policy=flags() | 1 << 26)),
    ("platform's reserved bit", _reported(platform=1 << 6 | 1 << 5)),
    ("reserved bytes behind the key info", _reported({0x4C: b"\1"})),
    ("reserved signing key", _reported(key_info=2 << 2)),
    ("author key that is not enabled", _reported(author_key_digest=b"\1" * 48)),
    ("CPU in version 2", _reported({0x188: b"\1"}, version=2)),
    ("reserved byte in a firmware version", _reported({0x1EB: b"\1"})),
    ("mitigations in version 3", _reported({0x1F8: b"\1"})),
    ("reserved byte behind the signature", _flipped(0x49F)),
]
_CHAIN: list[tuple[str, Make]] = [
    ("ARK not signed by itself", _foreign(lambda one, other: {"ark": one.ark(key=other.ark_key)}, pinned=True)),
    ("ASK signed by a stranger", _foreign(lambda one, other: {"ask": one.ask(key=other.ark_key)})),
    ("VCEK signed by a stranger", _foreign(lambda one, other: {"vcek": one.vcek(key=other.ask_key)})),
    ("VCEK signed by the ARK", _endorsed(lambda one: {"vcek": one.vcek(key=one.ark_key)})),
    ("ARK's issuer", _ark(issuer="ARK-Genoa")),
    ("ASK's issuer", _ask(issuer="ARK-Genoa")),
    ("VCEK's issuer", _vcek(issuer="SEV-Genoa")),
    (
        "ASK of another product",
        _endorsed(lambda one: {"ask": one.ask(subject="SEV-Genoa"), "vcek": one.vcek(issuer="SEV-Genoa")}),
    ),
    ("ARK with another kind of key", _endorsed(_another_kind, lambda made: [made["ark"]])),
    ("ASK without a name", _endorsed(lambda one: {"ask": one.ask(subject=""), "vcek": one.vcek(issuer="")})),
    ("VCEK's name", _vcek(subject="SEV-Milan")),
    ("VCEK with authority", _vcek(ca=True)),
    ("ASK without authority", _ask(ca=False)),
    ("ASK that says it has no authority", _ask(ca=False, odd=(x509.BasicConstraints(ca=False, path_length=None),))),
    ("ASK that may not sign", _ask(signs_certificates=False)),
    ("ASK that may sign CRLs alone", _ask(signs_certificates=False, signs_crls=True)),
    ("ARK that may not sign CRLs", _ark(signs_crls=False)),
    ("unknown critical extension of the VCEK", _vcek(odd=(x509.OCSPNoCheck(),))),
    ("unknown critical extension of the ASK", _ask(odd=(x509.OCSPNoCheck(),))),
    ("key on P-256", _vcek(subject_key=ec.generate_private_key(ec.SECP256R1()))),
    ("RSA key", _vcek(subject_key=rsa.generate_private_key(65537, 2048))),
    ("extension twice", _vcek(patch=(b"\x9c\x78\x01\x03\x02", b"\x9c\x78\x01\x03\x01"))),
    ("no struct version", _amd("1", None)),
    ("unknown struct version", _amd("1", number(2))),
    ("no product name", _amd("2", None)),
    ("unknown product", _endorsed(_product_that_is_none, lambda made: [made["ark"]])),
    ("product name of another type", _amd("2", b"\x0c\x08Milan-B0")),
    ("no patch level", _amd("3.3", None)),
    ("patch level padded", _amd("3.3", b"\x02\x02\x00\x18")),
    ("reserved patch level", _amd("3.4", number(1))),
    ("patch level of another product", _endorsed(_turin_level)),
    ("no hardware identity", _amd("4", None)),
    ("short hardware identity", _amd("4", bytes(63))),
]
_ENDORSEMENT: list[tuple[str, Make]] = [
    ("member that is not known", _endorsement(lambda members: members.update(extra=""))),
    (
        "chain of one certificate",
        _endorsement(lambda members: members.update(chain=members["chain"][: members["chain"].index("-----BEGIN", 9)])),
    ),
    (
        "chain that is too long",
        _endorsement(lambda members: members.update(chain=members["chain"] + "\n" * 4 * CERTIFICATE_BYTES)),
    ),
    ("CRL of another version", _der("crl", lambda der: der.replace(b"\x02\x01\x01", b"\x02\x01\x07", 1))),
    ("CRL with half a byte of signature", _endorsed(lambda one: {"crl": _half_a_byte(_even(SnpChip.crl)(one))})),
    ("certificate that is too long", _endorsed(_padded_vcek)),
    ("certificate of another version", _der("vcek", lambda der: der.replace(_VERSION_3, b"\xa0\x03\x02\x01\x07", 1))),
    (
        "negative serial number",
        _der("vcek", lambda der: der.replace(_VERSION_3 + b"\x02\x01\x00", _VERSION_3 + b"\x02\x01\x80", 1)),
    ),
    ("two signature algorithms", _der("vcek", _other_algorithm)),
    (
        "certificate with half a byte of signature",
        _endorsed(lambda one: {"vcek": _half_a_byte(_even(SnpChip.vcek)(one))}),
    ),
    ("certificate of one byte", _der("vcek", lambda der: der[:1])),
    ("certificate with a length of three octets", _der("vcek", lambda der: b"\x30\x83\x00" + der[2:])),
]

ROWS = [
    *(Row(f"SNP report: {name}", 1, "SNP_REPORT_MALFORMED", make) for name, make in _MALFORMED),
    *(Row(f"SNP endorsement: {name}", 1, "SNP_ENDORSEMENT_MALFORMED", make) for name, make in _ENDORSEMENT),
    Row("SNP: no rules for the technology", 2, "TEE_TYPE_NOT_ALLOWED", lambda b: _none(b)),
    Row("SNP: report signed by nothing", 2, "SNP_SIGNING_KEY_NOT_ALLOWED", _reported(key_info=7 << 2)),
    Row("SNP: report signed by a VLEK", 2, "SNP_VLEK_NOT_SUPPORTED", _reported(key_info=1 << 2)),
    Row("SNP: certificate of a VLEK", 2, "SNP_VLEK_NOT_SUPPORTED", _vcek(subject="SEV-VLEK")),
    Row(
        "SNP: chain of a VLEK",
        2,
        "SNP_VLEK_NOT_SUPPORTED",
        _endorsed(lambda one: {"ask": one.ask(subject="SEV-VLEK-Milan"), "vcek": one.vcek(issuer="SEV-VLEK-Milan")}),
    ),
    Row("SNP: chip's key masked", 2, "SNP_CHIP_MASKED", _reported(key_info=1 << 1)),
    Row("SNP: chip's identity masked", 2, "SNP_CHIP_MASKED", _reported(chip_id=bytes(64))),
    Row("SNP: no vendor root", 2, "VENDOR_ROOT_NOT_TRUSTED", _endorsed(lambda _: {}, lambda _: ())),
    Row(
        "SNP: vendor root of another product",
        2,
        "VENDOR_ROOT_NOT_TRUSTED",
        lambda b: _endorsed(lambda _: {}, lambda _: (b.other_chip.root,))(b),
    ),
    *(Row(f"SNP chain: {name}", 2, "SNP_CHAIN_INVALID", make) for name, make in _CHAIN),
    Row("SNP: ARK of another product", 2, "SNP_CHAIN_INVALID", _endorsed(_another_product, lambda made: [made["ark"]])),
    Row("SNP: ARK expired", 2, "SNP_CERTIFICATE_NOT_CURRENT", _ark(end=NOW - 1)),
    Row("SNP: ASK expired", 2, "SNP_CERTIFICATE_NOT_CURRENT", _ask(end=NOW - 1)),
    Row("SNP: VCEK not valid yet", 2, "SNP_CERTIFICATE_NOT_CURRENT", _vcek(start=NOW + 1)),
    Row("SNP: no CRL", 2, "SNP_REVOCATION_UNKNOWN", _endorsement(lambda members: members.update(crl=""))),
    Row(
        "SNP: CRL signed by a stranger",
        2,
        "SNP_CRL_INVALID",
        _foreign(lambda one, other: {"crl": one.crl(key=other.ark_key)}),
    ),
    Row("SNP: CRL signed by the ASK", 2, "SNP_CRL_INVALID", _endorsed(lambda one: {"crl": one.crl(key=one.ask_key)})),
    Row("SNP: CRL of another issuer", 2, "SNP_CRL_INVALID", _crl(issuer="ARK-Genoa")),
    Row("SNP: part of a CRL", 2, "SNP_CRL_INVALID", _critical),
    Row("SNP: CRL that ends now", 2, "SNP_CRL_NOT_CURRENT", _crl(end=NOW)),
    Row("SNP: CRL without an end", 2, "SNP_CRL_NOT_CURRENT", _endorsed(_endless)),
    Row("SNP: CRL not valid yet", 2, "SNP_CRL_NOT_CURRENT", _crl(start=NOW + 1)),
    Row("SNP: ASK revoked", 2, "SNP_CERTIFICATE_REVOKED", _crl(revoked=[1, 65537])),
    Row("SNP: ARK revoked", 2, "SNP_CERTIFICATE_REVOKED", _crl(revoked=[65536])),
    Row("SNP: report altered", 2, "SNP_SIGNATURE_INVALID", _flipped(0x60)),
    Row("SNP: signature altered", 2, "SNP_SIGNATURE_INVALID", _flipped(0x2A0)),
    Row("SNP: signature of zeros", 2, "SNP_SIGNATURE_INVALID", _quote(lambda report: report[:0x2A0] + bytes(512))),
    Row("SNP: CPU of another product", 2, "SNP_PRODUCT_MISMATCH", _reported(cpu=b"\x19\x11\x00")),
    Row("SNP: unknown CPU", 2, "SNP_PRODUCT_MISMATCH", _reported(cpu=b"\x17\x01\x00")),
    Row(
        "SNP: reserved byte in a patch level", 2, "SNP_REPORT_MALFORMED", _reported(launch_tcb=b"\4\1\1\0\0\0\x18\xdb")
    ),
    Row("SNP: report at another patch level", 2, "SNP_TCB_MISMATCH", _reported(reported_tcb=encode_tcb(_LOW))),
    Row(
        "SNP: VCEK for another patch level",
        2,
        "SNP_TCB_MISMATCH",
        _endorsed(lambda one: {"vcek": one.vcek(amd=vcek_extensions(one.product, _LOW, one.hwid))}),
    ),
    Row("SNP: report of another chip", 2, "SNP_CHIP_MISMATCH", _reported(chip_id=b"\x07" * 64)),
    Row("SNP: VCEK of another chip", 2, "SNP_CHIP_MISMATCH", _amd("4", b"\x07" * 64)),
    Row("SNP: product without a minimum", 3, "SNP_PRODUCT_NOT_ALLOWED", _rule(minimum_tcb={Product.GENOA: _LOW})),
    *(
        Row(f"SNP: {what} behind policy's", 3, "SNP_TCB_TOO_LOW", _rule(minimum_tcb={Product.MILAN: least}))
        for what, least in (
            ("bootloader", Tcb(5, 1, 24, 219)),
            ("TEE", Tcb(4, 2, 24, 219)),
            ("SNP firmware", Tcb(4, 1, 25, 219)),
            ("microcode", Tcb(4, 1, 24, 220)),
            ("firmware manager", Tcb(4, 1, 24, 219, 1)),
        )
    ),
    *(
        Row(f"SNP: {name} level too low", 3, "SNP_TCB_TOO_LOW", _reported(None, **{f"{name}_tcb": encode_tcb(_LOW)}))
        for name in ("current", "committed", "launch")
    ),
    Row("SNP: CRL older than policy accepts", 3, "SNP_CRL_TOO_OLD", _rule(maximum_crl_age_seconds=DAY - 1)),
    Row("SNP: debugging", 4, "SNP_DEBUG", _reported(policy=flags(PolicyFlag.DEBUG_ALLOWED))),
    Row("SNP: migration", 4, "SNP_MIGRATION_ALLOWED", _reported(policy=flags(PolicyFlag.MIGRATION_AGENT_ALLOWED))),
    Row("SNP: migration agent", 4, "SNP_MIGRATION_AGENT_BOUND", _reported(report_id_ma=b"\1" * 32)),
    Row("SNP: SMT", 4, "SNP_SMT_NOT_ALLOWED", _reported(policy=flags(PolicyFlag.SMT_ALLOWED))),
    Row("SNP: CXL", 4, "SNP_CXL_NOT_ALLOWED", _reported(policy=flags(PolicyFlag.CXL_ALLOWED))),
    Row("SNP: several sockets", 4, "SNP_SINGLE_SOCKET_REQUIRED", _reported(policy=policy())),
    Row(
        "SNP: older ABI", 4, "SNP_ABI_TOO_OLD", _reported(policy=policy(PolicyFlag.SINGLE_SOCKET_REQUIRED, abi=0x0136))
    ),
    Row("SNP: no alias check", 4, "SNP_PLATFORM_NOT_ALLOWED", _reported(platform=int(PlatformFlag.ECC_ENABLED))),
    Row("SNP: VMPL 1", 4, "SNP_VMPL_NOT_ALLOWED", _reported(vmpl=1)),
    Row("SNP: report asked for by the host", 4, "SNP_VMPL_NOT_ALLOWED", _reported(vmpl=0xFFFFFFFF)),
    Row("SNP: unknown ID key", 4, "SNP_ID_KEY_NOT_ALLOWED", _reported(id_key_digest=b"\1" * 48)),
    Row(
        "SNP: unknown author key", 4, "SNP_AUTHOR_KEY_NOT_ALLOWED", _reported(key_info=1, author_key_digest=b"\1" * 48)
    ),
    Row("SNP: author key of zeros", 4, "SNP_AUTHOR_KEY_NOT_ALLOWED", _reported(key_info=1)),
    Row("SNP: older guest", 4, "SNP_GUEST_SVN_TOO_LOW", _rule(minimum_guest_svn=1)),
    Row("SNP: another verifier's challenge", 5, "NONCE_MISMATCH", _own_nonce),
    Row("SNP: quote of another answer", 5, "REPORT_DATA_MISMATCH", _reported(report_data=bytes(64))),
    Row(
        "SNP: claims changed after the report",
        5,
        "REPORT_DATA_MISMATCH",
        _document(lambda _, v: v.update(claims={**CLAIMS, "a": 1})),
    ),
    Row(
        "SNP: another app-compose text",
        7,
        "COMPOSE_HASH_MISMATCH",
        _document(lambda _, v: v.update(app_compose=COMPOSE + " ")),
    ),
    Row("SNP: another HOST_DATA", 7, "COMPOSE_HASH_MISMATCH", _reported(host_data=b"\x0d" * 32)),
    *(
        Row(f"SNP: another {name}", 8, "MEASUREMENT_NOT_ALLOWED", _measured(**{name: "00"}))
        for name in ("compose_hash", "launch_digest", "family_id", "image_id")
    ),
    Row("SNP: no alternative about measurements", 8, "NOTHING_ALLOWED", _no_alternative),
    Row(
        "SNP: machine not listed",
        9,
        "DEVICE_NOT_LISTED",
        _rules(lambda _: {"devices": DeviceLists(allowed=frozenset({"00" * 32})).rule()}),
    ),
    Row(
        "SNP: product revoked",
        9,
        "CPU_FAMILY_REVOKED",
        _rules(lambda _: {"devices": DeviceLists(revoked_families=frozenset({"milan-19-01"})).rule()}),
    ),
    Row(
        "SNP: product revoked with all its models",
        9,
        "CPU_FAMILY_REVOKED",
        _rules(lambda _: {"devices": DeviceLists(revoked_families=frozenset({"milan"})).rule()}),
    ),
    Row("SNP: model revoked that may be this one", 9, "CPU_FAMILY_REVOKED", _model_not_stated),
    Row("SNP: no GPU evidence", 10, "GPU_EVIDENCE_MISSING", _rules(lambda _: {"gpu_required": True})),
    Row("SNP: another role", 11, "ROLE_MISMATCH", _rules(lambda _: {"role": "kms"})),
]


def _none(benches: Benches) -> Present:
    one = case(benches)
    return presenting(one.evidence().document, replace(one.rules(), snp=None), one.context())
