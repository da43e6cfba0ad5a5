"""The ACI v1 vectors, byte for byte. Those of other extensions and of dstack's belong to other tests."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.aci import keyset as keysets
from libs.aci import receipt as receipts
from libs.aci import report as reports
from libs.aci import session as sessions
from libs.aci.encoding import digest
from libs.aci.keyset import Keyset, PublishedKey
from libs.aci.receipt_events import UpstreamVerified

pytestmark = pytest.mark.conformance


@pytest.fixture(scope="module")
def vectors() -> dict[str, dict[str, Any]]:
    folder = os.environ.get("TEEMESH_FIXTURES")
    if folder is None:
        pytest.skip("TEEMESH_FIXTURES names no folder with aci-vectors.json")
    head = json.loads((Path(folder) / "aci-vectors.json").read_text(encoding="utf-8"))
    return {vector["id"]: vector for vector in head["vectors"]}


@pytest.fixture(scope="module")
def keyset(vectors: dict[str, dict[str, Any]]) -> Keyset:
    return keysets.parse(vectors["keyset.digest"]["inputs"]["keyset"])


@pytest.fixture(scope="module")
def receipt_key(vectors: dict[str, dict[str, Any]]) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vectors["keys.receipt-1"]["inputs"]["seed_hex"]))


@pytest.fixture(scope="module")
def signed_receipt(vectors: dict[str, dict[str, Any]]) -> bytes:
    text: str = vectors["receipt.document"]["expected"]["document_jcs"]
    return text.encode()


def test_receipt_key(vectors: dict[str, dict[str, Any]], receipt_key: Ed25519PrivateKey, keyset: Keyset) -> None:
    raw = receipt_key.public_key().public_bytes_raw()
    assert raw.hex() == vectors["keys.receipt-1"]["expected"]["public_key_hex"]
    assert keyset.receipt_key("receipt-1") == raw


def test_keyset_digest(vectors: dict[str, dict[str, Any]], keyset: Keyset) -> None:
    expected = vectors["keyset.digest"]["expected"]
    assert jcs.dumps(keyset.document()).decode() == expected["jcs"]
    assert keyset.digest == expected["workload_keyset_digest"]


@pytest.mark.parametrize("form", ["statement.nonce", "statement.null"])
def test_statement(vectors: dict[str, dict[str, Any]], form: str) -> None:
    inputs, expected = vectors[form]["inputs"], vectors[form]["expected"]
    assert reports.statement(inputs["keyset_digest"], inputs["nonce"]).decode() == expected["statement"]
    assert reports.report_data(inputs["keyset_digest"], inputs["nonce"]).hex() == expected["report_data"]


def test_statement_slot(vectors: dict[str, dict[str, Any]]) -> None:
    vector = vectors["statement.slot"]
    assert reports.slot(bytes.fromhex(vector["inputs"]["report_data"])).hex() == vector["expected"]["slot_hex"]


def test_session_and_its_evidence(vectors: dict[str, dict[str, Any]]) -> None:
    vector = vectors["session.id"]
    document = json.dumps(vector["inputs"]["document"], indent=1).encode()
    assert sessions.session_id(document) == vector["expected"]["session_id"]
    session = sessions.verify_session(document, vector["expected"]["session_id"])
    assert session.evidence.decode() == vectors["session.evidence"]["inputs"]["evidence_utf8"]
    assert digest(session.evidence) == vectors["session.evidence"]["expected"]["digest"]


def test_session_document_is_built_to_the_byte(vectors: dict[str, dict[str, Any]]) -> None:
    vector, evidence = vectors["session.id"], vectors["session.evidence"]
    session = sessions.verify_session(vector["expected"]["jcs"].encode(), vector["expected"]["session_id"])
    assert isinstance(session.bindings[0], sessions.TlsBinding)
    built = sessions.session_document(
        upstream_name=session.upstream_name,
        endpoint=session.endpoint,
        verifier_id=session.verifier_id,
        established_at=session.established_at,
        expires_at=session.expires_at,
        bindings=(session.bindings[0],),
        claims=session.claims,
        evidence=evidence["inputs"]["evidence_utf8"].encode(),
        content_type=evidence["inputs"]["content_type"],
        extra=session.extra,
    )
    assert built.decode() == vector["expected"]["jcs"]
    assert json.loads(built)["evidence"]["data"] == evidence["expected"]["data"]
    assert base64.b64decode(evidence["expected"]["data"].partition(",")[2]) == session.evidence


@pytest.mark.parametrize("body", ["receipt.request_hash", "receipt.response_hash"])
def test_body_hash(vectors: dict[str, dict[str, Any]], body: str) -> None:
    assert digest(vectors[body]["inputs"]["body_utf8"].encode()) == vectors[body]["expected"]["body_hash"]


def test_receipt_signing_input(vectors: dict[str, dict[str, Any]]) -> None:
    vector = vectors["receipt.signing_input"]
    assert jcs.dumps(vector["inputs"]["document_without_signature"]).decode() == vector["expected"]["jcs"]
    assert digest(vector["expected"]["jcs"].encode()) == "sha256:" + vector["expected"]["sha256"]


def test_receipt_is_signed_to_the_byte(
    vectors: dict[str, dict[str, Any]], signed_receipt: bytes, receipt_key: Ed25519PrivateKey
) -> None:
    receipt = receipts.parse(signed_receipt)
    assert receipts.sign(receipt, receipt_key) == signed_receipt
    assert json.loads(signed_receipt)["signature"] == vectors["receipt.signature"]["expected"]["signature_hex"]


def test_receipt_verifies_with_its_exchange_and_session(
    vectors: dict[str, dict[str, Any]], signed_receipt: bytes, keyset: Keyset
) -> None:
    receipt = receipts.verify_receipt(signed_receipt, keyset)
    receipts.verify_exchange(
        receipt,
        request_body=vectors["receipt.request_hash"]["inputs"]["body_utf8"].encode(),
        response_hash=digest(vectors["receipt.response_hash"]["inputs"]["body_utf8"].encode()),
    )
    expected = vectors["session.id"]["expected"]
    session = sessions.verify_session(expected["jcs"].encode(), expected["session_id"])
    assert isinstance(receipts.verify_serving(receipt, session), UpstreamVerified)


@pytest.mark.parametrize("capture", ["fixture.rust_report", "fixture.ts_report"])
def test_whole_report_of_the_reference(vectors: dict[str, dict[str, Any]], capture: str) -> None:
    inputs, expected = vectors[capture]["inputs"], vectors[capture]["expected"]
    report = reports.parse(json.dumps(inputs["report"]).encode())
    assert reports.verify_report_binding(report, inputs["nonce"]) == expected["workload_keyset_digest"]
    assert reports.statement(report.keyset.digest, inputs["nonce"]).decode() == expected["statement"]
    assert report.report_data.hex() == expected["report_data"]
    with pytest.raises(PublishedKey):
        keysets.verify_usable(report.keyset, now=report.keyset.not_after - 1, longest_seconds=10)


@pytest.mark.parametrize("vector", ["derived.jcs.0", "derived.jcs.1"])
def test_canonical_form(vectors: dict[str, dict[str, Any]], vector: str) -> None:
    expected = vectors[vector]["expected"]
    canonical = jcs.dumps(vectors[vector]["inputs"]["value"])
    assert canonical.decode() == expected["jcs_utf8"]
    assert digest(canonical) == "sha256:" + expected["sha256"]
