"""Every place of content is visited under its own path, and nothing else is."""

from __future__ import annotations

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
    walk(members, visit)
    return found, dumps(members).decode()


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
        '"data":"c"}},"delta":null},{"delta":{"content":"","reasoning_content":"d","audio":{"data":"e"}}},'
        '{"text":"f","message":{"content":null}}],"data":[{"index":0,"embedding":[1.50,2]}],"usage":{"n":1}}',
    )
    assert found == {
        "choices.3.message.content": "a",
        "choices.3.message.reasoning": "b",
        "choices.3.message.audio.data": "c",
        "choices.1.delta.content": "",
        "choices.1.delta.reasoning_content": "d",
        "choices.1.delta.audio.data": "e",
        "choices.2.text": "f",
        "data.0.embedding": ["1.50", "2"],
    }
    assert '"embedding":"-"' in left
    assert left.count("-") == 8


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
