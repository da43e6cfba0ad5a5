"""The attestation report (sections 3.2 and 4), read by a verifier of our own."""

from __future__ import annotations

import hashlib
import json
import secrets

import pytest

from tests.mesh.aci import reader
from tests.mesh.aci.quote import RUNTIME_EVENT, TDX, replayed, runtime_digest
from tests.mesh.aci.reports import Challenge, challenge
from tests.mesh.aci.stage import Stage
from tests.mesh.aci.wire import ATTESTATION, Answer, Router

pytestmark = pytest.mark.mesh

DIGITS = "0123456789abcdef" * 4


@pytest.fixture(params=["challenged", "unchallenged"])
def either(request: pytest.FixtureRequest) -> Challenge:
    """A report of each form."""
    found: Challenge = request.getfixturevalue(request.param)
    return found


def test_c001_a_report_is_served_without_authentication(router: Router) -> None:
    assert router.get(f"{ATTESTATION}?nonce={secrets.token_hex(32)}").status == 200


def test_c002_a_nonce_is_bound(challenged: Challenge) -> None:
    digest = challenged.report["workload_keyset_digest"]
    assert challenged.nonce is not None
    assert challenged.attestation["report_data"] == reader.report_data(digest, challenged.nonce)
    assert challenged.attestation["report_data"] != reader.report_data(digest, None)


@pytest.mark.parametrize("nonce", [DIGITS.upper(), DIGITS[:-1] + "F"], ids=["all of it", "one digit"])
def test_c003_a_nonce_in_upper_case_is_refused(router: Router, nonce: str) -> None:
    assert router.get(f"{ATTESTATION}?nonce={nonce}").refusal == (400, "invalid_request_error")


@pytest.mark.parametrize("size", [1, 32, 62, 63, 65, 66, 128])
def test_c004_a_nonce_of_another_length_is_refused(router: Router, size: int) -> None:
    assert router.get(f"{ATTESTATION}?nonce={(DIGITS * 2)[:size]}").refusal == (400, "invalid_request_error")


@pytest.mark.parametrize("query", ["nonce=", "nonce"])
def test_c005_an_empty_nonce_is_not_an_absent_one(router: Router, query: str) -> None:
    assert router.get(f"{ATTESTATION}?{query}").refusal == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "nonce",
    [
        "0x" + DIGITS,
        "0x" + DIGITS[2:],
        "%20" + DIGITS,
        DIGITS + "%20",
        DIGITS[:-1] + "+",
        DIGITS[:-1] + "g",
        DIGITS + "%0A",
        DIGITS + "%00",
        DIGITS[:-1] + "%00",
        DIGITS[:-1] + "%EF%BC%91",
        DIGITS[:-1] + "%FF",
        "-" + DIGITS[1:],
    ],
)
def test_c006_a_nonce_that_is_not_bare_hex_is_refused(router: Router, nonce: str) -> None:
    assert router.get(f"{ATTESTATION}?nonce={nonce}").refusal == (400, "invalid_request_error")


def test_c007_two_nonces_are_refused(router: Router) -> None:
    answer = router.get(f"{ATTESTATION}?nonce={DIGITS}&nonce={'00' * 32}")
    assert answer.status == 400
    assert answer.error_type == "invalid_request_error"


def test_c008_without_a_nonce_the_statement_has_the_literal_null(unchallenged: Challenge) -> None:
    digest = unchallenged.report["workload_keyset_digest"]
    assert reader.statement(digest, None).count(b'"nonce":null') == 1
    assert unchallenged.attestation["report_data"] == reader.report_data(digest, None)


def test_c009_report_data_is_the_hash_of_the_templates_exact_bytes(either: Challenge) -> None:
    nonce = "null" if either.nonce is None else f'"{either.nonce}"'
    digest = reader.digest(reader.canonical(either.keyset))
    text = f'{{"keyset_digest":"{digest}","nonce":{nonce},"purpose":"aci.report_data.v1"}}'
    assert either.attestation["report_data"] == hashlib.sha256(text.encode()).hexdigest()


def test_c010_the_slot_is_report_data_and_zeros(either: Challenge) -> None:
    assert either.quote.slot == bytes.fromhex(either.attestation["report_data"]) + bytes(32)


def test_c011_the_hardware_signed_the_slot(stage: Stage, either: Challenge) -> None:
    either.quote.verify(stage.vendor_root)
    assert either.quote.slot.hex().startswith(either.attestation["report_data"])


def test_c012_a_nonce_is_answered_by_a_quote_of_its_own(router: Router, challenged: Challenge) -> None:
    another = challenge(router, secrets.token_hex(32))
    assert another.quote.raw != challenged.quote.raw
    digest = another.report["workload_keyset_digest"]
    assert another.quote.slot.hex() == reader.report_data(digest, another.nonce) + "00" * 32
    assert another.keyset == challenged.keyset


def test_c013_the_version_is_aci_1(either: Challenge) -> None:
    assert either.report["api_version"] == "aci/1"


def test_c014_the_digest_is_that_of_the_keyset_beside_it(either: Challenge) -> None:
    assert either.report["workload_keyset_digest"] == reader.digest(reader.canonical(either.keyset))


def test_c015_report_data_is_bare_hex(either: Challenge) -> None:
    assert reader.is_hex(either.attestation["report_data"], 32)


def test_c016_the_evidence_is_a_tdx_quote_of_version_4(either: Challenge) -> None:
    assert either.attestation["tee_type"] == "tdx"
    assert (either.quote.version, either.quote.tee_type) == (4, TDX)


