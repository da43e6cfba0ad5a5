from __future__ import annotations

import json
from typing import Any

import pytest

from libs.aci.endpoints import CHAT, COMPLETIONS, COUNT_TOKENS, EMBEDDINGS, RESPONSES, Endpoint
from services.router.errors import InvalidRequest
from services.router.prompt import BoundMalformed, Constraints, Prompt, parse, readdress, strip

ID = "0123456789abcdef" * 4


def body(**members: Any) -> bytes:
    return json.dumps({"model": "m"} | members).encode()


def read(given: bytes) -> Prompt:
    return parse(given, CHAT)


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        (None, Constraints()),
        ({}, Constraints()),
        ({"order": ["x"], "Aci_x": 1}, Constraints()),
        ({"aci_verified": False}, Constraints()),
        ({"aci_verified": True}, Constraints(verified=True)),
        ({"aci_session_ids": [ID, ID]}, Constraints(verified=True, session_ids=frozenset({ID}))),
        ({"aci_verified": True, "aci_session_ids": [ID]}, Constraints(verified=True, session_ids=frozenset({ID}))),
    ],
)
def test_constraints_are_read(provider: object, expected: Constraints) -> None:
    assert read(body(provider=provider)).constraints == expected
    assert read(body()).constraints == Constraints()


@pytest.mark.parametrize(
    ("provider", "named"),
    [
        ("x", "provider must be an object"),
        ([], "provider must be an object"),
        (False, "provider must be an object"),
        (1, "provider must be an object"),
        ({"aci_verified": None}, "aci_verified"),
        ({"aci_verified": 1}, "aci_verified"),
        ({"aci_verified": "true", "aci_session_ids": 1}, "aci_verified must"),
        ({"aci_session_ids": None}, "non-empty array"),
        ({"aci_session_ids": []}, "non-empty array"),
        ({"aci_session_ids": ID}, "non-empty array"),
        ({"aci_session_ids": [ID.upper()]}, "lower-case hex"),
        ({"aci_session_ids": [ID, "sha256:" + ID]}, "lower-case hex"),
        ({"aci_session_ids": [ID + "\n"]}, "lower-case hex"),
        ({"aci_session_ids": [int("1" * 64)]}, "lower-case hex"),
        ({"aci_session_ids": [], "aci_other": 1}, "non-empty array"),
        ({"aci_verified": False, "aci_session_ids": [ID], "aci_other": 1}, "does not define"),
        ({"aci_": True}, "does not define"),
        ({"aci_verified": False, "aci_session_ids": [ID]}, "cannot be combined"),
    ],
)
def test_malformed_constraint_is_a_client_error_judged_in_order(provider: object, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        read(body(provider=provider))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff{}",
        b"\xef\xbb\xbf{}",
        '{"model":"m"}'.encode("utf-16"),
        b'{"model":"m","temperature":NaN}',
        b'{"model":"m","model":"n"}',
        b'{"model":"m","provider":{},"provider":{"aci_verified":true}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_body_that_is_not_one_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="invalid json"):
        read(raw)
    with pytest.raises(InvalidRequest, match="invalid json"):
        strip(raw)


def test_refusal_repeats_nothing_of_the_prompt() -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(b'{"model":"m","messages":"secret words')
    assert b"secret" not in refused.value.body


def test_cache_salt_of_a_client_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="cache_salt"):
        read(body(cache_salt=None))


@pytest.mark.parametrize("model", [None, "", 7, ["m"], "x" * 257, "a\nb", "\ud800"])
def test_model_that_cannot_be_receipted_is_refused(model: object) -> None:
    with pytest.raises(InvalidRequest, match="model must"):
        read(body(model=model))


def test_stream_is_a_flag() -> None:
    assert read(body(stream=True)).stream
    assert not read(body(stream=None)).stream
    assert not read(body()).stream
    with pytest.raises(InvalidRequest, match="stream"):
        read(body(stream="true"))


@pytest.mark.parametrize(
    "raw",
    [
        b' { "model" : "m" , "temperature" : 0.70 } ',
        b'{"model":"m","provider":{"order":["x"]}}',
        b'{"model":"m","provider":{}}',
        b'{"model":"m","provider":null}',
        b'{"model":"m","aci_verified":true}',
    ],
)
def test_body_without_constraints_is_forwarded_byte_for_byte(raw: bytes) -> None:
    assert read(raw).forwarded == raw
    assert strip(raw) == raw


