"""Real quotes against the manifest beside them: every status, window and register, every refusal with its reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import dcap_qvl
import pytest

from libs.errors import MeshError
from libs.tee import tdx
from libs.tee.collateral import Collateral
from libs.tee.steps import ignore
from libs.tee.td import judge_td
from libs.tee.tdx import VerifiedQuote
from tests.conformance import recorded

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(recorded.FOLDER is None, reason="TEEMESH_FIXTURES does not name the outside vectors"),
]

MANIFEST = recorded.manifest()
TD_ATTRIBUTES = frozenset({"0000001000000000"})

REASONS = {
    "expired-crl": "COLLATERAL_NOT_CURRENT",
    "expired-all": "COLLATERAL_NOT_CURRENT",
    "not-yet-valid": "COLLATERAL_NOT_CURRENT",
    "expired-sgx": "QUOTE_MALFORMED",
    "gap-between-collateral": "COLLATERAL_NOT_CURRENT",
    "pck-not-yet-valid": "CERTIFICATE_NOT_CURRENT",
    "collateral-too-old": "COLLATERAL_NOT_CURRENT",
    "fmspc-mismatch": "PLATFORM_MISMATCH",
    "tee-type-mismatch": "QUOTE_MALFORMED",
    "tcb-too-low-ra-tls": "TCB_LEVEL_UNKNOWN",
    "tcb-too-low-tappd": "TCB_LEVEL_UNKNOWN",
    "tcb-too-low-hex": "TCB_LEVEL_UNKNOWN",
    "tcb-too-low-v5": "TCB_LEVEL_UNKNOWN",
    "tcb-too-low-v5b": "TCB_LEVEL_UNKNOWN",
    "patched-report-data": "QUOTE_SIGNATURE_INVALID",
    "flip-mrtd": "QUOTE_SIGNATURE_INVALID",
    "flip-rtmr3": "QUOTE_SIGNATURE_INVALID",
    "flip-td-attributes-debug": "QUOTE_SIGNATURE_INVALID",
    "flip-qe-svn": "QUOTE_SIGNATURE_INVALID",
    "flip-qe-report": "QUOTE_SIGNATURE_INVALID",
    "truncated": "QUOTE_MALFORMED",
    "foreign-collateral-sig": "COLLATERAL_SIGNATURE_INVALID",
    "no-root-crl": "VENDOR_ROOT_NOT_TRUSTED",
    "stub-quote": "QUOTE_MALFORMED",
}
"""Ours for each case of the manifest. SGX quotes are not read at all: no service of a mesh runs in an enclave."""

CURRENCY = frozenset({"COLLATERAL_NOT_CURRENT", "QUOTE_MALFORMED", "VENDOR_ROOT_NOT_TRUSTED"})
"""Reasons that our own reading gives, whatever the verifier's words are."""


def by_file(entry: dict[str, Any]) -> str:
    return str(entry.get("id") or entry.get("file") or f"{entry['quote']}-{entry['now']}")


def verify(quote: bytes, collateral: Collateral, now: int) -> VerifiedQuote:
    return tdx.verify(tdx.cut(quote), collateral, [recorded.root()], now)


def refusal(action: Callable[[], object]) -> MeshError:
    with pytest.raises(MeshError) as refused:
        action()
    return refused.value


