from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from libs import jcs
from libs.aci import receipt as receipts
from libs.aci.encoding import digest
from libs.aci.keyset import ReceiptKeyUnknown
from libs.aci.receipt import (
    ReceiptOfOtherKeyset,
    ReceiptSignatureInvalid,
    RequestNotReceipted,
    ResponseNotReceipted,
    ServedOutsideSession,
    ServingNotVerified,
    SessionNotCited,
)
from libs.aci.receipt_events import (
    Aborted,
    Event,
    Generated,
    ReceiptMalformed,
    RequestForwarded,
    RequestReceived,
    ResponseReturned,
    ServedByNode,
    UnknownEvent,
    UpstreamFailed,
    UpstreamVerified,
)
from libs.aci.session import verify_session
from tests.unit.libs.aci.documents import (
    NOW,
    OTHER_KEY,
    RECEIPT_KEY,
    REQUEST,
    RESPONSE,
    SESSION,
    SESSION_ID,
    full_events,
    keyset,
    receipt,
)

RECEIVED, RETURNED = RequestReceived(digest(REQUEST)), ResponseReturned(digest(RESPONSE))


def signed(**changes: Any) -> bytes:
    return receipts.sign(dataclasses.replace(receipt(), **changes), RECEIPT_KEY)


def test_signed_receipt_verifies_and_reads_back() -> None:
    assert receipts.verify_receipt(signed(), keyset()) == receipt()


def test_any_encoding_and_unknown_events_verify() -> None:
    value = json.loads(signed())
    del value["signature"]
    value["event_log"].insert(1, {"type": "route.selected", "name": "a"})
    body = jcs.dumps(value)
    value["signature"] = RECEIPT_KEY.sign(body).hex()
    read = receipts.verify_receipt(json.dumps(value, indent=2).encode(), keyset())
    assert read.events[1] == UnknownEvent("route.selected", {"type": "route.selected", "name": "a"})


def test_events_are_flat_objects_under_their_own_names() -> None:
    log = json.loads(signed())["event_log"]
    assert log[2] == {
        "type": "upstream.verified",
        "result": "verified",
        "required": True,
        "model_id": "m",
        "session_id": SESSION_ID,
    }
    assert log[3] == {"type": "teemesh.policy", "version": 3, "digest": digest(b"policy")}
    assert log[4].keys() == {
        "type",
        "spiffe_id",
        "evidence_digest",
        "receipt_sha256",
        "weights_sha256",
        "engine",
        "engine_args_sha256",
        "receipt",
    }
    assert log[5] == {"type": "teemesh.key_epoch", "vault_epoch": 670}
    assert log[6]["type"] == "teemesh.e2ee"
    assert log[7] == {"type": "teemesh.usage", "key": "laptop", "completion_tokens": 5}
    assert log[8] == {"type": "teemesh.abort", "reason": "upstream_failed", "detail": "the node broke off"}


def test_receipts_of_earlier_versions_say_less_of_a_node_and_verify() -> None:
    node = ServedByNode("spiffe://mesh.test/node/a", digest(b"evidence"), "01" * 32, "02" * 32, "embedded/1")
    document = signed(events=(RECEIVED, node, Aborted("client_disconnected"), RETURNED))
    assert json.loads(document)["event_log"][1].keys() == {
        "type",
        "spiffe_id",
        "evidence_digest",
        "receipt_sha256",
        "weights_sha256",
        "engine",
    }
    assert receipts.verify_receipt(document, keyset()).events[1:3] == (node, Aborted("client_disconnected"))


def test_a_nodes_receipt_says_all_that_its_answer_rested_on() -> None:
    said = {
        "engine": "vllm 1.0",
        "engine_args_sha256": "03" * 32,
        "weights_sha256": "02" * 32,
        "sampling": '{"seed":"7"}',
        "cache_salt_sha256": "04" * 32,
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "cache_salt_key_epoch": 2,
        "weights_key": "weights/m",
        "weights_key_epoch": 1,
        "gpus": '["4781"]',
    }
    generated = Generated(**said)  # type: ignore[arg-type]
    document = signed(events=(RECEIVED, generated, RETURNED))
    assert json.loads(document)["event_log"][1] == {"type": "teemesh.generation", **said}
    assert receipts.verify_receipt(document, keyset()).events[1] == generated


