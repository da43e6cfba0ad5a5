from __future__ import annotations

import hashlib
from typing import Any

import pytest

from libs.errors import MeshError
from libs.tee import eventlog, tdx
from libs.tee.ratls import blob
from libs.tee.ratls.blob import Attestation
from services.devtee.attestation import attestation_blob
from services.devtee.machine import VirtualTd
from tests.unit.libs.tee.ratls.maker import message, packed

BOUND = bytes(range(64))


def _reason(data: bytes, words: str | None = None) -> str:
    with pytest.raises(MeshError, match=words) as refusal:
        blob.parse(data)
    return refusal.value.reason


def _logged(document: dict[str, Any]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = document["platform"]["data"]["event_log"]
    return events


def _stated(document: dict[str, Any]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = document["stack"]["data"]["runtime_events"]
    return events


def _verify_says_what_the_td_measured(attestation: Attestation, td: VirtualTd) -> None:
    report = tdx.read_report(attestation.quote)
    assert report.report_data == attestation.report_data == BOUND
    assert attestation.config == td.machine.image.vm_config
    eventlog.verify_replay(attestation.event_log, report.rtmrs)
    assert eventlog.read_identity(attestation.event_log).app_id == td.identity.app_id


def test_scale_form_says_what_the_td_measured(td: VirtualTd) -> None:
    whole = blob.parse(attestation_blob(td, BOUND))
    _verify_says_what_the_td_measured(whole, td)
    assert {event.imr for event in whole.event_log} == {0, 1, 2, 3}
    stripped = blob.parse(attestation_blob(td, BOUND, whole_log=False))
    _verify_says_what_the_td_measured(stripped, td)
    assert stripped.event_log == stripped.runtime_log == whole.runtime_log


def test_messagepack_form_says_the_same(td: VirtualTd) -> None:
    attestation = blob.parse(packed(message(td, BOUND)))
    _verify_says_what_the_td_measured(attestation, td)
    assert attestation.event_log == blob.parse(attestation_blob(td, BOUND)).event_log


def test_bytes_may_be_written_as_bytes(td: VirtualTd) -> None:
    document = message(td, BOUND)
    plain = blob.parse(packed(document)).report_data
    document["stack"]["data"]["report_data"] = BOUND
    document["platform"]["data"]["quote"] = bytes(document["platform"]["data"]["quote"])
    assert blob.parse(packed(document)).report_data == plain == BOUND


def test_padding_of_the_quote_is_cut(td: VirtualTd) -> None:
    document = message(td, BOUND)
    document["platform"]["data"]["quote"] += [0] * 70
    assert blob.parse(packed(document)).quote == tdx.cut(bytes(document["platform"]["data"]["quote"]))
    document["platform"]["data"]["quote"] += [1]
    assert _reason(packed(document)) == "QUOTE_MALFORMED"


def test_overlong_attestation_is_refused(td: VirtualTd) -> None:
    document = message(td, BOUND)
    document["stack"]["data"]["config"] = "c" * blob.MAX_BLOB_BYTES
    assert _reason(packed(document)) == "ATTESTATION_TOO_LARGE"


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x04\x00", b"\x90", b"\xa1a", b"\xc0", b"\xdd", b"{}"])
def test_other_forms_are_refused(data: bytes) -> None:
    assert _reason(data) == "ATTESTATION_FORM_NOT_SUPPORTED"


def test_other_messagepack_version_is_refused(td: VirtualTd) -> None:
    assert _reason(packed(message(td, BOUND) | {"version": 2})) == "ATTESTATION_FORM_NOT_SUPPORTED"


@pytest.mark.parametrize("platform", [1, 2, 3, 4, 255])
def test_other_scale_platform_is_refused(td: VirtualTd, platform: int) -> None:
    data = bytearray(attestation_blob(td, BOUND))
    data[1] = platform
    assert _reason(bytes(data)) == "ATTESTATION_PLATFORM_NOT_SUPPORTED"


@pytest.mark.parametrize("kind", ["gcp-tdx", "nitro-enclave", "aws-nitro-tpm", "sev-snp", "TDX", ""])
def test_other_messagepack_platform_is_refused(td: VirtualTd, kind: str) -> None:
    document = message(td, BOUND)
    document["platform"]["kind"] = kind
    assert _reason(packed(document)) == "ATTESTATION_PLATFORM_NOT_SUPPORTED"


def test_pod_is_refused(td: VirtualTd) -> None:
    document = message(td, BOUND)
    document["stack"]["kind"] = "dstack-pod"
    document["stack"]["data"]["report_data_payload"] = "{}"
    assert _reason(packed(document)) == "ATTESTATION_STACK_NOT_SUPPORTED"


def test_anything_after_the_end_is_refused(td: VirtualTd) -> None:
    assert _reason(attestation_blob(td, BOUND) + b"\0") == "SCALE_MALFORMED"
    assert _reason(packed(message(td, BOUND)) + b"\0") == "MESSAGEPACK_MALFORMED"


def test_every_truncation_is_refused(td: VirtualTd) -> None:
    scale = attestation_blob(td, BOUND)
    assert {_reason(scale[:length]) for length in range(1, len(scale), 7)} == {"SCALE_MALFORMED"}
    messages = packed(message(td, BOUND))
    assert {_reason(messages[:length]) for length in range(1, len(messages), 97)} == {"MESSAGEPACK_MALFORMED"}


@pytest.mark.parametrize(
    "change",
    [
        lambda document: _stated(document).pop(),
        lambda document: _stated(document).append({"event": "late", "payload": b""}),
        lambda document: _stated(document).reverse(),
        lambda document: _stated(document)[2].update(payload=bytes(32)),
        lambda document: _logged(document).pop(),
        lambda document: _stated(document).clear(),
    ],
    ids=["one fewer", "one more", "order", "payload", "log shorter", "none"],
)
def test_runtime_events_that_disagree_with_the_log_are_refused(td: VirtualTd, change: Any) -> None:
    document = message(td, BOUND)
    change(document)
    assert _reason(packed(document)) == "RUNTIME_EVENTS_DISAGREE"


def test_log_is_judged_by_the_rules_of_every_log(td: VirtualTd) -> None:
    document = message(td, BOUND)
    _logged(document)[-1]["event"] = "app-id:x"
    assert _reason(packed(document)) == "EVENT_LOG_MALFORMED"


def test_report_data_of_another_size_is_refused(td: VirtualTd) -> None:
    document = message(td, BOUND)
    document["stack"]["data"]["report_data"] = BOUND[:63]
    assert _reason(packed(document), "63 bytes") == "ATTESTATION_MALFORMED"
    document["stack"]["data"]["report_data"] = BOUND + b"\0"
    assert _reason(packed(document)) == "MESSAGEPACK_MALFORMED"


def test_events_of_the_second_form_are_read(td: VirtualTd) -> None:
    document = message(td, BOUND)
    app_id = next(event for event in _logged(document) if event["event"] == "app-id")
    text = f'{{"name":"app-id","payload":"{td.identity.app_id.hex()}","type":134217729}}'.encode()
    app_id.update(digest=hashlib.sha384(text).digest(), version=2, preimage=text.hex())
    _stated(document)[1]["version"] = 2
    assert blob.parse(packed(document)).runtime_log[1].digest == hashlib.sha384(text).digest()
    app_id["preimage"] = (text + b" ").hex()
    assert _reason(packed(document)) == "EVENT_PREIMAGE_MISMATCH"


def test_preimage_of_the_other_form_is_refused(td: VirtualTd) -> None:
    document = message(td, BOUND)
    app_id = next(event for event in _logged(document) if event["event"] == "app-id")
    app_id["preimage"] = (b"\x01\0\0\x08:app-id:" + td.identity.app_id).hex()
    blob.parse(packed(document))
    app_id["version"] = 2
    assert _reason(packed(document)) == "EVENT_PREIMAGE_MISMATCH"


def test_preimage_of_a_boot_event_is_refused(td: VirtualTd) -> None:
    document = message(td, BOUND)
    boot = _logged(document)[0]
    boot.update(event="x", event_payload=b"", preimage=b"\x01\0\0\x08:x:".hex())
    assert _reason(packed(document)) == "EVENT_PREIMAGE_MISMATCH"


def test_other_event_versions_and_preimages_are_refused(td: VirtualTd) -> None:
    document = message(td, BOUND)
    _logged(document)[-1]["preimage"] = "not hex"
    assert _reason(packed(document), "hex") == "ATTESTATION_MALFORMED"
    document = message(td, BOUND)
    _stated(document)[0]["version"] = 3
    assert _reason(packed(document), "version 3") == "ATTESTATION_MALFORMED"


def test_event_count_is_bounded(td: VirtualTd) -> None:
    document = message(td, BOUND)
    _logged(document).extend([_logged(document)[0]] * 512)
    assert _reason(packed(document), "at most 512") == "MESSAGEPACK_MALFORMED"
