"""Rows about TDX: the quote, Intel's word on the platform, and the TD itself (steps 2 to 4)."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import Encoding

from libs.tee import binding, tdx
from libs.tee.evidence import Evidence
from libs.tee.steps import Steps
from libs.tee.td import TdReport as ReadReport
from libs.tee.td import judge_td
from services.devtee.collateral import CollateralShape
from services.devtee.quotes import TD_ATTRIBUTES, TdReport, make_quote
from tests.unit.libs.tee.bad_evidence.row import Benches, Present, Row, edited, presenting
from tests.unit.libs.tee.bench import CLAIMS, DAY, NOW, Bench

_SIGNED_V4 = 632


def _shaped(rule: dict[str, Any] | None = None, now: int = NOW, **shape: Any) -> Callable[[Benches], Present]:
    """Collateral that says something else, under the strict rule with these changes."""

    def make(benches: Benches) -> Present:
        bench = benches.tdx
        evidence = bench.evidence(
            shape=CollateralShape(**{"issued_at": now, **shape}), challenge=bench.issuer.challenge(now)
        )
        return presenting(evidence.document, bench.tcb(**(rule or {})), bench.context(now))

    return make


def _under(**rule: Any) -> Callable[[Benches], Present]:
    """Good evidence under a stricter rule about patch levels."""
    return lambda benches: presenting(benches.tdx.evidence().document, benches.tdx.tcb(**rule), benches.tdx.context())


def _document(change: Callable[[Benches, dict[str, Any]], None]) -> Callable[[Benches], Present]:
    """Good evidence in which a part was changed after it was made."""

    def make(benches: Benches) -> Present:
        document = edited(benches.tdx.evidence(), lambda value: change(benches, value))
        return presenting(document, benches.tdx.rules(), benches.tdx.context())

    return make


def _flipped(at: int) -> Callable[[Benches], Present]:
    def change(_benches: Benches, value: dict[str, Any]) -> None:
        quote = bytearray.fromhex(value["quote"])
        quote[at] ^= 1
        value["quote"] = quote.hex()

    return _document(change)


def _attributes(value: str, listed: str | None = None) -> Callable[[Benches], Present]:
    """A TD with these attributes, which policy lists where `listed` says so."""

    def make(benches: Benches) -> Present:
        bench = benches.tdx
        evidence = bench.evidence(td_attributes=bytes.fromhex(value))
        rules = replace(bench.rules(), tdx=bench.tdx(td_attributes=frozenset({listed or TD_ATTRIBUTES.hex()})))
        return presenting(evidence.document, rules, bench.context())

    return make


def _listed(value: str) -> Callable[[Benches], Present]:
    return _attributes(value, value)


def with_quote(bench: Bench, quote: Callable[[TdReport], bytes], **report: Any) -> Evidence:
    """Evidence whose quote is made of the bench's own report with these changes."""
    challenge = bench.issuer.challenge()
    bound = binding.report_data(challenge.nonce, bench.spki, CLAIMS)
    made = quote(TdReport(bound, mrtd=bench.machine.image.mrtd, rtmrs=bench.td.rtmrs, **report))
    good = bench.evidence(challenge=challenge)

    def edit(value: dict[str, Any]) -> None:
        value["quote"] = made.hex()

    return replace(good, document=edited(good, edit))


def stating(
    change: Callable[[dict[str, Any]], None], statement: str = "tcb_info", **report: Any
) -> Callable[[Benches], Present]:
    """Collateral of which one statement says something else, signed by the vendor; and a TD report with changes."""

    def make(benches: Benches) -> Present:
        bench = benches.tdx
        evidence = with_quote(bench, lambda made: make_quote(bench.machine.pki, made), **report)

        def edit(value: dict[str, Any]) -> None:
            said = json.loads(value["collateral"][statement])
            change(said)
            text = json.dumps(said, separators=(",", ":"))
            value["collateral"][statement] = text
            value["collateral"][f"{statement}_signature"] = bench.machine.pki.tcb_signing.sign_raw(text.encode()).hex()

        return presenting(edited(evidence, edit), bench.rules(), bench.context())

    return make


_FOREIGN_SIGNER = b"\x01" * 48


def _names_the_foreign_signer(tcb_info: dict[str, Any]) -> None:
    for module in (tcb_info["tdxModule"], *tcb_info["tdxModuleIdentities"]):
        module["mrsigner"] = _FOREIGN_SIGNER.hex()


def _asks_for_a_newer_platform(tcb_info: dict[str, Any]) -> None:
    tcb_info["tcbLevels"][0]["tcb"]["pcesvn"] = 65535


