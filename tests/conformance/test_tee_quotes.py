"""Real quotes of real machines under Intel's production root, at the times for which their collateral holds."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libs import jcs
from libs.errors import MeshError
from libs.tee import eventlog, tdx
from libs.tee.collateral import Collateral
from libs.tee.eventlog import Event
from libs.tee.steps import ignore
from libs.tee.tcb import TcbRule
from libs.tee.td import judge_td
from libs.tee.tdx import VerifiedQuote

_FOLDER = os.environ.get("TEEMESH_FIXTURES")
pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(_FOLDER is None, reason="TEEMESH_FIXTURES does not name the outside vectors"),
]
_QUOTES = Path(_FOLDER or "") / "quotes"

# Collateral by month of issue and platform family.
_JUNE_2025 = "dcap-qvl/tdx_quote_collateral.json"
_APRIL_90C = "intel-pcs/tdx-90c06f000000-20260424.json"
_JUNE_90C = "intel-pcs/tdx-90c06f000000-20260629.json"
_JUNE_B0C = "intel-pcs/tdx-b0c06f000000-20260629.json"
_FEBRUARY_90C = "dcap-qvl/tdx_quote_outdated_collateral.json"

# Quote, collateral, now, window (inclusive), evaluation number: as documented beside the files.
_ACCEPTED = [
    ("dstack/quote-report.json", _FEBRUARY_90C, 1771415931, 1771412331, 1774003274, 18),
    ("dstack/quote-report.json", _APRIL_90C, 1776998126, 1776994526, 1779584247, 18),
    ("dstack/quote-report.json", _JUNE_90C, 1782700967, 1782697367, 1785286505, 19),
    (
        "dstack/tdx-lite-getquote.json",
        _JUNE_90C,
        1782700967,
        1782697367,
        1785286505,
        19,
    ),
    (
        "dstack/tdx-lite-attestation.json",
        _APRIL_90C,
        1776998126,
        1776994526,
        1779584247,
        18,
    ),
    (
        "dstack/simulator-attestation.bin",
        _JUNE_B0C,
        1782701377,
        1782697777,
        1785286505,
        19,
    ),
    ("dcap-qvl/tdx_quote.bin", _JUNE_2025, 1750332747, 1750329147, 1752919234, 17),
    ("dcap-qvl/near_quote.hex", "dcap-qvl/near_quote_collateral.json", 1756802519, 1756798919, 1759388630, 17),
]

# Quote, collateral, now, reason, and the verifier's words where they tell more.
_REFUSED = [
    ("dcap-qvl/tdx_quote.bin", _JUNE_2025, 1752919235, "COLLATERAL_NOT_CURRENT", None),
    ("dcap-qvl/tdx_quote.bin", _JUNE_2025, 1790000000, "COLLATERAL_NOT_CURRENT", None),
    ("dcap-qvl/tdx_quote.bin", _JUNE_2025, 1750329146, "COLLATERAL_NOT_CURRENT", None),
    ("dstack/quote-report.json", _APRIL_90C, 1780000000, "COLLATERAL_NOT_CURRENT", None),
    ("dstack/tdx-lite-getquote.json", _FEBRUARY_90C, 1771415931, "CERTIFICATE_NOT_CURRENT", "CertNotValidYet"),
    ("dstack/tdx-lite-getquote.json", _FEBRUARY_90C, 1776217858, "COLLATERAL_NOT_CURRENT", None),
    ("dstack/quote-report.json", _JUNE_B0C, 1782701377, "PLATFORM_MISMATCH", "Fmspc mismatch"),
    ("dcap-qvl/sgx_quote.bin", _JUNE_2025, 1750334171, "QUOTE_MALFORMED", "not a TDX quote"),
    ("dstack/ra-tls-tdx_quote.bin", _JUNE_2025, 1750332747, "TCB_LEVEL_UNKNOWN", "No matching TCB"),
    ("dcap-qvl/quote-from-tappd.hex", _JUNE_2025, 1750332747, "TCB_LEVEL_UNKNOWN", "No matching TCB"),
    ("dcap-qvl/tdx-quote.hex", _JUNE_2025, 1750332747, "TCB_LEVEL_UNKNOWN", "No matching TCB"),
    ("dcap-qvl/tdx_quote_outdated.bin", _FEBRUARY_90C, 1771415931, "TCB_LEVEL_UNKNOWN", "No matching TCB"),
    ("trustee/tdx_quote_5.dat", _JUNE_90C, 1782700967, "TCB_LEVEL_UNKNOWN", "No matching TCB"),
]


def _root() -> bytes:
    return (_QUOTES / "dcap-qvl/intel_sgx_root_ca.der").read_bytes()


def _collateral(name: str) -> Collateral:
    return Collateral.decode((_QUOTES / name).read_bytes())


def _quote(name: str) -> bytes:
    data = (_QUOTES / name).read_bytes()
    if name.endswith(".hex"):
        return bytes.fromhex(data.decode().strip().removeprefix("0x"))
    if name.endswith(".json"):
        reply = json.loads(data)
        if "quote" in reply:
            return bytes.fromhex(reply["quote"])
        data = bytes.fromhex(reply["attestation"])
    if "attestation" in name:
        # SCALE: version, platform, then the quote after its two-byte compact length.
        return data[4 : 4 + (int.from_bytes(data[2:4], "little") >> 2)]
    return data


def _log(name: str) -> tuple[Event, ...]:
    return eventlog.parse(json.loads(json.loads((_QUOTES / name).read_bytes())["event_log"]))


def _verify(quote: bytes, collateral: Collateral, now: int) -> VerifiedQuote:
    return tdx.verify(tdx.cut(quote), collateral, [_root()], now)


def _reason(action: Callable[[], object], words: str | None = None) -> str:
    with pytest.raises(MeshError, match=words) as refusal:
        action()
    return refusal.value.reason


@pytest.mark.parametrize(("quote", "collateral", "now", "start", "end", "evaluation"), _ACCEPTED)
def test_real_quote_verifies_in_its_whole_window(
    quote: str, collateral: str, now: int, start: int, end: int, evaluation: int
) -> None:
    statements = _collateral(collateral)
    verified = _verify(_quote(quote), statements, now)
    assert (verified.tcb_status, verified.advisories) == ("UpToDate", frozenset())
    assert verified.evaluation_number == evaluation
    assert verified.valid_until == end
    assert verified.vendor_root_sha256 == hashlib.sha256(_root()).digest()
    judge_td(verified.report, frozenset({"0000001000000000"}), ignore)
    for moment in (start, end):
        assert _verify(_quote(quote), statements, moment).device == verified.device
    for moment in (start - 1, end + 1):
        assert _reason(lambda at=moment: _verify(_quote(quote), statements, at)) == "COLLATERAL_NOT_CURRENT"  # type: ignore[misc]


@pytest.mark.parametrize(("quote", "collateral", "now", "reason", "words"), _REFUSED)
def test_real_quote_is_refused_for_its_documented_reason(
    quote: str, collateral: str, now: int, reason: str, words: str | None
) -> None:
    assert _reason(lambda: _verify(_quote(quote), _collateral(collateral), now), words) == reason


def test_evaluation_floor_tells_the_april_collateral_from_the_june_one() -> None:
    rule = TcbRule(frozenset({"UpToDate"}), frozenset(), 0, 19, 30 * 24 * 3600)
    quote = _quote("dstack/quote-report.json")
    june = _verify(quote, _collateral(_JUNE_90C), 1782700967)
    assert rule.holds_until(june, 1782700967, ignore) == 1785286505
    april = _verify(quote, _collateral(_APRIL_90C), 1776998126)
    assert _reason(lambda: rule.holds_until(april, 1776998126, ignore)) == "TCB_EVALUATION_TOO_LOW"


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        (184, "ISV enclave report signature"),
        (520, "ISV enclave report signature"),
        (568, "ISV enclave report signature"),
        (168, "ISV enclave report signature"),
        (8, "ISV enclave report signature"),
        (770, "Signature is invalid for qe_report"),
    ],
)
def test_one_flipped_bit_is_refused(offset: int, words: str) -> None:
    quote = bytearray(_quote("dcap-qvl/tdx_quote.bin"))
    quote[offset] ^= 1
    collateral = _collateral(_JUNE_2025)
    assert _reason(lambda: _verify(bytes(quote), collateral, 1750332747), words) == "QUOTE_SIGNATURE_INVALID"


@pytest.mark.parametrize("change", [b"\x01", "cut", "outer type"])
def test_forms_that_the_library_tolerates_or_half_reads_are_refused(change: Any) -> None:
    quote = bytearray(_quote("dcap-qvl/tdx_quote.bin"))
    if change == "cut":
        del quote[4000:]
    elif change == "outer type":
        quote[764] = 7
    else:
        quote += change
    assert _reason(lambda: tdx.cut(bytes(quote))) == "QUOTE_MALFORMED"


def test_altered_and_exchanged_statements_are_refused() -> None:
    good = _collateral(_JUNE_2025).to_json()
    quote = _quote("dcap-qvl/tdx_quote.bin")
    altered = Collateral.parse(good | {"tcb_info": good["tcb_info"].replace("OutOfDate", "UpToDate", 1)})
    assert _reason(lambda: _verify(quote, altered, 1750332747), "tcb_info") == "COLLATERAL_SIGNATURE_INVALID"
    exchanged = Collateral.parse(good | {"root_ca_crl": good["pck_crl"]})
    assert _reason(lambda: _verify(quote, exchanged, 1750332747)) == "VENDOR_ROOT_NOT_TRUSTED"


def test_real_debug_td_is_refused() -> None:
    report = tdx.read_report(tdx.cut(_quote("trustee/tdx_quote_4.dat")))
    assert _reason(lambda: judge_td(report, frozenset({report.td_attributes.hex()}), ignore)) == "TD_DEBUG"


def test_stub_quotes_of_the_gateway_vectors_are_no_quotes() -> None:
    text = (Path(_FOLDER or "") / "aci-vectors.json").read_text()
    stubs = re.findall(f'"({b"aci-stub-quote".hex()}[0-9a-f]*)"', text)
    assert stubs
    for stub in map(bytes.fromhex, stubs):
        assert _reason(lambda quote=stub: tdx.cut(quote)) == "QUOTE_MALFORMED"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["dstack/quote-report.json", "dstack/tdx-lite-getquote.json"])
def test_real_log_replays_and_an_altered_one_does_not(name: str) -> None:
    report = tdx.read_report(tdx.cut(_quote(name)))
    log = _log(name)
    eventlog.verify_replay(log, report.rtmrs)
    renamed = [
        Event(e.imr, e.event_type, e.digest, e.name, e.payload[::-1]) if e.name == "compose-hash" else e for e in log
    ]
    stated = any(event.digest for event in log if event.imr == 3)
    expected = "EVENT_DIGEST_MISMATCH" if stated else "EVENT_LOG_DOES_NOT_REPLAY"
    assert _reason(lambda: eventlog.verify_replay(renamed, report.rtmrs)) == expected


def test_real_identity_events_are_read() -> None:
    identity = eventlog.read_identity(_log("dstack/tdx-lite-getquote.json"))
    assert identity.compose_hash.hex() == "86b0e55f2fa8e4fb69d890f14f54d5612707646e2573d54e0d2ddaaade77caa9"
    assert identity.app_id == identity.compose_hash[:20]
    assert identity.instance_id.hex() == "050bf89570575fe8fab4cb8f0a62a9e64efe8ead"
    assert identity.os_image_hash.hex() == "07a2388c7a6a1b6a646d443f1517990a4ec294471d63146cda9d56972765051d"
    assert jcs.loads_object(identity.key_provider)["name"] == "kms"


def test_guest_without_a_kms_has_no_os_identity() -> None:
    assert _reason(lambda: eventlog.read_identity(_log("dstack/quote-report.json")), "os-image-hash") == (
        "IDENTITY_EVENT_MISSING"
    )
