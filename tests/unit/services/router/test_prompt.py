from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest

from services.router.errors import InvalidRequest
from services.router.prompt import Constraints, parse, strip

ID = "0123456789abcdef" * 4


def body(**members: Any) -> bytes:
    return json.dumps({"model": "m"} | members).encode()


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
    assert parse(body(provider=provider)).constraints == expected
    assert parse(body()).constraints == Constraints()


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
        parse(body(provider=provider))


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
        parse(raw)
    with pytest.raises(InvalidRequest, match="invalid json"):
        strip(raw)


def test_refusal_repeats_nothing_of_the_prompt() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(b'{"model":"m","messages":"secret words')
    assert b"secret" not in refused.value.body


def test_cache_salt_of_a_client_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="cache_salt"):
        parse(body(cache_salt=None))


@pytest.mark.parametrize("model", [None, "", 7, ["m"], "x" * 257, "a\nb", "\ud800"])
def test_model_that_cannot_be_receipted_is_refused(model: object) -> None:
    with pytest.raises(InvalidRequest, match="model must"):
        parse(body(model=model))


def test_stream_is_a_flag() -> None:
    assert parse(body(stream=True)).stream
    assert not parse(body(stream=None)).stream
    assert not parse(body()).stream
    with pytest.raises(InvalidRequest, match="stream"):
        parse(body(stream="true"))


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
    assert parse(raw).forwarded == raw
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
    assert parse(b'{"model": "m", "provider": {"aci_verified": false}}').forwarded == b'{"model":"m"}'


def test_deep_nesting_is_refused_and_not_a_crash() -> None:
    for depth in range(300, 1100, 25):
        raw = b'{"model":"m","provider":{"aci_verified":true},"a":' + b"[" * depth + b"]" * depth + b"}"
        try:
            forwarded = parse(raw).forwarded
        except InvalidRequest:
            continue
        assert b"aci_" not in forwarded


def message(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


SYSTEM, ASKED = message("system", "Be brief."), message("user", "What is a mesh?")
CONVERSATION = [SYSTEM, ASKED, message("assistant", "A net."), message("user", "And a tee?"), message("tool", "T")]


def test_all_turns_of_a_conversation_begin_alike() -> None:
    turns = {parse(body(messages=CONVERSATION[:number])).beginning for number in (2, 3, 4, 5)}
    assert len(turns) == 1
    assert turns != {b""}
    reordered = [dict(reversed(each.items())) for each in CONVERSATION]
    assert {parse(body(messages=reordered, temperature=1)).beginning} == turns


@pytest.mark.parametrize(
    "other",
    [
        [SYSTEM, message("user", "What is a tee?")],
        [message("system", "Be long."), ASKED],
        [ASKED],
        [message("user", [{"type": "text", "text": "What is a mesh?"}])],
    ],
)
def test_another_conversation_begins_otherwise(other: list[dict[str, object]]) -> None:
    assert parse(body(messages=other)).beginning != parse(body(messages=CONVERSATION)).beginning


def test_a_prompt_that_grows_at_its_end_begins_alike() -> None:
    grown = {parse(body(prompt="a" * 1024 + rest)).beginning for rest in ("", "b", "cc")}
    assert len(grown) == 1
    assert parse(body(prompt="b" * 1024)).beginning not in grown


@pytest.mark.parametrize(
    "members", [{}, {"messages": "no list"}, {"messages": 1}, {"prompt": ["a", "b"]}, {"prompt": ""}, {"prompt": 12}]
)
def test_of_anything_else_no_beginning_is_known(members: dict[str, object]) -> None:
    assert parse(body(**members)).beginning == b""


def test_a_beginning_has_a_bound_and_is_not_shown() -> None:
    prompt = parse(body(messages=[message("user", "secret words " * 10_000)]))
    assert len(prompt.beginning) == 16 << 10
    assert b"secret" in prompt.beginning
    assert "beginning" not in repr(prompt)


@pytest.mark.parametrize("depth", [*range(100, 1100, 50)])
def test_a_prompt_of_any_depth_is_read_or_refused(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    with suppress(InvalidRequest):
        parse(b'{"model":"m","messages":[{"role":"user","content":' + nested + b"}]}")
