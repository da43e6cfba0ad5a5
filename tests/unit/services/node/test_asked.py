"""What a receipt says of the settings that a body asked for: all of them, and never a client's text."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from libs.aci import endpoints, rewriting
from libs.aci.encoding import digest
from libs.aci.endpoints import Endpoint
from services.node.asked import sampling_of
from services.node.members import BESIDE_SAMPLING, KNOWN, MOST, SAMPLING
from services.node.refused import BodyRefused


def sampling(members: str) -> dict[str, Any]:
    """What is said of a body with these members, as JSON between the braces."""
    found: dict[str, Any] = json.loads(sampling_of(rewriting.loads(f'{{"model":"m",{members}}}'.encode())))
    return found


def test_a_number_true_false_and_null_are_as_they_were_written() -> None:
    said = sampling('"temperature":0.70,"seed":42,"top_k":-1,"ignore_eos":true,"parallel_tool_calls":false,"n":null')
    assert said == {
        "temperature": "0.70",
        "seed": "42",
        "top_k": "-1",
        "ignore_eos": "true",
        "parallel_tool_calls": "false",
        "n": "null",
    }


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("stop", '"a secret"'),
        ("stop", '["a secret","another"]'),
        ("logit_bias", '{"50256":-100,"7":1.50}'),
        ("response_format", '{"type":"json_schema","json_schema":{"name":"s","schema":{"a":1e5}}}'),
        ("tool_choice", '"auto"'),
        ("tools", '[{"type":"function","function":{"name":"secret"}}]'),
        ("temperature", '"0.5"'),
        ("stop", '"\\u00e9"'),
    ],
)
def test_all_else_is_the_digest_of_its_compact_json(name: str, written: str) -> None:
    compact = written.replace("\\u00e9", "\u00e9").encode()
    assert sampling(f'"{name}": {written.replace(":", " : ")}') == {name: digest(compact)}


def test_a_number_that_could_hold_a_text_is_a_digest() -> None:
    long = "1" * 33
    assert sampling(f'"seed":{long}') == {"seed": digest(long.encode())}
    assert sampling(f'"seed":{long[1:]}') == {"seed": long[1:]}


@pytest.mark.parametrize("endpoint", endpoints.DEFINED, ids=lambda endpoint: endpoint.path)
def test_every_setting_of_every_endpoint_is_said_and_nothing_else(endpoint: Endpoint) -> None:
    members = {name: 1 if name in MOST else ["a secret"] for name in KNOWN[endpoint] - {"model"}}
    body = json.dumps({"model": "m", **members}).encode()
    said = sampling_of(rewriting.loads(body))
    assert json.loads(said).keys() == KNOWN[endpoint] & SAMPLING
    assert not json.loads(said).keys() & BESIDE_SAMPLING
    assert "secret" not in said


def test_a_setting_that_was_read_and_is_too_deep_to_be_written_is_refused() -> None:
    """Which depth that is differs by the version of Python: some read more than they write."""
    tools: list[Any] = []
    for _ in range(sys.getrecursionlimit()):
        tools = [tools]
    with pytest.raises(BodyRefused) as refused:
        sampling_of({"tools": tools})
    assert (refused.value.reason, refused.value.status) == ("BODY_REFUSED", 400)
