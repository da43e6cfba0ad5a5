"""The workload keyset (sections 3.1, 3.3 and 3.4)."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any

import pytest

from tests.mesh.aci import reader
from tests.mesh.aci.reports import Challenge, challenge
from tests.mesh.aci.stage import Stage
from tests.mesh.aci.wire import Router

pytestmark = pytest.mark.mesh

DAY_SECONDS = 24 * 3600
SUITES = {"x25519-aes-256-gcm-hkdf-sha256", "secp256k1-aes-256-gcm-hkdf-sha256"}


@pytest.fixture
def before(stage: Stage) -> dict[str, Any]:
    """The report of the router's process before this one."""
    report: dict[str, Any] = reader.parse(stage.earlier.keyset)
    return report


def test_c036_the_shape_is_fixed(keyset: dict[str, Any]) -> None:
    assert set(keyset) == {
        "subject",
        "not_after",
        "receipt_signing_keys",
        "e2ee_public_keys",
        "tls_public_keys",
    }
    for entry in (*keyset["receipt_signing_keys"], *keyset["e2ee_public_keys"]):
        assert set(entry) == {"key_id", "algo", "public_key"}
    for entry in keyset["tls_public_keys"]:
        assert {"spki_sha256"} <= set(entry) <= {"spki_sha256", "domain"}


def test_c037_the_subject_is_a_name_or_null(keyset: dict[str, Any]) -> None:
    assert keyset["subject"] is None or isinstance(keyset["subject"], str)


def test_c038_it_ends_at_a_time_to_come(keyset: dict[str, Any]) -> None:
    assert reader.is_integer(keyset["not_after"])
    assert keyset["not_after"] > time.time()


def test_c039_it_ends_within_a_month(keyset: dict[str, Any]) -> None:
    assert keyset["not_after"] < time.time() + 31 * DAY_SECONDS


def test_c041_there_is_a_receipt_key_of_the_baseline(keyset: dict[str, Any]) -> None:
    keys = [key for key in keyset["receipt_signing_keys"] if key["algo"] == "ed25519"]
    assert keys
    assert all(reader.is_hex(key["public_key"], 32) for key in keys)


def test_c042_every_receipt_key_has_a_name_of_its_own(keyset: dict[str, Any]) -> None:
    names = [key["key_id"] for key in keyset["receipt_signing_keys"]]
    assert all(names)
    assert len(set(names)) == len(names)


def test_c043_a_receipt_key_is_no_e2ee_key(keyset: dict[str, Any]) -> None:
    receipt_keys = {key["public_key"] for key in keyset["receipt_signing_keys"]}
    assert receipt_keys.isdisjoint(key["public_key"] for key in keyset["e2ee_public_keys"])


def test_c044_a_receipt_key_is_no_tls_key(keyset: dict[str, Any]) -> None:
    spkis = {reader.spki_sha256(reader.receipt_key(keyset, key["key_id"])) for key in keyset["receipt_signing_keys"]}
    assert spkis.isdisjoint(key["spki_sha256"] for key in keyset["tls_public_keys"])


def test_c045_there_are_e2ee_keys_exactly_if_a_version_is_advertised(
    challenged: Challenge, keyset: dict[str, Any]
) -> None:
    advertised = challenged.report["service_capabilities"]["supported_e2ee_versions"]
    assert bool(advertised) == any(key["algo"] in SUITES for key in keyset["e2ee_public_keys"])


def test_c046_the_tls_key_that_we_saw_is_listed(challenged: Challenge) -> None:
    assert challenged.spki_sha256 in reader.pinned_keys(challenged.attestation, challenged.host)


def test_c047_the_key_is_listed_and_not_the_certificate(challenged: Challenge) -> None:
    certificate = hashlib.sha256(challenged.certificate).hexdigest()
    assert certificate not in {key["spki_sha256"] for key in challenged.keyset["tls_public_keys"]}


def test_c050_no_key_outlives_its_process(before: dict[str, Any], keyset: dict[str, Any]) -> None:
    earlier = before["attestation"]["workload_keyset"]
    for names, member in (("receipt_signing_keys", "public_key"), ("tls_public_keys", "spki_sha256")):
        assert {key[member] for key in earlier[names]}.isdisjoint(key[member] for key in keyset[names])


def test_c051_another_keyset_has_another_digest_and_a_quote_over_it(
    stage: Stage, router: Router, before: dict[str, Any]
) -> None:
    now = challenge(router, secrets.token_hex(32))
    assert now.report["workload_keyset_digest"] != before["workload_keyset_digest"]
    now.quote.verify(stage.vendor_root)
    digest = reader.digest(reader.canonical(now.keyset))
    assert now.quote.slot == bytes.fromhex(reader.report_data(digest, now.nonce)) + bytes(32)


def test_c052_an_older_receipt_still_verifies_under_the_keyset_of_its_time(
    stage: Stage, router: Router, before: dict[str, Any], keyset: dict[str, Any]
) -> None:
    fetched = router.receipt(stage.earlier.receipt_id, stage.owner.key)
    assert fetched.status == 200
    receipt = reader.parse(fetched.body)
    assert receipt["workload_keyset_digest"] == before["workload_keyset_digest"]
    assert reader.signature_holds(receipt, before["attestation"]["workload_keyset"])
    assert receipt["key_id"] not in {key["key_id"] for key in keyset["receipt_signing_keys"]}


def test_c055_keys_are_bare_hex(keyset: dict[str, Any]) -> None:
    for key in (*keyset["receipt_signing_keys"], *keyset["e2ee_public_keys"]):
        assert reader.is_hex(key["public_key"], len(key["public_key"]) // 2)
    for key in keyset["tls_public_keys"]:
        assert reader.is_hex(key["spki_sha256"], 32)
