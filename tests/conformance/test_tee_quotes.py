"""Real quotes of real machines under Intel's production root, at the times for which their collateral holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from libs import jcs
from libs.errors import MeshError
from libs.tee import eventlog, tdx
from libs.tee.collateral import Collateral
from libs.tee.device import DeviceLists
from libs.tee.eventlog import Event, Identity
from libs.tee.judgement import judge
from libs.tee.measurement import Measurement, MeasurementSet
from libs.tee.role import RoleRules
from libs.tee.rules import FOREVER
from libs.tee.steps import Note, Record, ignore
from libs.tee.tcb import TcbRule
from libs.tee.td import judge_td
from libs.tee.tdx import VerifiedQuote
from libs.tee.tdx_platform import TdxRules
from libs.tee.verified import VerifiedPlatform
from tests.conformance import recorded

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(recorded.FOLDER is None, reason="TEEMESH_FIXTURES does not name the outside vectors"),
]

_APRIL_90C = "intel-pcs/tdx-90c06f000000-20260424.json"
_JUNE_90C = "intel-pcs/tdx-90c06f000000-20260629.json"


def _log(name: str) -> tuple[Event, ...]:
    return eventlog.parse(json.loads(json.loads((recorded.QUOTES / name).read_bytes())["event_log"]))


def _verify(quote: bytes, collateral: Collateral, now: int) -> VerifiedQuote:
    return tdx.verify(tdx.cut(quote), collateral, [recorded.root()], now)


def _reason(action: Callable[[], object], words: str | None = None) -> str:
    with pytest.raises(MeshError, match=words) as refusal:
        action()
    return refusal.value.reason


def test_evaluation_floor_tells_the_april_collateral_from_the_june_one() -> None:
    rule = TcbRule(frozenset({"UpToDate"}), frozenset(), 0, 19, 30 * 24 * 3600)
    quote = recorded.quote("dstack/quote-report.json")
    june = _verify(quote, recorded.collateral(_JUNE_90C), 1782700967)
    assert rule.holds_until(june, 1782700967, ignore) == 1785286505
    april = _verify(quote, recorded.collateral(_APRIL_90C), 1776998126)
    assert _reason(lambda: rule.holds_until(april, 1776998126, ignore)) == "TCB_EVALUATION_TOO_LOW"


def test_real_debug_td_is_refused() -> None:
    report = tdx.read_report(tdx.cut(recorded.quote("trustee/tdx_quote_4.dat")))
    assert _reason(lambda: judge_td(report, frozenset({report.td_attributes.hex()}), ignore)) == "TD_DEBUG"


@pytest.mark.parametrize("name", ["dstack/quote-report.json", "dstack/tdx-lite-getquote.json"])
def test_real_log_replays_and_an_altered_one_does_not(name: str) -> None:
    report = tdx.read_report(tdx.cut(recorded.quote(name)))
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


@dataclass(frozen=True, slots=True)
class _Guest:
    """A real dstack guest as recorded. Its quote binds what its makers chose, so step 5 has nothing to compare."""

    quote: bytes
    collateral: Collateral
    event_log: tuple[Event, ...]
    app_compose: str | None

    def verify_quote(self, rules: RoleRules, now: int, note: Note) -> VerifiedPlatform:
        return rules.verify_quote(self.quote, self.collateral, now, note)

    def verify_binding(self, report_data: bytes, now: int, note: Note) -> None:
        pass

    def verify_gpu(self, rules: RoleRules, now: int, note: Note) -> int:
        return FOREVER

    def verify_claims(self, rules: RoleRules, identity: Identity, note: Note) -> None:
        pass


def _guest(app_compose: str | None = None) -> _Guest:
    name = "dstack/tdx-lite-getquote.json"
    return _Guest(tdx.cut(recorded.quote(name)), recorded.collateral(_JUNE_90C), _log(name), app_compose)


def _rules() -> RoleRules:
    """Allow exactly the recorded guest."""
    report = tdx.read_report(_guest().quote)
    identity = eventlog.read_identity(_guest().event_log)
    measurement = Measurement(
        identity.compose_hash.hex(),
        identity.app_id.hex(),
        identity.os_image_hash.hex(),
        hashlib.sha256(identity.key_provider).hexdigest(),
        report.mrtd.hex(),
        *(register.hex() for register in report.rtmrs[:3]),
    )
    tcb = TcbRule(frozenset({"UpToDate"}), frozenset(), 0, 19, 30 * 24 * 3600)
    tdx_rules = TdxRules(
        (recorded.root(),), tcb, frozenset({"0000001000000000"}), MeasurementSet(frozenset({measurement}))
    )
    return RoleRules("router", tdx_rules, None, DeviceLists().rule(), None, False, {})


def test_a_recorded_guest_passes_every_step_that_its_evidence_reaches() -> None:
    record = Record()
    verdict = judge(_guest(), _rules(), 1782700967, record)
    assert [step.number for step in record.steps] == list(range(2, 12))
    assert verdict.identity.compose_hash.hex().startswith("86b0e55f2fa8")
    assert verdict.valid_until == 1785286505


def test_a_compose_hash_rewritten_beside_a_matching_text_is_refused() -> None:
    """What the ACI reference client once accepted: a text of the attacker's, and an event that names its hash."""
    forged = '{"name":"attacker"}'
    payload = hashlib.sha256(forged.encode()).digest()
    stated = [event if event.imr != 3 else replace(event, digest=_digest(event)) for event in _guest().event_log]
    kept = tuple(replace(event, payload=payload) if event.name == "compose-hash" else event for event in stated)
    with_digests = replace(_guest(forged), event_log=kept)
    assert _reason(lambda: judge(with_digests, _rules(), 1782700967)) == "EVENT_DIGEST_MISMATCH"
    stripped = tuple(replace(event, digest=b"") if event.imr == 3 else event for event in kept)
    without = replace(_guest(forged), event_log=stripped)
    assert _reason(lambda: judge(without, _rules(), 1782700967)) == "EVENT_LOG_DOES_NOT_REPLAY"


def _digest(event: Event) -> bytes:
    return eventlog.colon_digest(event.name, event.payload)
