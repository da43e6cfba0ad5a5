from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from libs.aci.claims import UNKNOWN, Claim, ClaimMalformed, Claims
from libs.aci.encoding import digest
from libs.aci.session import (
    KeyBinding,
    SessionEvidenceMismatch,
    SessionIdMismatch,
    SessionMalformed,
    TlsBinding,
    UnenforceableBinding,
    abbreviated,
    session_document,
    session_id,
    verify_session,
)
from tests.unit.libs.aci.documents import NOW, SESSION, SESSION_ID


def changed(change: Callable[[dict[str, Any]], None]) -> bytes:
    value = json.loads(SESSION)
    change(value)
    return json.dumps(value).encode()


def verify_changed(change: Callable[[dict[str, Any]], None]) -> Any:
    document = changed(change)
    return verify_session(document, session_id(document))


def test_document_verifies_and_reads_back() -> None:
    session = verify_session(SESSION, SESSION_ID)
    assert session.evidence == b'{"quote":"00"}'
    assert session.bindings == (TlsBinding("https://node-a.test:7000", "ab" * 32),)
    assert session.claims.tee_attested == Claim("asserted", "hardware_proven", "TDX quote verified")
    assert session.claims.gpu_attested == UNKNOWN
    assert session.extra == {"tcb_status": "UpToDate"}


def test_id_is_of_the_content_and_not_of_its_encoding() -> None:
    assert session_id(json.dumps(json.loads(SESSION), indent=3).encode()) == SESSION_ID


def test_unknown_claim_has_a_status_only_and_absent_identity_is_left_out() -> None:
    value = json.loads(SESSION)
    assert value["claims"]["gpu_attested"] == {"status": "unknown"}
    assert "identity" not in value


def test_document_other_than_the_named_one_is_refused() -> None:
    with pytest.raises(SessionIdMismatch):
        verify_session(changed(lambda value: value.update(expires_at=NOW + 9999)), SESSION_ID)


def test_evidence_that_does_not_hash_to_its_digest_is_refused() -> None:
    def swap(value: dict[str, Any]) -> None:
        value["evidence"]["data"] = "data:application/json;base64," + base64.b64encode(b"{}").decode()

    with pytest.raises(SessionEvidenceMismatch):
        verify_changed(swap)


@pytest.mark.parametrize(
    "data", ["", "e30=", "data:application/json,{}", "data:application/json;base64,e30", "data:x;base64,!"]
)
def test_evidence_that_is_no_data_uri_is_refused(data: str) -> None:
    with pytest.raises(SessionMalformed, match="data"):
        verify_changed(lambda value: value.update(evidence={"digest": digest(b"{}"), "data": data}))


def test_other_version_and_backward_period_are_refused() -> None:
    with pytest.raises(SessionMalformed, match="api_version"):
        verify_changed(lambda value: value.update(api_version="aci/2"))
    with pytest.raises(SessionMalformed, match="established"):
        verify_changed(lambda value: value.update(expires_at=value["established_at"]))


def test_status_or_source_of_a_later_version_counts_as_unknown() -> None:
    def later(value: dict[str, Any]) -> None:
        value["claims"]["tee_attested"] = {"status": "proven"}
        value["claims"]["gpu_attested"] = {"status": "asserted", "source": "oracle", "reason": "x"}

    claims = verify_changed(later).claims
    assert (claims.tee_attested, claims.gpu_attested) == (UNKNOWN, UNKNOWN)


def test_bindings_of_all_kinds_are_read_and_unknown_ones_prove_nothing() -> None:
    def bind(value: dict[str, Any]) -> None:
        key = {"type": "e2ee_public_key_sha256", "provider": "p", "algorithm": "a", "public_key_sha256": "11" * 32}
        value["channel_binding"] = [key, {"type": "quantum"}]

    assert verify_changed(bind).bindings == (KeyBinding("p", "a", "11" * 32), UnenforceableBinding("quantum"))


def test_list_form_names_its_id_and_drops_the_evidence_itself() -> None:
    entry = abbreviated(SESSION)
    assert entry["session_id"] == SESSION_ID
    assert entry["evidence"] == {"digest": digest(b'{"quote":"00"}')}
    assert entry.keys() == json.loads(SESSION).keys() | {"session_id"}


@pytest.mark.parametrize(
    "claim",
    [Claim("maybe"), Claim("asserted"), Claim("asserted", "hardware_proven"), Claim("refuted", "oracle", "because")],
)
def test_claim_without_source_or_reason_is_not_published(claim: Claim) -> None:
    with pytest.raises(ClaimMalformed):
        build(claims=Claims(tee_attested=claim))


@pytest.mark.parametrize("name", ["10", "", "größe", "a b", "__proto__" * 8])
def test_extra_name_that_implementations_sort_apart_is_not_published(name: str) -> None:
    with pytest.raises(SessionMalformed):
        build(extra={name: "x"})


def test_content_type_that_would_break_the_data_uri_is_not_published() -> None:
    with pytest.raises(SessionMalformed):
        build(content_type="text/plain;charset=utf-8")


def build(**changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "upstream_name": "a",
        "endpoint": None,
        "verifier_id": "teemesh/1",
        "established_at": NOW,
        "expires_at": NOW + 1,
        "bindings": (),
        "claims": Claims(),
        "evidence": b"",
    }
    return session_document(**(arguments | changes))
