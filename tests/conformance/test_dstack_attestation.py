"""Real dstack attestations: they decode to the last byte, and say what was published about them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from libs import jcs
from libs.errors import MeshError
from libs.tee import eventlog, registers, tdx
from libs.tee.collateral import Collateral
from libs.tee.ratls import blob
from libs.tee.ratls.blob import Attestation

_FOLDER = os.environ.get("TEEMESH_FIXTURES")
pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(_FOLDER is None, reason="TEEMESH_FIXTURES does not name the outside vectors"),
]
_QUOTES = Path(_FOLDER or "") / "quotes"
_SIMULATOR = "dstack/simulator-attestation.bin"
_LITE = "dstack/tdx-lite-attestation.json"

# Where a version 4 quote holds what the host configured.
_MR_CONFIG_ID = slice(232, 280)
_MR_OWNER = slice(280, 328)
_MR_OWNER_CONFIG = slice(328, 376)

# Application id, compose hash, instance id, OS image hash; events of registers 0 to 3.
_PUBLISHED = [
    (
        _SIMULATOR,
        "5bb4ff9a3837357f19dc176407a5709c62eb6c56",
        "c143116fef3940e7f776bfc0919c256232ae5338a6e948c96b711e0b2383483a",
        "1691ed1b47506cad7d08834668691d88246f5b1f",
        "e61be43dd1cc6a6f5edefd7c51b608983780839b0000ce60dd99737dcffe09b9",
        (17, 5, 2, 9),
    ),
    (
        _LITE,
        "86b0e55f2fa8e4fb69d890f14f54d5612707646e",
        "86b0e55f2fa8e4fb69d890f14f54d5612707646e2573d54e0d2ddaaade77caa9",
        "050bf89570575fe8fab4cb8f0a62a9e64efe8ead",
        "07a2388c7a6a1b6a646d443f1517990a4ec294471d63146cda9d56972765051d",
        (3, 0, 0, 9),
    ),
]


def _blob(name: str) -> bytes:
    data = (_QUOTES / name).read_bytes()
    return bytes.fromhex(json.loads(data)["attestation"]) if name.endswith(".json") else data


def _attestation(name: str) -> Attestation:
    return blob.parse(_blob(name))


def _reason(data: bytes) -> str:
    with pytest.raises(MeshError) as refusal:
        blob.parse(data)
    return refusal.value.reason


@pytest.mark.parametrize(("name", "app_id", "compose_hash", "instance_id", "os_image_hash", "counts"), _PUBLISHED)
def test_real_attestation_says_what_was_published(
    name: str, app_id: str, compose_hash: str, instance_id: str, os_image_hash: str, counts: tuple[int, ...]
) -> None:
    attestation = _attestation(name)
    identity = eventlog.read_identity(attestation.event_log)
    assert identity.app_id.hex() == app_id
    assert identity.compose_hash.hex() == compose_hash
    assert identity.instance_id.hex() == instance_id
    assert identity.os_image_hash.hex() == os_image_hash
    assert jcs.loads_object(identity.key_provider)["name"] == "kms"
    assert tuple(sum(event.imr == imr for event in attestation.event_log) for imr in range(4)) == counts
    assert attestation.report_data == tdx.read_report(attestation.quote).report_data


@pytest.mark.parametrize("name", [_SIMULATOR, _LITE])
def test_register_3_follows_from_recomputed_digests(name: str) -> None:
    attestation = _attestation(name)
    rtmrs = tdx.read_report(attestation.quote).rtmrs
    eventlog.verify_replay(attestation.runtime_log, rtmrs)
    register = bytes(48)
    for event in attestation.runtime_log:
        register = hashlib.sha384(register + eventlog.colon_digest(event.name, event.payload)).digest()
    assert register == rtmrs[3]


def test_whole_log_replays_and_a_stripped_one_only_in_register_3() -> None:
    whole = _attestation(_SIMULATOR)
    eventlog.verify_replay(whole.event_log, tdx.read_report(whole.quote).rtmrs)
    stripped = _attestation(_LITE)
    assert [event.name for event in stripped.event_log if event.imr == 0] == ["acpi-loader", "acpi-rsdp", "acpi-tables"]
    with pytest.raises(eventlog.EventLogDoesNotReplay, match="register 0"):
        eventlog.verify_replay(stripped.event_log, tdx.read_report(stripped.quote).rtmrs)


def test_both_wrappings_of_one_quote_agree() -> None:
    reply = json.loads((_QUOTES / "dstack/tdx-lite-getquote.json").read_bytes())
    attestation = _attestation(_LITE)
    assert attestation.quote == tdx.cut(bytes.fromhex(reply["quote"]))
    assert attestation.report_data.hex() == reply["report_data"]
    assert jcs.loads_object(attestation.config.encode()) == jcs.loads_object(reply["vm_config"].encode())
    log = eventlog.parse(json.loads(reply["event_log"]))
    assert attestation.runtime_log == blob.runtime_log(log)


@pytest.mark.parametrize(
    ("name", "collateral", "now"),
    [
        (_SIMULATOR, "intel-pcs/tdx-b0c06f000000-20260629.json", 1782701377),
        (_LITE, "intel-pcs/tdx-90c06f000000-20260629.json", 1782700967),
    ],
)
def test_quote_of_a_real_attestation_verifies(name: str, collateral: str, now: int) -> None:
    root = (_QUOTES / "dcap-qvl/intel_sgx_root_ca.der").read_bytes()
    statements = Collateral.decode((_QUOTES / collateral).read_bytes())
    assert tdx.verify(_attestation(name).quote, statements, [root], now).tcb_status == "UpToDate"


def test_every_truncation_is_refused() -> None:
    for name in (_SIMULATOR, _LITE):
        data = _blob(name)
        assert {_reason(data[:length]) for length in range(1, len(data))} == {"SCALE_MALFORMED"}
        assert _reason(data + b"\0") == "SCALE_MALFORMED"
    assert _reason(b"") == "ATTESTATION_FORM_NOT_SUPPORTED"


@pytest.mark.parametrize("name", [_SIMULATOR, _LITE])
def test_configuration_names_the_measured_app_compose(name: str) -> None:
    attestation = _attestation(name)
    compose_hash = eventlog.read_identity(attestation.event_log).compose_hash
    assert attestation.quote[_MR_CONFIG_ID] == registers.mr_config_id_1(compose_hash)


def test_configuration_of_a_foreign_quote_is_of_the_first_form() -> None:
    quote = bytes.fromhex((_QUOTES / "dcap-qvl/near_quote.hex").read_text().strip().removeprefix("0x"))
    configured = quote[_MR_CONFIG_ID]
    assert configured.hex().startswith("0112a20a")
    assert configured == registers.mr_config_id_1(configured[1:33])


def test_aggregate_counts_the_configuration_where_there_is_one() -> None:
    def aggregated(quote: bytes) -> tuple[bytes, bytes]:
        report = tdx.read_report(quote)
        configured = (quote[_MR_CONFIG_ID], quote[_MR_OWNER], quote[_MR_OWNER_CONFIG])
        # The signed registers lie side by side in the quote: the digest by another road.
        return registers.mr_aggregated(report.mrtd, report.rtmrs, *configured), quote[184:232] + quote[376:568]

    found, signed = aggregated(_attestation(_SIMULATOR).quote)
    quote = _attestation(_SIMULATOR).quote
    assert found == hashlib.sha256(signed + quote[232:376]).digest()
    reply = json.loads((_QUOTES / "dstack/quote-report.json").read_bytes())
    found, signed = aggregated(tdx.cut(bytes.fromhex(reply["quote"])))
    assert found == hashlib.sha256(signed).digest()


def test_system_digest_is_of_the_machine_and_not_of_the_application() -> None:
    attestation = _attestation(_LITE)
    report = tdx.read_report(attestation.quote)
    provider = registers.mr_key_provider(eventlog.read_identity(attestation.event_log).key_provider)
    signed = attestation.quote[184:232] + attestation.quote[376:520]
    assert registers.mr_system(report.mrtd, report.rtmrs, provider) == hashlib.sha256(signed + provider).digest()
