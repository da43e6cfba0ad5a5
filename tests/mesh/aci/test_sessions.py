"""Attested sessions (section 8)."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from tests.mesh.aci import reader
from tests.mesh.aci.exchanges import MARKER, Exchanges, current_session
from tests.mesh.aci.provider import Provider
from tests.mesh.aci.stage import PLAIN_MODEL, UNPROVEN_MODEL, Stage
from tests.mesh.aci.wire import SESSIONS, Answer, Router

pytestmark = pytest.mark.mesh

CLAIMS = {
    "tee_attested",
    "gpu_attested",
    "tcb_up_to_date",
    "os_known_good",
    "serving_software_known_good",
    "model_weights_provenance",
}
SOURCES = {"hardware_proven", "verifier_derived", "provider_asserted", "operator_asserted"}
PUBLISHED_EXTRA = {
    "app_id",
    "compose_hash",
    "key_provider",
    "mrtd",
    "os_image_hash",
    "policy_version",
    "rtmr0",
    "rtmr1",
    "rtmr2",
    "tcb_status",
    "vendor_root_sha256",
}
"""Names whose meaning consumers may rely on: one that goes is a new verifier's id, not an edit here."""


def test_c158_the_list_has_a_version_and_sessions(listed: Answer) -> None:
    assert listed.status == 200
    assert set(listed.json) == {"api_version", "sessions"}
    assert listed.json["api_version"] == "aci/1"
    assert listed.json["sessions"]


def test_c159_an_entry_is_the_record_without_its_data(router: Router, listed: Answer) -> None:
    for entry in listed.json["sessions"]:
        assert reader.is_digest(entry["evidence"]["digest"])
        assert set(entry["evidence"]) == {"digest"}
        full = reader.parse(router.get(f"{SESSIONS}/{entry['session_id']}").body)
        del full["evidence"]["data"]
        assert full | {"session_id": entry["session_id"]} == entry


def test_c159_an_entry_does_not_hash_to_its_id(listed: Answer) -> None:
    for entry in reader.parse(listed.body)["sessions"]:
        assert reader.session_id(entry) != entry["session_id"]
        without = {name: value for name, value in entry.items() if name != "session_id"}
        assert reader.session_id(without) != entry["session_id"]


def test_c160_only_current_sessions_are_listed_newest_first(stage: Stage, listed: Answer) -> None:
    sessions, now = listed.json["sessions"], time.time()
    assert all(session["established_at"] <= now < session["expires_at"] for session in sessions)
    begins = [session["established_at"] for session in sessions]
    assert begins == sorted(begins, reverse=True)
    assert stage.earlier.session_id not in {session["session_id"] for session in sessions}


def ids(router: Router, query: str) -> set[str]:
    return {session["session_id"] for session in router.get(f"{SESSIONS}?{query}").json["sessions"]}


def test_c161_model_and_upstream_filter_and_combine(stage: Stage, router: Router, session: dict[str, Any]) -> None:
    current = current_session(stage)
    name = quote(session["upstream_name"], safe="")
    assert ids(router, f"model={stage.model}") == {current}
    assert ids(router, f"upstream_name={name}") == {current}
    assert ids(router, "upstream_name=&model=") == {current}
    assert ids(router, f"upstream_name={name}&model={stage.model}") == {current}
    assert ids(router, f"upstream_name={name}&model=other") == set()
    assert ids(router, f"upstream_name=other&model={stage.model}") == set()
    assert ids(router, "model=other") == ids(router, "upstream_name=other") == set()


def test_c162_the_record_hashes_to_its_id(stage: Stage, router: Router) -> None:
    current = current_session(stage)
    answer = router.get(f"{SESSIONS}/{current}")
    assert answer.header("Content-Type").startswith("application/json")
    document = reader.parse(answer.body)
    assert "session_id" not in document
    assert reader.session_id(document) == current


@pytest.mark.parametrize("form", ["sha256:{}", "0x{}", "{}0", "{:.63}", "{:.0}abc", "%20{}"])
def test_c163_an_id_in_another_form_is_not_found(stage: Stage, router: Router, form: str) -> None:
    answer = router.get(f"{SESSIONS}/{form.format(current_session(stage))}")
    assert answer.refusal == (404, "not_found")


def test_c163_an_id_in_upper_case_is_not_found(stage: Stage, router: Router) -> None:
    current = current_session(stage)
    assert current.upper() != current
    assert router.get(f"{SESSIONS}/{current.upper()}").refusal == (404, "not_found")


def test_c164_an_unknown_id_is_not_found(router: Router) -> None:
    assert router.get(f"{SESSIONS}/{'0' * 64}").refusal == (404, "not_found")


def test_c165_the_record_has_its_members(session: dict[str, Any]) -> None:
    required = {
        "api_version",
        "upstream_name",
        "endpoint",
        "verifier_id",
        "established_at",
        "expires_at",
        "channel_binding",
        "claims",
        "evidence",
    }
    assert required <= set(session) <= required | {"identity"}
    assert session["api_version"] == "aci/1"
    assert reader.is_integer(session["established_at"])
    assert reader.is_integer(session["expires_at"])
    assert session["established_at"] < session["expires_at"]
    assert isinstance(session["verifier_id"], str)