def test_c017_provenance_has_its_four_members(either: Challenge) -> None:
    provenance = either.attestation["source_provenance"]
    assert set(provenance) == {"repo_url", "repo_commit", "image_digest", "image_provenance"}
    for name in ("repo_url", "repo_commit", "image_digest"):
        assert provenance[name] is None or isinstance(provenance[name], str)


def test_c018_provenance_leads_to_source_or_to_an_image(challenged: Challenge) -> None:
    provenance = challenged.attestation["source_provenance"]
    assert (provenance["repo_url"] and provenance["repo_commit"]) or provenance["image_digest"]


def test_c019_the_measured_compose_says_the_same(challenged: Challenge) -> None:
    provenance = challenged.attestation["source_provenance"]
    named = [provenance[name] for name in ("repo_commit", "image_digest") if provenance[name] is not None]
    assert named
    assert all(name.removeprefix("sha256:") in challenged.evidence["app_compose"] for name in named)


def test_c019_a_mesh_without_images_says_that_its_digest_is_of_sources(challenged: Challenge) -> None:
    assert challenged.attestation["source_provenance"]["image_provenance"] == {"digest_of": "sources"}


def test_c020_the_quotes_chain_ends_at_the_vendors_root(stage: Stage, challenged: Challenge) -> None:
    challenged.quote.verify(stage.vendor_root)


def test_c021_the_slot_beside_the_quote_is_the_quotes(either: Challenge) -> None:
    assert either.evidence["quote_report_data"] == either.quote.slot.hex()


def test_c022_the_event_log_is_a_text_that_holds_a_list(challenged: Challenge) -> None:
    assert isinstance(challenged.evidence["event_log"], str)
    assert isinstance(json.loads(challenged.evidence["event_log"]), list)
    assert challenged.events


def test_c023_every_runtime_event_states_its_whole_digest(challenged: Challenge) -> None:
    measured = [event for event in challenged.events if event["imr"] == 3]
    assert measured
    for event in measured:
        assert event["event_type"] == RUNTIME_EVENT
        payload = bytes.fromhex(event["event_payload"])
        assert event["digest"] == runtime_digest(event["event"], payload).hex()


def test_c024_the_log_replays_to_the_signed_register(either: Challenge) -> None:
    assert replayed(either.events) == either.quote.register(3)


def test_c025_the_compose_is_the_one_that_was_measured_before_it_ran(challenged: Challenge) -> None:
    runtime = [event for event in challenged.events if event["imr"] == 3]
    names = [event["event"] for event in runtime]
    assert names.count("compose-hash") == 1
    assert names.index("compose-hash") < names.index("system-ready")
    compose = hashlib.sha256(challenged.evidence["app_compose"].encode()).hexdigest()
    assert runtime[names.index("compose-hash")]["event_payload"] == compose


def test_c026_the_vm_config_names_the_image_that_was_measured(challenged: Challenge) -> None:
    described = json.loads(challenged.evidence["vm_config"])
    (measured,) = [event["event_payload"] for event in challenged.events if event["event"] == "os-image-hash"]
    assert described["os_image_hash"] == measured
    assert {"cpu_count", "memory_size"} <= set(described)


def test_c027_custody_is_stated_for_every_key(challenged: Challenge) -> None:
    stated = challenged.evidence["key_custody"]["keys"]
    keyset = challenged.keyset
    for role, names in (("receipt", "receipt_signing_keys"), ("e2ee", "e2ee_public_keys")):
        held = {entry["public_key"] for entry in stated if entry["role"] == role}
        assert held == {key["public_key"] for key in keyset[names]}
    held = {entry["spki_sha256"] for entry in stated if entry["role"] == "tls"}
    assert held == {key["spki_sha256"] for key in keyset["tls_public_keys"]}


def test_c030_the_service_says_that_it_is_an_aggregator(either: Challenge) -> None:
    assert either.report["service_capabilities"]["serving"] == "aggregator"


def test_c031_only_versions_for_clients_are_advertised(either: Challenge) -> None:
    advertised = either.report["service_capabilities"]["supported_e2ee_versions"]
    assert set(advertised) <= {"2"}
    assert len(set(advertised)) == len(advertised)


def test_c032_everybody_gets_the_same_report(stage: Stage, router: Router, report: Answer) -> None:
    askers = [
        router.get(ATTESTATION, key=stage.owner.key),
        router.get(ATTESTATION, key="of-nobody"),
        router.get(ATTESTATION, headers=[("User-Agent", "another"), ("Accept-Language", "la")]),
        router.get(ATTESTATION, headers=[("Accept", "text/html"), ("X-Forwarded-Host", "elsewhere.example")]),
    ]
    assert {answer.body for answer in askers} == {report.body}


@pytest.mark.parametrize(
    "query", ["?signing_algo=ecdsa", "?model=any&version=2", "?include_tls_fingerprint=true", "?signing_address=0x00"]
)
def test_c033_what_older_clients_send_changes_nothing(router: Router, report: Answer, query: str) -> None:
    headers = [("X-Signing-Algo", "ecdsa")]
    assert router.get(ATTESTATION + query, headers=headers).body == report.body


def test_c034_a_report_is_json(either: Challenge) -> None:
    assert either.answer.header("Content-Type").partition(";")[0] == "application/json"


def test_c035_the_unchallenged_report_is_kept(router: Router, report: Answer) -> None:
    challenge(router, secrets.token_hex(32))
    assert router.get(ATTESTATION).body == report.body