def version_5(service_td: bytes, body_type: int = 3) -> Callable[[Benches], Present]:
    """A quote of version 5 with a TD report 1.5; its body's type is overwritten where it is another."""

    def make(benches: Benches) -> Present:
        bench = benches.tdx

        def quote(report: TdReport) -> bytes:
            made = make_quote(bench.machine.pki, report, version=5)
            return made[:48] + struct.pack("<H", body_type) + made[50:]

        evidence = with_quote(bench, quote, mr_service_td=service_td)
        return presenting(evidence.document, bench.rules(), bench.context())

    return make


def _roots(choose: Callable[[Benches], tuple[bytes, ...]]) -> Callable[[Benches], Present]:
    def make(benches: Benches) -> Present:
        bench = benches.tdx
        rules = replace(bench.rules(), tdx=bench.tdx(vendor_roots=choose(benches)))
        return presenting(bench.evidence().document, rules, bench.context())

    return make


def _root_that_signs_nothing(benches: Benches) -> bytes:
    """Bears the vendor's name over a key for another use, as only a policy's author could put it there."""
    name = x509.load_der_x509_certificate(benches.tdx.machine.vendor_root).subject
    start = datetime.fromtimestamp(NOW - DAY, UTC)
    key = x25519.X25519PrivateKey.generate().public_key()
    builder = x509.CertificateBuilder(name, name, key, 1, start, start + timedelta(days=2))
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.DER)


def _unreadable_issuer(_benches: Benches, value: dict[str, Any]) -> None:
    name = b"Teemesh Development SGX Root CA"
    crl = bytes.fromhex(value["collateral"]["root_ca_crl"])
    assert name in crl
    value["collateral"]["root_ca_crl"] = crl.replace(name, b"\xff" + name[1:]).hex()


def _later_crl(benches: Benches, value: dict[str, Any]) -> None:
    later = benches.tdx.collateral(CollateralShape(NOW + 2 * DAY))
    value["collateral"]["pck_crl"] = later.pck_crl


def _respaced(name: str) -> Callable[[Benches], Present]:
    """The same statement in other bytes than were signed."""

    def change(_benches: Benches, value: dict[str, Any]) -> None:
        value["collateral"][name] = value["collateral"][name].replace(",", ", ", 1)

    return _document(change)


def _collateral(name: str, text: str) -> Callable[[Benches], Present]:
    def change(_benches: Benches, value: dict[str, Any]) -> None:
        value["collateral"][name] = text

    return _document(change)


def _replaced(old: str, new: str) -> Callable[[Benches], Present]:
    """A date that cannot be read, in a statement that therefore is not the vendor's either."""

    def change(_benches: Benches, value: dict[str, Any]) -> None:
        assert old in value["collateral"]["tcb_info"]
        value["collateral"]["tcb_info"] = value["collateral"]["tcb_info"].replace(old, new)

    return _document(change)


_REPORT = ReadReport(bytes(48), TD_ATTRIBUTES, bytes(48), bytes(48), (bytes(48),) * 4, bytes(64))


def _judged(listed: str = TD_ATTRIBUTES.hex(), **changes: Any) -> Callable[[Benches], Present]:
    """Our own judgement of a TD, reached without the library's, which refuses some of these first."""

    def make(_benches: Benches) -> Present:
        report = replace(_REPORT, **changes)

        def present(steps: Steps) -> None:
            with steps.step(4) as note:
                judge_td(report, frozenset({listed}), note)

        return present

    return make


def _read(quote: Callable[[Benches], bytes]) -> Callable[[Benches], Present]:
    """A quote that only a caller who does not verify reads."""

    def make(benches: Benches) -> Present:
        data = quote(benches)
        return lambda _steps: tdx.read_report(data)

    return make


def _enclave_quote(benches: Benches) -> bytes:
    """An SGX quote in the form of version 4: everything but the TEE type and the size of the body is the same."""
    quote = benches.tdx.td.quote(bytes(64))
    return quote[:4] + bytes(4) + quote[8:48] + bytes(384) + quote[_SIGNED_V4:]


_YEAR = 365 * DAY
_OUT_OF_DATE = {"statuses": frozenset({"OutOfDate"}), "grace_seconds": 11 * DAY}
_DEBUG = "0100001000000000"

