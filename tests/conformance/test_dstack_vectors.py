"""dstack's event log, and what its workers' reports bind, byte for byte as the ACI vectors have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from libs.tee import eventlog, tdx
from services.router.workload.worker_form import EthereumKey, identity
from tests.conformance import recorded

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(recorded.FOLDER is None, reason="TEEMESH_FIXTURES names no folder with aci-vectors.json"),
]


@pytest.fixture(scope="module")
def vectors() -> dict[str, dict[str, Any]]:
    head = json.loads((Path(recorded.FOLDER or "") / "aci-vectors.json").read_text(encoding="utf-8"))
    return {vector["id"]: vector for vector in head["vectors"]}


def test_the_events_of_known_images_have_the_digests_that_were_measured(vectors: dict[str, dict[str, Any]]) -> None:
    vector = vectors["dstack.os_images"]
    hashes = [image["os_image_hash"] for image in vector["inputs"]["images"]]
    digests = {each: eventlog.colon_digest("os-image-hash", bytes.fromhex(each)).hex() for each in hashes}
    assert digests == vector["expected"]["event_digests"]
    assert len(digests) == 4


def test_the_log_replays_to_the_register_of_the_recorded_quote(vectors: dict[str, dict[str, Any]]) -> None:
    inputs, expected = vectors["dstack.rtmr3_replay"]["inputs"], vectors["dstack.rtmr3_replay"]["expected"]
    register = bytes.fromhex(expected["rt_mr3"])
    quote = recorded.quote(inputs["fixture"].removeprefix("quotes/"))
    assert quote[expected["offset"] : expected["offset"] + len(register)] == register
    assert tdx.read_report(tdx.cut(quote)).rtmrs[eventlog.RUNTIME_REGISTER] == register
    log = eventlog.parse(inputs["events_imr3"])
    eventlog.verify_replay(log, (b"", b"", b"", register))
    with pytest.raises(eventlog.EventLogDoesNotReplay):
        eventlog.verify_replay(log[:-1], (b"", b"", b"", register))


def test_what_a_workers_quote_binds(vectors: dict[str, dict[str, Any]]) -> None:
    inputs, expected = vectors["legacy.report_data"]["inputs"], vectors["legacy.report_data"]["expected"]
    key = EthereumKey(ec.derive_private_key(int(inputs["secp256k1_scalar_hex"], 16), ec.SECP256K1()))
    assert (key.written(), key.public.hex()) == (expected["signing_address"], expected["public_key_uncompressed_hex"])
    assert identity(key, None).hex() + inputs["nonce"] == expected["report_data_v1"]
    assert identity(key, inputs["tls_spki_sha256"]).hex() + inputs["nonce"] == expected["report_data_v2"]