def test_c165_the_endpoint_is_an_origin_or_null(session: dict[str, Any]) -> None:
    if session["endpoint"] is not None:
        origin = urlsplit(session["endpoint"])
        assert origin.scheme
        assert origin.netloc
        assert (origin.path, origin.query, origin.fragment) == ("", "", "")


def test_c166_the_data_hashes_to_the_digest(session: dict[str, Any]) -> None:
    assert reader.digest(reader.evidence(session)) == session["evidence"]["digest"]


def test_c167_the_channel_is_bound_in_a_defined_shape(session: dict[str, Any]) -> None:
    assert session["channel_binding"]
    for binding in session["channel_binding"]:
        if binding["type"] == "tls_spki_sha256":
            assert set(binding) == {"type", "origin", "spki_sha256"}
            assert reader.is_hex(binding["spki_sha256"], 32)
        else:
            assert binding["type"] == "e2ee_public_key_sha256"
            assert {"type", "provider", "algorithm", "public_key_sha256"} <= set(binding)
            assert set(binding) <= {"type", "provider", "key_id", "algorithm", "public_key_sha256"}
            assert reader.is_hex(binding["public_key_sha256"], 32)


def test_c168_one_channel_has_one_session(router: Router, listed: Answer) -> None:
    bindings = [json.dumps(entry["channel_binding"], sort_keys=True) for entry in listed.json["sessions"]]
    assert len(set(bindings)) == len(bindings)


def test_c168_another_key_of_the_same_upstream_has_another_session(
    stage: Stage, router: Router, session: dict[str, Any]
) -> None:
    before = reader.parse(router.get(f"{SESSIONS}/{stage.earlier.session_id}").body)
    assert before["upstream_name"] == session["upstream_name"]
    assert before["channel_binding"] != session["channel_binding"]
    assert reader.session_id(before) == stage.earlier.session_id


def test_c169_claims_are_of_the_vocabulary(session: dict[str, Any]) -> None:
    claims = session["claims"]
    assert set(claims) - {"extra"} == CLAIMS
    for name in CLAIMS:
        assert claims[name]["status"] in ("asserted", "refuted", "unknown")
        assert claims[name].get("source", "hardware_proven") in SOURCES
    assert claims["tee_attested"]["status"] == "asserted"
    assert claims["tee_attested"]["source"] == "hardware_proven"


def test_c170_source_and_reason_are_there_exactly_where_something_is_known(session: dict[str, Any]) -> None:
    for name in CLAIMS:
        claim = session["claims"][name]
        expected = {"status"} if claim["status"] == "unknown" else {"status", "source", "reason"}
        assert set(claim) == expected


def test_c171_the_tcb_is_what_the_verifier_saw(session: dict[str, Any]) -> None:
    claim, status = session["claims"]["tcb_up_to_date"], session["claims"]["extra"]["tcb_status"]
    assert claim["status"] == ("asserted" if status == "UpToDate" else "refuted")


def test_c172_published_names_of_facts_are_still_there(session: dict[str, Any]) -> None:
    assert set(session["claims"]["extra"]) >= PUBLISHED_EXTRA


def test_c173_a_record_never_changes(stage: Stage, router: Router) -> None:
    for identifier in (current_session(stage), stage.earlier.session_id):
        first, second = (router.get(f"{SESSIONS}/{identifier}") for _ in range(2))
        assert first.body == second.body
        assert reader.session_id(reader.parse(first.body)) == identifier


def test_c173_a_new_verification_has_a_new_id(stage: Stage) -> None:
    assert current_session(stage) != stage.earlier.session_id


def test_c174_a_session_stays_as_long_as_its_receipt(stage: Stage, router: Router) -> None:
    receipt = reader.parse(router.receipt(stage.earlier.receipt_id, stage.owner.key).body)
    cited = reader.outcome(receipt)["session_id"]
    assert cited == stage.earlier.session_id
    assert router.get(f"{SESSIONS}/{cited}").status == 200


@pytest.mark.parametrize("model", [PLAIN_MODEL, UNPROVEN_MODEL])
def test_c175_whoever_proves_nothing_has_no_session(router: Router, exchanges: Exchanges, model: str) -> None:
    assert exchanges["unverified"].answer.status == 200
    assert ids(router, f"model={model}") == set()
    assert ids(router, "upstream_name=foreign%2Fplain") == set()


def test_c176_what_is_cited_is_what_is_listed(stage: Stage, exchanges: Exchanges) -> None:
    for kind in ("chat", "streamed chat", "completion"):
        assert reader.outcome(exchanges[kind].receipt)["session_id"] == current_session(stage)


def test_c177_sessions_hold_nothing_of_requests_and_need_no_key(
    router: Router, exchanges: Exchanges, listed: Answer
) -> None:
    cited = reader.outcome(exchanges["chat"].receipt)["session_id"]
    answer = router.get(f"{SESSIONS}/{cited}")
    assert answer.status == 200
    text = answer.body + reader.evidence(reader.parse(answer.body)) + listed.body
    assert MARKER.encode() not in text
    assert exchanges["chat"].answer.receipt_id.encode() not in text


def test_c177_the_provider_hears_of_no_session(provider: Provider, router: Router) -> None:
    router.get(SESSIONS)
    assert not provider.bodies