ROWS = [
    # Step 2: whose hardware, and does every signature hold.
    Row("no vendor root", 2, "VENDOR_ROOT_NOT_TRUSTED", _roots(lambda _: ())),
    Row("vendor root of another technology", 2, "VENDOR_ROOT_NOT_TRUSTED", _roots(lambda b: (b.chip.root,))),
    Row(
        "vendor root of another machine, same name",
        2,
        "VENDOR_ROOT_NOT_TRUSTED",
        _roots(lambda b: (b.other.machine.vendor_root,)),
    ),
    Row(
        "two vendor roots of other machines, same name",
        2,
        "VENDOR_ROOT_NOT_TRUSTED",
        _roots(lambda b: (b.other.machine.vendor_root, Bench.create().machine.vendor_root)),
    ),
    Row("flipped bit in the TD report", 2, "QUOTE_SIGNATURE_INVALID", _flipped(520)),
    Row("flipped bit in the quote's signature", 2, "QUOTE_SIGNATURE_INVALID", _flipped(640)),
    Row("flipped bit in the attestation key", 2, "QUOTE_SIGNATURE_INVALID", _flipped(704)),
    Row("flipped bit in the quoting enclave's report", 2, "QUOTE_SIGNATURE_INVALID", _flipped(780)),
    Row("flipped bit in the quote's vendor id", 2, "QUOTE_NOT_VERIFIED", _flipped(24)),
    Row("TCB info changed", 2, "COLLATERAL_SIGNATURE_INVALID", _respaced("tcb_info")),
    Row("QE identity changed", 2, "COLLATERAL_SIGNATURE_INVALID", _respaced("qe_identity")),
    Row("PCK certificate revoked", 2, "CERTIFICATE_REVOKED", _shaped(revoked=frozenset({"pck"}))),
    Row("platform CA revoked", 2, "CERTIFICATE_REVOKED", _shaped(revoked=frozenset({"platform_ca"}))),
    Row("TCB signer revoked", 2, "CERTIFICATE_REVOKED", _shaped(revoked=frozenset({"tcb_signing"}))),
    Row("certificates expired", 2, "CERTIFICATE_NOT_CURRENT", _shaped(now=NOW + 21 * _YEAR)),
    Row("certificates not valid yet", 2, "CERTIFICATE_NOT_CURRENT", _shaped(now=NOW - 2 * DAY)),
    Row("collateral expired", 2, "COLLATERAL_NOT_CURRENT", _shaped(issued_at=NOW - 40 * DAY)),
    Row("PCK CRL from the future, statements of now", 2, "CRL_FROM_FUTURE", _document(_later_crl)),
    Row("collateral from the future", 2, "COLLATERAL_NOT_CURRENT", _shaped(issued_at=NOW + DAY)),
    Row("collateral of another CPU family", 2, "PLATFORM_MISMATCH", _shaped(fmspc=b"\x01" * 6)),
    Row("platform below every level", 2, "TCB_LEVEL_UNKNOWN", stating(_asks_for_a_newer_platform)),
    Row("TDX module below every level", 2, "TCB_LEVEL_UNKNOWN", _shaped(minimum_module_svn=9)),
    Row("platform's level revoked", 2, "TCB_REVOKED", _shaped(tcb_status="Revoked")),
    Row("quoting enclave's level revoked", 2, "TCB_REVOKED", _shaped(qe_status="Revoked")),
    Row("TDX module's level revoked", 2, "TCB_REVOKED", _shaped(module_status="Revoked")),
    Row("debug TD, listed", 2, "TD_DEBUG", _listed(_DEBUG)),
    Row("service TD", 2, "SERVICE_TD_NOT_ALLOWED", version_5(b"\x01" + bytes(47))),
    Row("reserved TD attribute, listed", 2, "TD_ATTRIBUTES_NOT_ALLOWED", _listed("0001001000000000")),
    Row("profiled TD, listed", 2, "TD_ATTRIBUTES_NOT_ALLOWED", _listed("1000001000000000")),
    Row("migratable TD, listed", 2, "TD_ATTRIBUTES_NOT_ALLOWED", _listed("0000003000000000")),
    Row("TD with an extended service TD, listed", 2, "TD_ATTRIBUTES_NOT_ALLOWED", _listed("0000021000000000")),
    Row("TD without SEPT_VE_DISABLE, listed", 2, "TD_ATTRIBUTES_NOT_ALLOWED", _listed("0000000000000000")),
    Row(
        "TDX module of another signer than the vendor states",
        2,
        "QUOTE_NOT_VERIFIED",
        stating(lambda _: None, mr_signer_seam=_FOREIGN_SIGNER),
    ),
    Row(
        "vendor root with a key that signs nothing",
        2,
        "VENDOR_ROOT_NOT_TRUSTED",
        _roots(lambda b: (_root_that_signs_nothing(b),)),
    ),
    Row("root CRL of an issuer that cannot be read", 2, "COLLATERAL_MALFORMED", _document(_unreadable_issuer)),
    Row("root CRL that is none", 2, "COLLATERAL_MALFORMED", _collateral("root_ca_crl", "3000")),
    Row("collateral with an odd date", 2, "COLLATERAL_MALFORMED", _replaced('"issueDate":"2', '"issueDate":"x')),
    Row(
        "collateral with a date without a zone",
        2,
        "COLLATERAL_MALFORMED",
        _replaced('Z","nextUpdate"', '","nextUpdate"'),
    ),
    # Step 3: Intel's word on the platform.
    Row("platform out of date", 3, "TCB_STATUS_NOT_ALLOWED", _shaped(tcb_status="OutOfDate")),
    Row("quoting enclave out of date", 3, "TCB_STATUS_NOT_ALLOWED", _shaped(qe_status="OutOfDate")),
    Row("TDX module out of date", 3, "TCB_STATUS_NOT_ALLOWED", _shaped(module_status="OutOfDate")),
    Row("platform needs software hardening", 3, "TCB_STATUS_NOT_ALLOWED", _shaped(tcb_status="SWHardeningNeeded")),
    Row("no status allowed", 3, "TCB_STATUS_NOT_ALLOWED", _under(statuses=frozenset())),
    Row(
        "platform's grace over",
        3,
        "TCB_TOO_OLD",
        _shaped(_OUT_OF_DATE, tcb_date=NOW - 12 * DAY, tcb_status="OutOfDate"),
    ),
    Row(
        "platform's grace over, quoting enclave's not",
        3,
        "TCB_TOO_OLD",
        _shaped(_OUT_OF_DATE, tcb_date=NOW - 12 * DAY, tcb_status="OutOfDate", qe_status="OutOfDate"),
    ),
    Row(
        "TDX module's grace over",
        3,
        "TCB_TOO_OLD",
        _shaped(_OUT_OF_DATE, tcb_date=NOW - 12 * DAY, module_status="OutOfDate"),
    ),
    Row(
        "quoting enclave's grace over",
        3,
        "TCB_TOO_OLD",
        _shaped(_OUT_OF_DATE, issued_at=NOW - 12 * DAY, qe_status="OutOfDate"),
    ),
    Row(
        "advisory that policy refuses",
        3,
        "TCB_ADVISORY_REFUSED",
        _shaped({"refused_advisories": frozenset({"INTEL-SA-2"})}, advisories=("INTEL-SA-1", "INTEL-SA-2")),
    ),
    Row("old evaluation", 3, "TCB_EVALUATION_TOO_LOW", _shaped(evaluation_number=16)),
    Row(
        "old evaluation of the platform alone",
        3,
        "TCB_EVALUATION_TOO_LOW",
        stating(lambda said: said.update(tcbEvaluationDataNumber=16)),
    ),
    Row(
        "old evaluation of the quoting enclave alone",
        3,
        "TCB_EVALUATION_TOO_LOW",
        stating(lambda said: said.update(tcbEvaluationDataNumber=16), "qe_identity"),
    ),
    Row("newer evaluation asked for", 3, "TCB_EVALUATION_TOO_LOW", _under(minimum_evaluation_number=18)),
    Row(
        "collateral older than policy accepts",
        3,
        "COLLATERAL_TOO_OLD",
        _shaped(issued_at=NOW - 40 * DAY, validity_seconds=50 * DAY),
    ),
    # Step 4: the TD itself.
    Row("unlisted TD attributes", 4, "TD_ATTRIBUTES_NOT_ALLOWED", _attributes("0000005000000000")),
    Row(
        "listed TD attributes that this TD lacks",
        4,
        "TD_ATTRIBUTES_NOT_ALLOWED",
        _attributes(TD_ATTRIBUTES.hex(), _DEBUG),
    ),
    Row(
        "TDX module of a signer that the vendor names",
        4,
        "SEAM_SIGNER_NOT_ALLOWED",
        stating(_names_the_foreign_signer, mr_signer_seam=_FOREIGN_SIGNER),
    ),
    Row("debug TD, listed, by our own judgement", 4, "TD_DEBUG", _judged(_DEBUG, td_attributes=bytes.fromhex(_DEBUG))),
    Row(
        "service TD, by our own judgement",
        4,
        "SERVICE_TD_NOT_ALLOWED",
        _judged(mr_service_td=bytes(47) + b"\x01"),
    ),
    # Beside the steps: what a caller who does not verify is told.
    Row("bytes that are no quote, read unverified", None, "QUOTE_MALFORMED", _read(lambda _: bytes(64))),
    Row("quote of an enclave, read unverified", None, "QUOTE_MALFORMED", _read(_enclave_quote)),
]