def test_constraints_are_not_forwarded_and_all_else_is_kept() -> None:
    raw = (
        b'{ "z": 1e400, "model":"m", "provider":{"aci_verified":true,"order":["x"],"aci_session_ids":["'
        + ID.encode()
        + b'"]}, "n": [12345678901234567890123, -0.10, true, null, {}], "u": "\\ud83d\\ude00 \xc3\xbc \\ud800" }'
    )
    assert strip(raw) == (
        b'{"z":1e400,"model":"m","provider":{"order":["x"]},'
        b'"n":[12345678901234567890123,-0.10,true,null,{}],"u":"' + "😀 ü".encode() + rb' \ud800"}'
    )
    assert json.loads(strip(raw))["u"] == json.loads(raw)["u"]


def test_provider_left_empty_goes_too() -> None:
    assert read(b'{"model": "m", "provider": {"aci_verified": false}}').forwarded == b'{"model":"m"}'


def test_deep_nesting_is_refused_and_not_a_crash() -> None:
    for depth in range(300, 1100, 25):
        raw = b'{"model":"m","provider":{"aci_verified":true},"a":' + b"[" * depth + b"]" * depth + b"}"
        try:
            forwarded = read(raw).forwarded
        except InvalidRequest:
            continue
        assert b"aci_" not in forwarded


@pytest.mark.parametrize(
    "members",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"conversation": {"id": "conv_1"}},
        {"prompt": {"id": "pmpt_1"}},
        {"store": True},
        {"store": "true"},
        {"store": 0},
        {"store": []},
        {"background": True},
        {"background": 1},
    ],
    ids=repr,
)
def test_a_response_that_rests_on_what_is_kept_is_refused(members: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(members))):
        parse(body(input="a", **members), RESPONSES)


def test_a_response_that_says_nothing_of_it_or_that_nothing_is_kept_goes_on_as_it_came() -> None:
    for members in ({}, {"store": False, "background": False}, {"store": None, "previous_response_id": None}):
        raw = body(input="a", **members)
        assert parse(raw, RESPONSES).forwarded == raw


def test_elsewhere_these_members_are_the_engines_to_judge() -> None:
    assert parse(body(prompt="a", store=True), COMPLETIONS).forwarded == body(prompt="a", store=True)


def test_a_provider_elsewhere_is_told_to_keep_no_response() -> None:
    said = b'{"model": "m", "input": 1.50%s}'
    assert readdress(said % b"", RESPONSES, "n") == b'{"model":"n","input":1.50,"store":false}'
    assert readdress(said % b',"store":null', RESPONSES, "m") == b'{"model":"m","input":1.50,"store":false}'
    assert readdress(said % b',"store":false', RESPONSES, "m") == said % b',"store":false'
    assert readdress(said % b"", CHAT, "m") == said % b""


@pytest.mark.parametrize(
    ("members", "most", "completions"),
    [
        ({}, None, 1),
        ({"max_tokens": 5}, 5, 1),
        ({"max_tokens": 5, "max_completion_tokens": 50, "n": 3}, 50, 3),
        ({"max_output_tokens": 7, "best_of": 4, "n": 2}, 7, 4),
        ({"max_tokens": 10**30, "n": 10**30}, 10**12, 10**12),
        ({"max_tokens": None, "n": 0}, None, 1),
        ({"prompt": ["a", "b"], "n": 2}, None, 4),
        ({"prompt": [[1, 2], [3]]}, None, 2),
        ({"prompt": [1, 2, 3]}, None, 1),
        ({"prompt": []}, None, 1),
    ],
)
def test_how_much_is_asked_for_is_read_and_never_less_than_it_says(
    members: dict[str, Any], most: int | None, completions: int
) -> None:
    prompt = read(body(**members))
    assert (prompt.most_completion, prompt.completions) == (most, completions)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of"])
@pytest.mark.parametrize("written", ["100000.0", "1e5", '"100000"', "-1", "-0", "true", "false", "[5]", "{}", '""'])
def test_a_bound_that_engines_may_read_in_another_way_is_refused(name: str, written: str) -> None:
    """Or it would be asked for and not counted."""
    with pytest.raises(BoundMalformed, match=f"{name} must be a whole number"):
        read(f'{{"model":"m","{name}":{written}}}'.encode())


@pytest.mark.parametrize("endpoint", [EMBEDDINGS, COUNT_TOKENS])
def test_what_completes_nothing_asks_for_no_completion(endpoint: Endpoint) -> None:
    assert parse(body(input=["a"], max_tokens=5), endpoint).completions == 0
