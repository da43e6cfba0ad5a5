"""E2EE v2: which fields are encrypted, and what each is bound to (e2ee-v2 sections 5 and 6)."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from typing import Any

import pytest

from tests.mesh.aci.exchanges import MARKER
from tests.mesh.aci.provider import EVENTS, Provider
from tests.mesh.aci.sealed_prompts import (
    RESPONSE_ID,
    answers_with,
    ask,
    chat,
    chunks,
    compact,
    message,
    require_sealed,
    sealed_chat,
    streams,
)
from tests.mesh.aci.sealing import Envelope, response_aad, seal
from tests.mesh.aci.stage import Stage
from tests.mesh.aci.wire import COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES

pytestmark = pytest.mark.mesh

DECRYPTION_FAILED = (400, "e2ee_decryption_failed")


def restored(provider: Provider) -> dict[str, Any]:
    """The one body that the provider was handed."""
    (body,) = provider.bodies
    members: dict[str, Any] = json.loads(body)
    return members


def content(provider: Provider) -> Any:
    return restored(provider)["messages"][0]["content"]


def test_c205_a_whole_content_is_a_text_again(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    require_sealed(ask(stage, envelope, sealed_chat(envelope)), MARKER)
    assert content(provider) == MARKER


def test_c206_a_whole_content_that_is_a_list_is_one_again(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    parts = [{"type": "text", "text": MARKER}, {"type": "video_url", "video_url": {"url": "https://a.example/b"}}]
    require_sealed(ask(stage, envelope, sealed_chat(envelope, compact(parts).decode())))
    assert content(provider) == parts


@pytest.mark.parametrize("text", ['{"a":1}', "17", "null", '"quoted"', "[not json"])
def test_c207_any_other_content_stays_a_text(stage: Stage, provider: Provider, envelope: Envelope, text: str) -> None:
    require_sealed(ask(stage, envelope, sealed_chat(envelope, text)))
    assert content(provider) == text


@pytest.mark.parametrize(
    ("path", "part", "kind"),
    [
        pytest.param("text", {"text": None}, "text", id="c208 text"),
        pytest.param("image_url.url", {"image_url": {"url": None, "detail": "low"}}, "image_url", id="c209 image"),
        pytest.param(
            "input_audio.data", {"input_audio": {"data": None, "format": "wav"}}, "input_audio", id="c210 audio"
        ),
    ],
)
def test_c208_to_c210_a_part_is_restored_in_its_place(
    stage: Stage, provider: Provider, envelope: Envelope, path: str, part: dict[str, Any], kind: str
) -> None:
    def filled(value: str) -> dict[str, Any]:
        text = json.dumps({"type": kind, **part})
        made: dict[str, Any] = json.loads(text.replace("null", json.dumps(value)))
        return made

    parts = [{"type": "text", "text": "in clear"}, filled(envelope.seal(f"messages.0.content.1.{path}", MARKER))]
    require_sealed(ask(stage, envelope, chat(envelope, parts)))
    assert content(provider) == [parts[0], filled(MARKER)]


def test_c211_prompts_are_restored(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    prompts = [envelope.seal("prompt.0", "first"), envelope.seal("prompt.1", "second")]
    body = {"model": envelope.model, "prompt": prompts}
    require_sealed(ask(stage, envelope, body, endpoint=COMPLETIONS))
    assert restored(provider)["prompt"] == ["first", "second"]


def test_c212_inputs_are_restored_and_tokens_pass(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    provider.answers(b'{"object":"list","data":[{"index":0,"embedding":[1]}]}')
    body = {"model": envelope.model, "input": [envelope.seal("input.0", MARKER), [1, 2, 3]]}
    require_sealed(ask(stage, envelope, body, endpoint=EMBEDDINGS))
    assert restored(provider)["input"] == [MARKER, [1, 2, 3]]


@pytest.mark.parametrize("body", [{"messages": []}, {"messages": [{"role": "user", "content": None}]}], ids=repr)
def test_c213_a_request_without_an_encrypted_field_is_refused(
    stage: Stage, provider: Provider, envelope: Envelope, body: dict[str, Any]
) -> None:
    assert ask(stage, envelope, {"model": envelope.model, **body}).refusal == DECRYPTION_FAILED
    assert not provider.bodies


@pytest.mark.parametrize("name", ["content", "reasoning", "reasoning_content"])
def test_c214_c215_a_message_is_sealed(stage: Stage, provider: Provider, envelope: Envelope, name: str) -> None:
    answers_with(provider, message("other", more={name: "said"}))
    answer = ask(stage, envelope, sealed_chat(envelope))
    require_sealed(answer, "said")
    value = answer.json["choices"][0]["message"][name]
    assert envelope.unseal(f"choices.0.message.{name}", value, RESPONSE_ID) == "said"


def test_c216_audio_is_sealed(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    answers_with(provider, message("a", more={"audio": {"id": "audio-1", "data": "c291bmQ="}}))
    answer = ask(stage, envelope, sealed_chat(envelope))
    require_sealed(answer, "c291bmQ=")
    value = answer.json["choices"][0]["message"]["audio"]["data"]
    assert envelope.unseal("choices.0.message.audio.data", value, RESPONSE_ID) == "c291bmQ="


@pytest.mark.parametrize("name", ["content", "reasoning", "reasoning_content"])
def test_c217_c218_every_delta_is_sealed(stage: Stage, provider: Provider, envelope: Envelope, name: str) -> None:
    said = ["first-part", "second-part"]
    streams(provider, *({"index": 0, "delta": {name: part}, "finish_reason": None} for part in said))
    answer = ask(stage, envelope, sealed_chat(envelope, stream=True))
    require_sealed(answer, *said)
    values = [chunk["choices"][0]["delta"][name] for chunk in chunks(answer)]
    assert [envelope.unseal(f"choices.0.delta.{name}", value, RESPONSE_ID) for value in values] == said


def test_c219_a_completions_text_is_sealed(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    provider.answers(compact({"id": RESPONSE_ID, "choices": [{"index": 0, "text": "said"}]}))
    body = {"model": envelope.model, "prompt": envelope.seal("prompt", MARKER)}
    answer = ask(stage, envelope, body, endpoint=COMPLETIONS)
    require_sealed(answer, "said")
    assert envelope.unseal("choices.0.text", answer.json["choices"][0]["text"], RESPONSE_ID) == "said"


def test_c220_an_embedding_is_sealed_as_compact_json(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    provider.answers(b'{"object":"list","data":[{"index":0,"embedding":[1, 2]}]}')
    body = {"model": envelope.model, "input": envelope.seal("input", MARKER)}
    answer = ask(stage, envelope, body, endpoint=EMBEDDINGS)
    require_sealed(answer)
    assert envelope.unseal("data.0.embedding", answer.json["data"][0]["embedding"], "") == "[1,2]"


def test_c221_the_index_is_the_entrys_own(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    answers_with(provider, message("second", 1), message("first", 0))
    answer = ask(stage, envelope, sealed_chat(envelope, n=2))
    require_sealed(answer)
    for choice, said in zip(answer.json["choices"], ("second", "first"), strict=True):
        path = f"choices.{choice['index']}.message.content"
        assert envelope.unseal(path, choice["message"]["content"], RESPONSE_ID) == said


@pytest.mark.parametrize("endpoint", [MESSAGES, RESPONSES])
def test_c222_an_endpoint_of_other_fields_refuses_before_it_reads(
    stage: Stage, envelope: Envelope, endpoint: str
) -> None:
    answer = ask(stage, envelope, b"{not json", endpoint=endpoint)
    assert answer.refusal == (400, "e2ee_unsupported_endpoint")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("text/plain", b"secret words"), ("application/json", b'"secret words"'), (EVENTS, b"data: secret words\n\n")],
)
def test_c223_what_cannot_be_sealed_does_not_go_out(
    stage: Stage, provider: Provider, envelope: Envelope, content_type: str, body: bytes
) -> None:
    provider.answers(body, content_type=content_type)
    answer = ask(stage, envelope, sealed_chat(envelope, stream=True))
    assert provider.bodies
    assert b"secret words" not in answer.body


@pytest.mark.parametrize(
    ("path", "changed"),
    [
        ("messages.1.content", {}),
        ("messages.0.content.0.text", {}),
        ("messages.0.content", {"model": "another-model"}),
        ("messages.0.content", {"nonce": "ab" * 32}),
        ("messages.0.content", {"timestamp": 1}),
    ],
    ids=["c224 another message", "c225 a part", "c226 another model", "c227 another nonce", "c228 another time"],
)
def test_c224_to_c228_a_field_belongs_to_its_place_and_request(
    stage: Stage, provider: Provider, envelope: Envelope, path: str, changed: dict[str, Any]
) -> None:
    value = replace(envelope, **changed).seal(path, MARKER)
    assert ask(stage, envelope, chat(envelope, value)).refusal == DECRYPTION_FAILED
    assert not provider.bodies


def test_c229_a_response_is_no_request(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    path = "messages.0.content"
    aad = response_aad(envelope.suite.algo, envelope.model, path, envelope.nonce, envelope.timestamp, "")
    value = seal(envelope.suite, envelope.suite.raw(envelope.service_key), b"a", aad)
    assert ask(stage, envelope, chat(envelope, value)).refusal == DECRYPTION_FAILED


def test_c230_the_nonce_is_bound_as_it_was_sent(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    answers_with(provider, message("said"))
    upper = replace(envelope, nonce="AB" * 16 + envelope.nonce[:32])
    answer = ask(stage, upper, sealed_chat(upper))
    require_sealed(answer, "said")
    value = answer.json["choices"][0]["message"]["content"]
    assert upper.unseal("choices.0.message.content", value, RESPONSE_ID) == "said"


def test_c231_the_model_is_bound_byte_for_byte(stage: Stage, envelope: Envelope) -> None:
    composed, decomposed = (unicodedata.normalize(form, "mod\u00e8le") for form in ("NFC", "NFD"))
    sealed = replace(envelope, model=composed).seal("messages.0.content", MARKER)
    other = replace(envelope, model=decomposed)
    assert ask(stage, envelope, chat(other, sealed)).refusal == DECRYPTION_FAILED


@pytest.mark.parametrize("model", [{}, {"model": 7}, {"model": None}, {"model": ["a"]}], ids=repr)
def test_c232_without_a_model_nothing_can_be_bound(stage: Stage, envelope: Envelope, model: dict[str, Any]) -> None:
    body = {"messages": sealed_chat(envelope)["messages"], **model}
    assert ask(stage, envelope, body).refusal == (400, "e2ee_invalid_payload_model")


@pytest.mark.parametrize("response_id", [RESPONSE_ID, None])
def test_c233_an_answer_is_bound_to_its_own_id(
    stage: Stage, provider: Provider, envelope: Envelope, response_id: str | None
) -> None:
    answers_with(provider, message("said"), response_id=response_id)
    answer = ask(stage, envelope, sealed_chat(envelope))
    require_sealed(answer, "said")
    value = answer.json["choices"][0]["message"]["content"]
    assert envelope.unseal("choices.0.message.content", value, response_id or "") == "said"
