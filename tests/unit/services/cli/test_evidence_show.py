"""`teemesh evidence show`: what files state, every writing of them, and hostile words."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from libs import jcs
from libs.tee import binding, evidence
from libs.tee.nvidia.evidence import GpuEvidence
from libs.tee.nvidia.token import DetachedEat
from tests.fakes.snp_platform import chip
from tests.unit.libs.tee.bench import CLAIMS, NOW
from tests.unit.services.cli.evidence_desk import (
    Desk,
    Outcome,
    Run,
    appraise,
    bench,
    desk,
    shown,
    teemesh,
    unusable,
)

__all__ = ["appraise", "bench", "desk", "teemesh"]


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("nowhere.json", None, "INPUT_UNREADABLE"),
        ("empty", b"  \n", "INPUT_UNREADABLE"),
        ("words", b"hello", "INPUT_UNREADABLE"),
        ("list.json", b"[]", "INPUT_UNREADABLE"),
        ("torn.pem", b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n", "INPUT_UNREADABLE"),
        ("short.hex", b"0400", "QUOTE_MALFORMED"),
        ("sgx.bin", b"\x03\x00\x02\x00" + bytes(600), "QUOTE_MALFORMED"),
        ("other.json", b"{}", "EVIDENCE_MALFORMED"),
        ("torn.json", b"{", "JSON_MALFORMED"),
        ("torn.der", b"\x30\x82\x01\x00", "RATLS_CERTIFICATE_MALFORMED"),
        ("large.json", b'{"v":"' + b"a" * evidence.MAX_DOCUMENT_BYTES + b'"}', "EVIDENCE_TOO_LARGE"),
    ],
)
def test_what_cannot_be_shown_is_one_line_with_a_reason(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str], file: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        desk.write(file, content)
    assert unusable(teemesh, capsys, "show", file).startswith(f"teemesh: {reason}: ")


def test_show_says_what_a_document_states(desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]) -> None:
    text, members = shown(teemesh, capsys, "evidence.json")
    document = (desk.folder / "evidence.json").read_bytes()
    measurement = desk.bench.measurement
    assert members["document"]["digest"] == hashlib.sha256(document).hexdigest()
    assert members["document"]["bytes"] == len(document)
    quote = members["tdx_quote"]
    assert (quote["quote_version"], quote["mrtd"], quote["rtmr2"]) == (4, measurement.mrtd, measurement.rtmr2)
    assert (quote["td_attributes"], quote["debug"]) == ("0000001000000000", False)
    identity = members["identity"]
    assert (identity["compose_hash"], identity["app_id"]) == (measurement.compose_hash, measurement.app_id)
    assert identity["instance_id"] == desk.bench.td.identity.instance_id.hex()
    assert [event["event"] for event in members["event_log"]["runtime_events"]][-1] == "system-ready"
    assert (members["challenge"]["issuer"], members["challenge"]["issued_at"]) == ("kms/1", NOW)
    assert members["claims"]["role"] == "router"
    assert members["collateral"]["tcb_evaluation_number"] == 17
    assert members["collateral"]["tcb_info_issued_at"] <= NOW < members["collateral"]["tcb_info_ends_at"]
    assert members["gpu_evidence"] == {"present": False}
    assert f"issued at: 2026-09-21 14:13:20Z ({NOW})" in text


@pytest.mark.parametrize("written", ["binary", "hex", "HEX", "0x"])
def test_show_reads_a_quote_in_every_writing(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str], written: str
) -> None:
    quote = desk.bench.td.quote(b"\x09" * 64) + bytes(70)
    text = {"binary": quote, "hex": quote.hex().encode() + b"\n", "HEX": quote.hex().upper().encode()}
    file = desk.write("quote", text.get(written, b"0x" + quote.hex().encode()))
    _, members = shown(teemesh, capsys, file)
    assert members["tdx_quote"]["report_data"] == "09" * 64
    assert "not appraised" in unusable(teemesh, capsys, "appraise", file, "--policy", "policy.json")


def _token(**claims: Any) -> str:
    """A token by nobody: showing it asks for no signature."""
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b'=').decode()}.AAAA"


def _gpu_evidence(device: str, switches: DetachedEat | None = None) -> GpuEvidence:
    overall = _token(iss="https://nras.test", iat=NOW)
    return GpuEvidence(DetachedEat(overall, {"GPU-0": device}), switches, {}, ())


def test_show_says_what_gpus_and_switches_claim(desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]) -> None:
    switches = DetachedEat(_token(iss="https://nras.test"), {"GPU-0": _token(hwmodel="a switch that says it is a GPU")})
    gpu = _gpu_evidence(_token(hwmodel="DEV100", measres="success", exp=NOW + 60), switches)
    text, members = shown(teemesh, capsys, desk.evidence("gpu.json", gpu_evidence=gpu))
    assert members["gpu_evidence"]["devices"] == members["gpu_evidence"]["switches"] == ["GPU-0"]
    assert (members["gpu_evidence"]["iss"], members["gpu_evidence"]["issued_at"]) == ("https://nras.test", NOW)
    assert members["gpu_0"] == {"hwmodel": "DEV100", "measres": "success", "ends_at": NOW + 60}
    assert members["gpu_0_of_the_switch_token"] == {"hwmodel": "a switch that says it is a GPU"}
    assert "hwmodel: DEV100" in text


@pytest.mark.parametrize("token", ["", "a", "a.b.c", "a.\u00e9.c", "a.W10.c"])
def test_token_that_cannot_be_read_is_said_to_be_so(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str], token: str
) -> None:
    _, members = shown(teemesh, capsys, desk.evidence("odd.json", gpu_evidence=_gpu_evidence(token)))
    assert members["gpu_0"] == {"token": "its claims cannot be read"}


def test_show_says_what_a_report_of_another_technology_states(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    challenge = desk.bench.issuer.challenge()
    bound = binding.report_data(challenge.nonce, desk.bench.spki, CLAIMS)
    document = evidence.assemble(
        quote=chip().report(report_data=bound),
        event_log=(),
        app_compose="{}",
        spki=desk.bench.spki,
        claims=CLAIMS,
        challenge=challenge,
        collateral=chip().endorsement(),
    ).document
    _, members = shown(teemesh, capsys, desk.write("snp.json", document))
    assert members["document"]["tee_type"] == "sev-snp"
    assert members["sev_snp_report"]["report_data"] == bound.hex()
    assert members["endorsement"]["revocation_list"] is True


def test_collateral_that_cannot_be_read_hides_nothing_else(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    value = jcs.loads_object(desk.bench.evidence().document)
    value["collateral"] = {**value["collateral"], "tcb_info": "no", "pck_crl": "zz", "root_ca_crl": "00"}
    _, members = shown(teemesh, capsys, desk.write("odd.json", jcs.dumps(value)))
    assert members["collateral"]["tcb_evaluation_number"] == "cannot be read: JSON_MALFORMED"
    assert members["collateral"]["pck_crl_ends_at"] == "cannot be read"
    assert members["collateral"]["qe_identity_issued_at"] <= NOW


def test_identity_that_the_log_does_not_state_is_said_with_its_reason(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    text, _ = shown(teemesh, capsys, desk.evidence("bare.json", event_log=()))
    assert "IDENTITY_EVENT_MISSING" in text


def test_words_of_the_evidence_cannot_steer_the_terminal(
    appraise: Callable[..., Outcome], desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b[2J\nACCEPTED \u202e"
    claims = {"role": hostile, hostile: [hostile, {"a": hostile}], "late": 2**53 - 1}
    text, members = shown(teemesh, capsys, desk.evidence("hostile.json", claims=claims))
    assert members["claims"]["role"] == hostile
    text += appraise("hostile.json").text + appraise("hostile.json", "--role", "router").text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert not any(line.startswith("ACCEPTED") for line in text.splitlines())