def test_a_nodes_receipt_of_an_earlier_version_names_no_keys_and_no_gpus() -> None:
    earlier = Generated("embedded/1", "03" * 32, "02" * 32, '{"temperature":"0.7"}', "04" * 32, 3, 5)
    document = signed(events=(RECEIVED, earlier, RETURNED))
    assert json.loads(document)["event_log"][1].keys() == {
        "type",
        "engine",
        "engine_args_sha256",
        "weights_sha256",
        "sampling",
        "cache_salt_sha256",
        "prompt_tokens",
        "completion_tokens",
    }
    assert receipts.verify_receipt(document, keyset()).events[1] == earlier


def test_refusal_receipt_has_a_failed_upstream_and_nothing_forwarded() -> None:
    refusal = UpstreamFailed(required=True, model_id="m", reason="no_verified_node")
    read = receipts.verify_receipt(signed(events=(RECEIVED, refusal, RETURNED), chat_id=None), keyset())
    assert read.forwarded is None
    assert read.upstream == refusal
    assert json.loads(signed(events=(RECEIVED, refusal, RETURNED)))["event_log"][1] == {
        "type": "upstream.verified",
        "result": "failed",
        "required": True,
        "model_id": "m",
        "reason": "no_verified_node",
    }


@pytest.mark.parametrize(
    "events",
    [
        (),
        (RETURNED,),
        (RETURNED, RECEIVED),
        (RECEIVED,),
        (RECEIVED, RECEIVED, RETURNED),
        (RECEIVED, RETURNED, RETURNED),
        (RECEIVED, RequestForwarded(digest(b"a")), RequestForwarded(digest(b"b")), RETURNED),
        (RECEIVED, UnknownEvent("other", {"type": "other"}), RETURNED),
        (RequestReceived("sha256:00"), RETURNED),
        (RECEIVED, UpstreamVerified(required=True, model_id="m", session_id="AB" * 32), RETURNED),
        (RECEIVED, Aborted(""), RETURNED),
        (RECEIVED, Aborted("x", ""), RETURNED),
        (RECEIVED, ServedByNode("s", digest(b"e"), "01" * 32, "02" * 32, "e", engine_args_sha256="AB"), RETURNED),
        (RECEIVED, Generated("e", "03" * 32, "02" * 32, "{}", cache_salt_key_epoch=-1), RETURNED),
        (RECEIVED, Generated("e", "03" * 32, "02" * 32, "{}", weights_key="", weights_key_epoch=1), RETURNED),
        (RECEIVED, Generated("e", "03" * 32, "02" * 32, "{}", gpus=""), RETURNED),
    ],
)
def test_events_that_would_not_verify_are_not_signed(events: tuple[Event, ...]) -> None:
    with pytest.raises(ReceiptMalformed):
        signed(events=events)


@pytest.mark.parametrize(
    "member",
    ["receipt_id", "chat_id", "model", "endpoint", "method", "served_at", "event_log", "workload_keyset_digest"],
)
def test_missing_member_is_refused(member: str) -> None:
    value = json.loads(signed())
    del value[member]
    with pytest.raises(ReceiptMalformed):
        receipts.parse(json.dumps(value).encode())


def test_changed_document_is_refused() -> None:
    value = json.loads(signed()) | {"model": "other"}
    with pytest.raises(ReceiptSignatureInvalid):
        receipts.verify_receipt(json.dumps(value).encode(), keyset())


def test_added_member_is_refused() -> None:
    value = json.loads(signed()) | {"note": "x"}
    with pytest.raises(ReceiptSignatureInvalid):
        receipts.verify_receipt(json.dumps(value).encode(), keyset())


def test_signature_of_another_key_is_refused() -> None:
    with pytest.raises(ReceiptSignatureInvalid):
        receipts.verify_receipt(receipts.sign(receipt(), OTHER_KEY), keyset())