@pytest.mark.parametrize("entry", MANIFEST["files"], ids=by_file)
def test_the_file_is_the_recorded_one(entry: dict[str, Any]) -> None:
    assert hashlib.sha256((recorded.QUOTES / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]


@pytest.mark.parametrize("entry", MANIFEST["quotes"], ids=by_file)
def test_the_quote_says_what_was_recorded(entry: dict[str, Any]) -> None:
    quote = recorded.quote(entry["file"])
    if entry["tee"] != "tdx":
        assert refusal(lambda: tdx.cut(quote)).reason == "QUOTE_MALFORMED"
        return
    cut = tdx.cut(quote)
    assert len(cut) == entry["end_of_auth_data"]
    assert len(quote) - len(cut) == entry["zero_padding"]
    report = tdx.read_report(cut)
    said = {
        "mrtd": report.mrtd,
        "td_attributes": report.td_attributes,
        "report_data": report.report_data,
        "mr_service_td": report.mr_service_td,
        **{f"rtmr{index}": register for index, register in enumerate(report.rtmrs)},
    }
    assert {name: value.hex() for name, value in said.items() if name in entry} == {
        name: entry[name] for name in said if name in entry
    }


@pytest.mark.parametrize("entry", MANIFEST["accepted"], ids=by_file)
def test_the_pair_has_the_recorded_status_in_its_whole_window(entry: dict[str, Any]) -> None:
    quote, statements = recorded.quote(entry["quote"]), recorded.collateral(entry["collateral"])
    described = next(described for described in MANIFEST["quotes"] if described["file"] == entry["quote"])
    if described["tee"] != "tdx":
        # The recorded status is the bare verifier's; a mesh reads no SGX quote.
        collateral = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(statements.to_json()))
        verified = dcap_qvl.verify_with_root_ca(quote, collateral, recorded.root(), entry["now"])
        assert (verified.status, verified.advisory_ids) == (entry["status"], entry["advisory_ids"])
        assert refusal(lambda: verify(quote, statements, entry["now"])).reason == "QUOTE_MALFORMED"
        return
    ours = verify(quote, statements, entry["now"])
    assert (ours.tcb_status, sorted(ours.advisories)) == (entry["status"], entry["advisory_ids"])
    assert ours.evaluation_number == entry["tcb_evaluation_data_number"]
    assert (ours.device.id, ours.device.family) == (described["device_id"], entry["fmspc"])
    assert ours.valid_until == entry["valid_to"]
    assert ours.vendor_root_sha256 == hashlib.sha256(recorded.root()).digest()
    judge_td(ours.report, TD_ATTRIBUTES, ignore)
    for moment in (entry["valid_from"], entry["valid_to"]):
        assert verify(quote, statements, moment).device == ours.device
    for moment in (entry["valid_from"] - 1, entry["valid_to"] + 1):
        assert refusal(lambda at=moment: verify(quote, statements, at)).reason == "COLLATERAL_NOT_CURRENT"  # type: ignore[misc]


def test_every_recorded_refusal_has_a_reason_here() -> None:
    assert {entry["id"] for entry in MANIFEST["refused"]} == REASONS.keys()


@pytest.mark.parametrize("entry", MANIFEST["refused"], ids=by_file)
def test_what_must_be_refused_is_for_its_own_reason(entry: dict[str, Any]) -> None:
    quote, statements = altered(entry)
    refused = refusal(lambda: verify(quote, statements, entry["now"] or 0))
    assert refused.reason == REASONS[entry["id"]]
    if refused.reason not in CURRENCY:
        cause = " ".join(entry["error"].split()).partition(" {")[0]
        assert cause in str(refused)


@pytest.mark.parametrize("entry", MANIFEST["accepted_although_altered"], ids=by_file)
def test_what_the_verifier_tolerates_is_refused_or_the_same_report(entry: dict[str, Any]) -> None:
    quote, statements = altered(entry)
    if "n-s" in entry["change"]:
        original = recorded.quote(entry["quote"])
        assert verify(quote, statements, entry["now"]).report == verify(original, statements, entry["now"]).report
    else:
        assert refusal(lambda: verify(quote, statements, entry["now"])).reason == "QUOTE_MALFORMED"


def altered(entry: dict[str, Any]) -> tuple[bytes, Collateral]:
    """Make the change that the manifest describes, in memory."""
    if entry["id"] == "stub-quote":
        text = (recorded.QUOTES.parent / "aci-vectors.json").read_text()
        start = text.index(b"aci-stub-quote".hex())
        stub = text[start : text.index('"', start)]
        return bytes.fromhex(stub), recorded.collateral("dcap-qvl/tdx_quote_collateral.json")
    quote, members = bytearray(recorded.quote(entry["quote"])), recorded.collateral(entry["collateral"]).to_json()
    change = entry["change"]
    match entry["id"]:
        case "patched-report-data":
            quote[568:632] = b"\x42" * 64
        case "truncated":
            del quote[4000:]
        case "foreign-collateral-sig":
            before, member, after = members["tcb_info"].partition('"tcbStatus":"')
            members["tcb_info"] = before + member + "Revoked" + after[after.index('"') :]
        case "no-root-crl":
            members["root_ca_crl"] = members["pck_crl"]
        case "CAUTION-trailing":
            quote = quote[: len(tdx.cut(bytes(quote)))] + b"\x01"
        case "CAUTION-malleated":
            order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
            twin = order - int.from_bytes(quote[668:700], "big")
            quote[668:700] = twin.to_bytes(32, "big")
        case "CAUTION-outer-type":
            quote[764] = 7
        case _ if change is not None:
            _, offset, _, mask = change.split()
            quote[int(offset)] ^= int(mask)
    return bytes(quote), Collateral.parse(members)
