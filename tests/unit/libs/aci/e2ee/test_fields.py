"""Every place of content is visited under its own path, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from libs.aci.e2ee.fields import AnswerNotUnderstood, Visit, visit_answer, visit_request
from libs.aci.rewriting import dumps, loads


def visited(walk: Any, text: str) -> tuple[dict[str, Any], str]:
    """What was found where, and what is left once each is put out."""
    found: dict[str, Any] = {}

    def visit(path: str, value: Any) -> str:
        assert path not in found
        found[path] = value
        return "-"

    members = loads(text.encode())
    left = walk(members, visit)
    return found, dumps(members if left is None else left).decode()


def test_the_places_of_a_request() -> None:
    found, left = visited(
        visit_request,
        '{"model":"m","messages":[{"role":"system","content":"a"},{"role":"user","content":[{"type":"text","text":"b"},'
        '{"type":"image_url","image_url":{"url":"c","detail":"low"}},{"input_audio":{"data":"d"}},7,{"text":8}]},'
        '9,{"content":null},{"content":10}],"prompt":"e","input":["f",[1,2],3,"g"]}',
    )
    assert found == {
        "messages.0.content": "a",
        "messages.1.content.0.text": "b",
        "messages.1.content.1.image_url.url": "c",
        "messages.1.content.2.input_audio.data": "d",
        "prompt": "e",
        "input.0": "f",
        "input.3": "g",
    }
    assert left == (
        '{"model":"m","messages":[{"role":"system","content":"-"},{"role":"user","content":[{"type":"text","text":"-"},'
        '{"type":"image_url","image_url":{"url":"-","detail":"low"}},{"input_audio":{"data":"-"}},7,{"text":8}]},'
        '9,{"content":null},{"content":10}],"prompt":"-","input":["-",[1,2],3,"-"]}'
    )


def test_the_places_of_an_answer() -> None:
    found, left = visited(
        visit_answer,
        '{"id":"x","choices":[{"index":3,"message":{"role":"assistant","content":"a","reasoning":"b","audio":{"id":"i",'
        '"data":"c","transcript":"d"}},"delta":null},{"delta":{"content":"","reasoning_content":"e"},'
        '"finish_reason":"stop"},{"text":"f","message":{"content":null}}],'
        '"data":[{"index":0,"embedding":[1.50,2]}],"usage":{"n":1}}',
    )
    assert found == {
        "choices.3.message.content": "a",
        "choices.3.message.reasoning": "b",
        "choices.3.message.audio.data": "c",
        "choices.3.message.audio.transcript": "d",
        "choices.1.delta.content": "",
        "choices.1.delta.reasoning_content": "e",
        "choices.2.text": "f",
        "data.0.embedding": ["1.50", "2"],
    }
    assert loads(left.encode()) == loads(
        b'{"id":"x","choices":[{"index":3,"message":{"role":"assistant","content":"-","reasoning":"-","audio":{"id":'
        b'"i","data":"-","transcript":"-"}},"delta":null},{"delta":{"content":"-","reasoning_content":"-"},'
        b'"finish_reason":"stop"},{"text":"-","message":{"content":null}}],'
        b'"data":[{"index":0,"embedding":"-"}],"usage":{"n":1}}'
    )


@pytest.mark.parametrize(
    "said",
    [
        {"prompt_logprobs": ["said"]},
        {"prompt_token_ids": [1]},
        {"message": "said", "object": "error"},
        {"content": "said"},
        {"choices": [{"logprobs": {"content": ["said"]}}]},
        {"choices": [{"stop_reason": "said", "error": "said"}]},
        {"choices": [{"message": {"tool_calls": ["said"], "function_call": "said", "refusal": "said"}}]},
        {"choices": [{"delta": {"thinking": "said", "annotations": ["said"], "reasoning_details": ["said"]}}]},
        {"choices": [{"message": {"audio": {"format": "said"}}}]},
        {"data": [{"said": "said"}]},
    ],
)
def test_whatever_else_an_engine_says_is_left_out(said: dict[str, Any]) -> None:
    found, left = visited(visit_answer, json.dumps(said))
    assert not found
    assert "said" not in left
    assert "[1]" not in left


@pytest.mark.parametrize("content", ['["said"]', '{"text":"said"}', "17", "true"])
def test_content_in_another_form_is_content(content: str) -> None:
    found, left = visited(visit_answer, f'{{"choices":[{{"message":{{"content":{content}}}}}]}}')
    assert list(found) == ["choices.0.message.content"]
    assert left == '{"choices":[{"message":{"content":"-"}}]}'


@pytest.mark.parametrize(
    "text",
    [
        '{"choices":{"message":{"content":"said"}}}',
        '{"choices":["said"]}',
        '{"choices":[{"message":"said"}]}',
        '{"choices":[{"delta":["said"]}]}',
        '{"choices":[{"message":{"audio":"said"}}]}',
        '{"choices":true}',
        '{"data":"said"}',
        '{"data":[[1,2]]}',
    ],
)
def test_an_answer_in_another_shape_is_not_passed_over(text: str) -> None:
    keep: Visit = lambda path, value: value  # noqa: E731  # A lambda shows that it does nothing.
    with pytest.raises(AnswerNotUnderstood):
        visit_answer(loads(text.encode()), keep)