def test_key_id_outside_the_keyset_is_refused() -> None:
    with pytest.raises(ReceiptKeyUnknown):
        receipts.verify_receipt(signed(key_id="receipt-2"), keyset())


def test_receipt_of_another_keyset_is_refused() -> None:
    with pytest.raises(ReceiptOfOtherKeyset):
        receipts.verify_receipt(signed(), keyset(not_after=NOW + 7))


def test_receipt_is_for_exactly_the_bytes_sent_and_received() -> None:
    receipts.verify_exchange(receipt(), request_body=REQUEST, response_hash=digest(RESPONSE))
    with pytest.raises(RequestNotReceipted):
        receipts.verify_exchange(receipt(), request_body=REQUEST + b" ", response_hash=digest(RESPONSE))
    with pytest.raises(ResponseNotReceipted):
        receipts.verify_exchange(receipt(), request_body=REQUEST, response_hash=digest(RESPONSE + b"\n"))


def test_serving_is_verified_by_the_cited_session() -> None:
    session = verify_session(SESSION, SESSION_ID)
    assert receipts.verify_serving(receipt(), session, pinned={SESSION_ID}).session_id == SESSION_ID


@pytest.mark.parametrize(
    "outcome",
    [
        None,
        UpstreamFailed(required=False, model_id="m", reason="no_session"),
        UpstreamVerified(required=False, model_id="m", session_id=SESSION_ID),
    ],
)
def test_serving_that_was_not_required_to_be_verified_is_refused(outcome: Event | None) -> None:
    events = tuple(event for event in (RECEIVED, outcome, RETURNED) if event is not None)
    with pytest.raises(ServingNotVerified):
        receipts.verify_serving(receipt(events=events), verify_session(SESSION, SESSION_ID))


def test_serving_that_nobody_demanded_to_be_verified_may_say_so_but_not_that_it_failed() -> None:
    session = verify_session(SESSION, SESSION_ID)
    outcome = UpstreamVerified(required=False, model_id="m", session_id=SESSION_ID)
    best_effort = receipt(events=(RECEIVED, outcome, RETURNED))
    assert receipts.verify_serving(best_effort, session, demanded=False) == outcome
    failed = receipt(events=(RECEIVED, UpstreamFailed(False, "m", "never_verified"), RETURNED))
    for unverified in (failed, receipt(events=(RECEIVED, RETURNED))):
        with pytest.raises(ServingNotVerified):
            receipts.verify_serving(unverified, session, demanded=False)


def test_other_session_than_the_cited_or_pinned_one_is_refused() -> None:
    session = verify_session(SESSION, SESSION_ID)
    with pytest.raises(SessionNotCited):
        receipts.verify_serving(receipt(), dataclasses.replace(session, session_id="00" * 32))
    with pytest.raises(SessionNotCited):
        receipts.verify_serving(receipt(), session, pinned={"00" * 32})


@pytest.mark.parametrize("served_at", [NOW - 11, NOW + 3601])
def test_response_served_outside_the_session_is_refused(served_at: int) -> None:
    with pytest.raises(ServedOutsideSession):
        receipts.verify_serving(receipt(served_at=served_at), verify_session(SESSION, SESSION_ID))


def test_node_receipt_verifies_under_a_key_bound_elsewhere() -> None:
    public_key = RECEIPT_KEY.public_key().public_bytes_raw()
    assert receipts.verify_signed_by(signed(events=full_events()), public_key).receipt_id == receipt().receipt_id
    with pytest.raises(ReceiptSignatureInvalid):
        receipts.verify_signed_by(signed(), OTHER_KEY.public_key().public_bytes_raw())
    with pytest.raises(ReceiptSignatureInvalid):
        receipts.verify_signed_by(signed(), b"short")


def test_receipt_ids_are_fresh_and_shaped_as_clients_know_them() -> None:
    first, second = receipts.fresh_receipt_id(), receipts.fresh_receipt_id()
    assert first != second
    assert first.startswith("rcpt-")
    assert len(first) == 29
