"""The receipt's document and its signature (sections 7.2 and 7.3)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.mesh.aci import reader
from tests.mesh.aci.exchanges import ALL, REFUSED, STREAMS, Exchange, Exchanges
from tests.mesh.aci.reports import Challenge
from tests.mesh.aci.stage import Stage

pytestmark = pytest.mark.mesh

CLOCK_SECONDS = 30


@pytest.fixture(params=ALL)
def known(request: pytest.FixtureRequest, exchanges: Exchanges) -> Exchange:
    """An exchange of each kind."""
    return exchanges[request.param]


def test_c118_the_version_is_aci_1(known: Exchange) -> None:
    assert known.receipt["api_version"] == "aci/1"
    assert set(known.receipt) == reader.RECEIPT_MEMBERS


def test_c119_the_id_is_the_headers(known: Exchange) -> None:
    assert known.receipt["receipt_id"] == known.answer.receipt_id


def id_of(known: Exchange) -> str | None:
    """The answer's own id, where it has one."""
    body = known.answer.body
    if known.answer.header("Content-Type").startswith("text/event-stream"):
        first = body.partition(b"\n\n")[0]
        (body,) = (line.removeprefix(b"data: ") for line in first.split(b"\n") if line.startswith(b"data: "))
    members = json.loads(body)
    # The first event of a stream of messages or responses holds what begins.
    found = members.get("message", members.get("response", members)).get("id")
    return None if found is None else str(found)


def test_c120_the_chat_id_is_the_answers_or_null(known: Exchange) -> None:
    assert known.receipt["chat_id"] == id_of(known)


def test_c121_the_model_is_the_one_asked_for_or_null(known: Exchange) -> None:
    try:
        asked = json.loads(known.request)["model"]
    except ValueError:
        asked = None
    assert known.receipt["model"] == asked


def test_c122_the_digest_is_that_of_the_established_keyset(known: Exchange, challenged: Challenge) -> None:
    assert known.receipt["workload_keyset_digest"] == reader.digest(reader.canonical(challenged.keyset))


def test_c123_endpoint_and_method_are_those_used(known: Exchange) -> None:
    assert (known.receipt["endpoint"], known.receipt["method"]) == (known.endpoint, "POST")


def test_c124_the_time_is_in_seconds_and_near_ours(known: Exchange) -> None:
    assert reader.is_integer(known.receipt["served_at"])
    assert abs(known.receipt["served_at"] - known.ended_at) < CLOCK_SECONDS


def test_c125_the_key_is_one_of_the_keysets(known: Exchange, keyset: dict[str, Any]) -> None:
    names = [key["key_id"] for key in keyset["receipt_signing_keys"]]
    assert names.count(known.receipt["key_id"]) == 1
    assert reader.signature_holds(known.receipt, keyset)


def test_c126_the_signature_is_bare_hex_over_the_canonical_document(known: Exchange, keyset: dict[str, Any]) -> None:
    assert reader.is_hex(known.receipt["signature"], 64)
    unsigned = {name: value for name, value in known.receipt.items() if name != "signature"}
    text = json.dumps(unsigned, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    key = reader.receipt_key(keyset, known.receipt["key_id"])
    key.verify(bytes.fromhex(known.receipt["signature"]), text.encode())


def test_c127_another_encoding_of_the_same_document_verifies(known: Exchange, keyset: dict[str, Any]) -> None:
    turned = dict(reversed(known.receipt.items()))
    again = reader.parse(json.dumps(turned, indent=3, ensure_ascii=True).encode())
    assert reader.signature_holds(again, keyset)


def other_than(value: Any) -> Any:
    """A value of the same kind."""
    if isinstance(value, list):
        return [*value, {"type": "added"}]
    return value + 1 if isinstance(value, int) else f"{value}x"


@pytest.mark.parametrize("member", sorted(reader.RECEIPT_MEMBERS - {"signature", "key_id"}))
def test_c127_no_other_document_verifies(exchanges: Exchanges, keyset: dict[str, Any], member: str) -> None:
    receipt = exchanges["chat"].receipt
    changed = other_than(receipt[member])
    assert not reader.signature_holds(receipt | {member: changed}, keyset)
    assert not reader.signature_holds({name: receipt[name] for name in receipt if name != member}, keyset)


def test_c128_the_first_event_is_what_was_received(known: Exchange) -> None:
    assert known.receipt["event_log"][0]["type"] == "request.received"


def test_c129_events_are_flat(known: Exchange) -> None:
    for event in known.receipt["event_log"]:
        assert isinstance(event["type"], str)
        assert not any(isinstance(value, dict | list) for value in event.values())


def test_c130_events_of_our_own_have_names_of_their_own(known: Exchange) -> None:
    required = {"request.received", "request.forwarded", "upstream.verified", "response.returned"}
    others = {event["type"] for event in known.receipt["event_log"]} - required
    assert all(not kind.startswith(("request.", "response.", "upstream.")) for kind in others)


def test_c131_each_required_event_comes_as_often_as_it_may(known: Exchange) -> None:
    kinds = [event["type"] for event in known.receipt["event_log"]]
    assert kinds.count("request.received") == kinds.count("response.returned") == 1
    assert kinds.count("request.forwarded") <= 1


@pytest.mark.parametrize("kind", ["chat", "completion", "pinned"])
def test_c132_the_cited_session_was_valid_then(stage: Stage, exchanges: Exchanges, kind: str) -> None:
    receipt = exchanges[kind].receipt
    fetched = stage.router.get(f"/v1/aci/sessions/{reader.outcome(receipt)['session_id']}")
    session = reader.parse(fetched.body)
    assert session["established_at"] <= receipt["served_at"] < session["expires_at"]


@pytest.mark.parametrize("kind", [*STREAMS, *REFUSED])
def test_c126_a_signature_fits_its_own_receipt_alone(exchanges: Exchanges, keyset: dict[str, Any], kind: str) -> None:
    another = exchanges["chat"].receipt["signature"]
    assert not reader.signature_holds(exchanges[kind].receipt | {"signature": another}, keyset)
