"""E2EE v2: support, headers and suites (e2ee-v2 sections 2 to 4), and the receipt over it (section 8)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.mesh.aci import reader
from tests.mesh.aci.exchanges import MARKER, REFUSED, SERVED, Exchanges
from tests.mesh.aci.provider import Provider
from tests.mesh.aci.reports import Challenge
from tests.mesh.aci.sealed_prompts import (
    RESPONSE_ID,
    answers_with,
    ask,
    chat,
    chunks,
    compact,
    message,
    receipt_of,
    require_sealed,
    sealed_chat,
    streams,
)
from tests.mesh.aci.sealing import NAMES, NONCE_BYTES, SECP256K1, SUITES, TAG_BYTES, X25519, Envelope, request_aad, seal
from tests.mesh.aci.stage import Stage
from tests.mesh.aci.wire import COMPLETIONS, EMBEDDINGS

pytestmark = pytest.mark.mesh

ANSWER = "the provider's answer"


def test_c182_version_2_is_advertised_with_a_suite(challenged: Challenge) -> None:
    assert challenged.report["service_capabilities"]["supported_e2ee_versions"] == ["2"]
    assert {key["algo"] for key in challenged.keyset["e2ee_public_keys"]} & set(SUITES)


def test_c183_x25519_is_among_the_suites(challenged: Challenge) -> None:
    assert X25519 in {key["algo"] for key in challenged.keyset["e2ee_public_keys"]}


def test_c184_c186_a_chat_is_sealed_both_ways(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    answers_with(provider, message(ANSWER))
    answer = ask(stage, envelope, sealed_chat(envelope))
    require_sealed(answer, ANSWER, MARKER)
    path = "choices.0.message.content"
    assert envelope.unseal(path, answer.json["choices"][0]["message"]["content"], RESPONSE_ID) == ANSWER
    assert json.loads(provider.bodies[0])["messages"][0]["content"] == MARKER


def test_c185_c187_a_streamed_chat_is_sealed_both_ways(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    parts = ["the ", "provider's ", "answer"]
    streams(provider, *({"index": 0, "delta": {"content": part}, "finish_reason": None} for part in parts))
    answer = ask(stage, envelope, sealed_chat(envelope, stream=True))
    require_sealed(answer, *parts)
    found = [
        envelope.unseal("choices.0.delta.content", chunk["choices"][0]["delta"]["content"], RESPONSE_ID)
        for chunk in chunks(answer)
    ]
    assert found == parts


def test_c184_the_meshs_own_node_answers_sealed(stage: Stage, envelope: Envelope) -> None:
    own = Envelope.to({"algo": envelope.suite.algo, "public_key": envelope.service_key}, stage.model)
    answer = ask(stage, own, sealed_chat(own, max_tokens=3))
    require_sealed(answer, MARKER)
    sealed = answer.json["choices"][0]["message"]["content"]
    assert isinstance(own.unseal("choices.0.message.content", sealed, answer.json["id"]), str)


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
def test_c188_completions_are_sealed_both_ways(
    stage: Stage, provider: Provider, envelope: Envelope, stream: bool
) -> None:
    choice = {"index": 0, "text": ANSWER, "finish_reason": "stop"}
    if stream:
        streams(provider, choice, kind="text_completion")
    else:
        provider.answers(compact({"id": RESPONSE_ID, "object": "text_completion", "choices": [choice]}))
    body = {"model": envelope.model, "prompt": envelope.seal("prompt", MARKER), "stream": stream}
    answer = ask(stage, envelope, body, endpoint=COMPLETIONS)
    require_sealed(answer, ANSWER, MARKER)
    (chunk,) = chunks(answer) if stream else [answer.json]
    assert envelope.unseal("choices.0.text", chunk["choices"][0]["text"], RESPONSE_ID) == ANSWER


def test_c189_embeddings_are_sealed_both_ways(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    provider.answers(b'{"object":"list","data":[{"index":0,"object":"embedding","embedding":[0.5,-1.25e-3]}]}')
    body = {"model": envelope.model, "input": envelope.seal("input", MARKER)}
    answer = ask(stage, envelope, body, endpoint=EMBEDDINGS)
    require_sealed(answer, "0.5,-1.25e-3")
    assert json.loads(envelope.unseal("data.0.embedding", answer.json["data"][0]["embedding"], "")) == [0.5, -1.25e-3]


@pytest.mark.parametrize(
    "missing",
    [
        pytest.param(name, id=f"c{number} {NAMES[name]}")
        for number, name in enumerate(("version", "client", "service", "nonce", "timestamp"), 190)
    ],
)
def test_c190_to_c194_every_header_is_needed(
    stage: Stage, provider: Provider, envelope: Envelope, missing: str
) -> None:
    answer = ask(stage, envelope, sealed_chat(envelope), changed={missing: None})
    assert answer.refusal == (400, "e2ee_header_missing")
    assert not provider.bodies


@pytest.mark.parametrize("version", ["1", "3", "02", "2.0", "two"])
def test_c195_another_version_is_refused(stage: Stage, provider: Provider, envelope: Envelope, version: str) -> None:
    answer = ask(stage, envelope, sealed_chat(envelope), changed={"version": version})
    assert answer.refusal == (400, "e2ee_invalid_version")
    assert not provider.bodies


@pytest.mark.parametrize("algo", ["ecdsa", "ed25519", X25519])
def test_c196_an_older_protocol_is_not_mixed_in(
    stage: Stage, provider: Provider, envelope: Envelope, algo: str
) -> None:
    answer = ask(stage, envelope, sealed_chat(envelope), more=[("X-Signing-Algo", algo)])
    assert answer.status == 400
    assert answer.error_type.startswith("e2ee_")
    assert not provider.bodies


def test_c197_the_answer_says_what_was_applied(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    answer = ask(stage, envelope, sealed_chat(envelope))
    assert answer.header("X-E2EE-Applied") == "true"
    assert answer.header("X-E2EE-Version") == "2"
    assert answer.header("X-E2EE-Algo") == envelope.suite.algo


@pytest.mark.parametrize("kind", [*SERVED, *REFUSED])
def test_c198_nothing_is_applied_to_what_came_in_clear(exchanges: Exchanges, kind: str) -> None:
    assert exchanges[kind].answer.all("X-E2EE-Applied") in ([], ["false"])


def test_c198_nothing_is_applied_to_an_error(stage: Stage, envelope: Envelope) -> None:
    answer = ask(stage, envelope, chat(envelope, "00"))
    assert answer.refusal == (400, "e2ee_decryption_failed")
    assert answer.all("X-E2EE-Applied") in ([], ["false"])


def test_c199_no_two_fields_share_a_key_or_a_nonce(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    answers_with(provider, message("a", 0, {"reasoning": "b"}), message("a", 1, {"reasoning": "b"}))
    answer = ask(stage, envelope, sealed_chat(envelope, n=2))
    require_sealed(answer)
    values = [choice["message"][name] for choice in answer.json["choices"] for name in ("content", "reasoning")]
    size = 2 * envelope.suite.key_bytes
    assert len({value[:size] for value in values}) == len(values)
    assert len({value[size : size + 2 * NONCE_BYTES] for value in values}) == len(values)


def test_c200_a_field_is_key_nonce_ciphertext_and_tag(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    answers_with(provider, message(ANSWER))
    answer = ask(stage, envelope, sealed_chat(envelope))
    value = answer.json["choices"][0]["message"]["content"]
    size = envelope.suite.key_bytes + NONCE_BYTES + len(ANSWER) + TAG_BYTES
    assert reader.is_hex(value, size)
    assert envelope.suite.algo == X25519 or value.startswith("04")


@pytest.mark.parametrize("which", ["service", "client"])
def test_c201_c202_a_point_without_its_prefix_is_the_same_key(
    stage: Stage, provider: Provider, secp256k1: Envelope, which: str
) -> None:
    whole = {"service": secp256k1.suite.raw(secp256k1.service_key).hex(), "client": secp256k1.key.public.hex()}
    assert whole[which].startswith("04")
    answers_with(provider, message(ANSWER))
    answer = ask(stage, secp256k1, sealed_chat(secp256k1), changed={which: whole[which][2:]})
    require_sealed(answer, ANSWER)
    sealed = answer.json["choices"][0]["message"]["content"]
    assert secp256k1.unseal("choices.0.message.content", sealed, RESPONSE_ID) == ANSWER


def test_c203_keys_may_have_a_prefix(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    prefixed = {"service": "0x" + envelope.service_key, "client": "0x" + envelope.key.public.hex()}
    require_sealed(ask(stage, envelope, sealed_chat(envelope), changed=prefixed))


def test_c204_a_key_derived_for_the_other_suite_opens_nothing(stage: Stage, envelope: Envelope) -> None:
    (other,) = [suite for suite in SUITES.values() if suite.algo != envelope.suite.algo]
    wrong = type(envelope.suite)(envelope.suite.algo, other.info, envelope.suite.key_bytes)
    path = "messages.0.content"
    aad = request_aad(envelope.suite.algo, envelope.model, path, envelope.nonce, envelope.timestamp)
    value = seal(wrong, wrong.raw(envelope.service_key), b"a", aad)
    assert ask(stage, envelope, chat(envelope, value)).refusal == (400, "e2ee_decryption_failed")


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
def test_c247_to_c249_the_receipt_is_over_the_restored_request_and_the_sealed_answer(
    stage: Stage, provider: Provider, envelope: Envelope, stream: bool
) -> None:
    text = "caf\u00e9 \U0001f600 / \u2028"
    if stream:
        streams(provider, {"index": 0, "delta": {"content": ANSWER}, "finish_reason": "stop"})
    answer = ask(stage, envelope, sealed_chat(envelope, text, stream=stream, temperature=0.5))
    require_sealed(answer, ANSWER)
    receipt = receipt_of(stage, answer)
    restored = compact(chat(envelope, text, stream=stream, temperature=0.5))
    assert receipt["model"] == envelope.model
    assert reader.body_hash(receipt, "request.received") == reader.digest(restored)
    assert reader.body_hash(receipt, "response.returned") == reader.digest(answer.body)


def test_c250_the_receipts_shape_is_that_of_every_other(
    stage: Stage, provider: Provider, envelope: Envelope, keyset: dict[str, Any]
) -> None:
    receipt = receipt_of(stage, ask(stage, envelope, sealed_chat(envelope)))
    assert set(receipt) == reader.RECEIPT_MEMBERS
    assert reader.signature_holds(receipt, keyset)


def test_c253_demands_in_a_sealed_request_count_and_are_not_forwarded(
    stage: Stage, provider: Provider, x25519: Envelope
) -> None:
    refused = ask(stage, x25519, sealed_chat(x25519, provider={"aci_session_ids": ["ab" * 32]}))
    assert refused.refusal == (412, "session_not_accepted")
    assert not provider.bodies
    again = Envelope.to({"algo": X25519, "public_key": x25519.service_key}, x25519.model)
    require_sealed(ask(stage, again, sealed_chat(again, provider={"aci_verified": False})))
    assert "provider" not in json.loads(provider.bodies[0])


def test_the_two_suites_are_the_ones_that_the_document_names() -> None:
    assert set(SUITES) == {X25519, SECP256K1}
