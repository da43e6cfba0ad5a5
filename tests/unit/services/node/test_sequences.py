"""How many sequences a request is: by its prompts and its choices, at each endpoint, and how many it may be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from libs.aci.endpoints import CHAT, COMPLETIONS, DEFINED, EMBEDDINGS, RESPONSES, Endpoint
from services.node.asked import TooMuchAsked, read_body
from services.node.questions import question
from services.node.sequences import MOST_SEQUENCES


def sequences(endpoint: Endpoint, most: int = MOST_SEQUENCES, **members: Any) -> int:
    body = json.dumps(question(endpoint, "m") | members).encode()
    return read_body(body, frozenset({"m"}), endpoint, most_sequences=most).sequences


@pytest.mark.parametrize("endpoint", DEFINED, ids=lambda endpoint: endpoint.path)
def test_a_request_is_one_at_least(endpoint: Endpoint) -> None:
    assert sequences(endpoint) == 1


@pytest.mark.parametrize(
    ("endpoint", "members", "count"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "Hi"}] * 3}, 1),
        (CHAT, {"n": 3}, 3),
        (CHAT, {"n": 0}, 1),
        (CHAT, {"n": None}, 1),
        (CHAT, {"n": True}, 1),
        (COMPLETIONS, {"prompt": "a"}, 1),
        (COMPLETIONS, {"prompt": [1, 2, 3]}, 1),
        (COMPLETIONS, {"prompt": ["a", "b"]}, 2),
        (COMPLETIONS, {"prompt": [[1, 2], [3]]}, 2),
        (COMPLETIONS, {"prompt": ["a", "b", "c"], "n": 2, "best_of": 5}, 15),
        (EMBEDDINGS, {"input": ["a", "b", [1, 2]]}, 3),
        (RESPONSES, {"input": [{}, {}]}, 1),
    ],
)
def test_each_prompt_is_one_as_often_as_choices_are_asked_for(
    endpoint: Endpoint, members: dict[str, Any], count: int
) -> None:
    assert sequences(endpoint, **members) == count
    assert sequences(endpoint, count, **members) == count
    if count > 1:
        with pytest.raises(TooMuchAsked, match=f"may be {count - 1} at most") as refused:
            sequences(endpoint, count - 1, **members)
        assert (refused.value.status, refused.value.type) == (400, "invalid_request_error")


def test_however_many_places_there_are_a_request_has_a_bound() -> None:
    with pytest.raises(TooMuchAsked):
        sequences(COMPLETIONS, prompt=["a"] * 1024, n=128)
    with pytest.raises(TooMuchAsked):
        sequences(EMBEDDINGS, input=["a"] * (MOST_SEQUENCES + 1))
