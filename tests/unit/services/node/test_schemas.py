"""How large a grammar a body may have the engine make, by whatever keyword and wherever its schemas stand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from libs.aci import endpoints, rewriting
from libs.aci.endpoints import Endpoint
from services.node.asked import TooMuchAsked, read_body
from services.node.schemas import (
    DEEPEST_RULE,
    LONGEST_NAME,
    LONGEST_REFERENCE,
    MOST_ALTERNATIVES,
    MOST_REFERENCES,
    MOST_REPETITIONS,
    MOST_VALUES,
    schema_excess,
)
from tests.fakes.schemas import AS_LARGE_AS_TAKEN, ENDLESS, USUAL, chain, doubled, referring

QUESTION = [{"role": "user", "content": "Hi"}]


def formatted(members: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", **members}


def called(members: dict[str, Any]) -> dict[str, Any]:
    return {"name": "f", "description": "Does it.", **members}


PLACES: list[tuple[Endpoint, Any]] = [
    (endpoints.CHAT, lambda schema: {"response_format": formatted({"json_schema": {"name": "n", "schema": schema}})}),
    (endpoints.CHAT, lambda schema: {"response_format": {"type": "json_object", "schema": schema}}),
    (endpoints.CHAT, lambda schema: {"tools": [{"type": "function", "function": called({"parameters": schema})}]}),
    (endpoints.CHAT, lambda schema: {"functions": [called({"parameters": schema})]}),
    (endpoints.MESSAGES, lambda schema: {"tools": [called({"input_schema": schema})]}),
    (endpoints.MESSAGES, lambda schema: {"output_config": {"format": formatted({"schema": schema})}}),
    (endpoints.COUNT_TOKENS, lambda schema: {"tools": [called({"input_schema": schema})]}),
    (endpoints.RESPONSES, lambda schema: {"text": {"format": formatted({"schema": schema})}}),
    (endpoints.RESPONSES, lambda schema: {"tools": [{"type": "function", **called({"parameters": schema})}]}),
]
PLACE_NAMES = [f"{endpoint.path} {next(iter(place(0)))}" for endpoint, place in PLACES]


def read(endpoint: Endpoint, **members: Any) -> None:
    said: dict[str, Any] = {"input": "Hi"} if endpoint is endpoints.RESPONSES else {"messages": QUESTION}
    if endpoint is endpoints.MESSAGES:
        said["max_tokens"] = 1
    read_body(json.dumps({"model": "m", **said, **members}).encode(), frozenset({"m"}), endpoint)


def excess_of(members: dict[str, Any]) -> str | None:
    return schema_excess(rewriting.loads(json.dumps(members).encode()))


def excess(schema: object) -> str | None:
    return excess_of({"response_format": formatted({"json_schema": {"schema": schema}})})


@pytest.mark.parametrize("schema", USUAL.values(), ids=USUAL)
def test_what_programs_make_of_their_types_is_taken(schema: dict[str, Any]) -> None:
    assert excess(schema) is None


@pytest.mark.parametrize("schema", AS_LARGE_AS_TAKEN.values(), ids=AS_LARGE_AS_TAKEN)
def test_what_is_large_is_taken_up_to_the_bounds(schema: dict[str, Any]) -> None:
    assert excess(schema) is None


@pytest.mark.parametrize("schema", ENDLESS.values(), ids=ENDLESS)
def test_what_has_no_end_or_a_far_one_is_refused(schema: dict[str, Any]) -> None:
    assert excess(schema) is not None


@pytest.mark.parametrize(("endpoint", "place"), PLACES, ids=PLACE_NAMES)
def test_a_schema_is_found_wherever_it_stands(endpoint: Endpoint, place: Any) -> None:
    read(endpoint, **place(USUAL["a record"]))
    with pytest.raises(TooMuchAsked):
        read(endpoint, **place(ENDLESS["merged into itself"]))


@pytest.mark.parametrize("place", [place for _, place in PLACES], ids=PLACE_NAMES)
def test_what_is_no_schema_is_left_to_others(place: Any) -> None:
    schema: Any
    for schema in (None, True, "s", 7, [], {}):
        assert excess_of(place(schema)) is None


@pytest.mark.parametrize("kind", ["grammar", "regex", "structural_tag"])
def test_another_language_is_refused(kind: str) -> None:
    for members in (
        {"response_format": {"type": kind}},
        {"tools": [{"type": "custom", "custom": {"name": "f", "format": {"type": kind}}}]},
    ):
        assert kind in str(excess_of(members))
    assert excess({"properties": {"type": {"const": kind}}, "examples": [{"type": kind}]}) is None


def test_all_schemas_of_a_body_are_counted_together() -> None:
    def tools(count: int) -> list[dict[str, Any]]:
        schema = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(30)}}
        return [{"type": "function", "function": called({"parameters": schema})} for _ in range(count)]

    assert excess_of({"tools": tools(64)}) is None
    assert excess_of({"tools": tools(400)}) is not None


def properties(count: int, length: int = 4) -> dict[str, Any]:
    return {"properties": {f"{number:0{length}}": {} for number in range(count)}}


@pytest.mark.parametrize(
    ("fits", "beyond"),
    [
        (properties(1, LONGEST_NAME), properties(1, LONGEST_NAME + 1)),
        ({"enum": list(range(MOST_ALTERNATIVES))}, {"enum": list(range(MOST_ALTERNATIVES + 1))}),
        ({"maxItems": MOST_REPETITIONS}, {"maxItems": MOST_REPETITIONS + 1}),
        (chain(DEEPEST_RULE // 2 - 1), chain(DEEPEST_RULE // 2 + 1)),
        (referring(MOST_REFERENCES), referring(MOST_REFERENCES + 1)),
        (doubled(9), doubled(10)),
        ({"const": [0] * (MOST_VALUES - 16)}, {"const": [0] * MOST_VALUES}),
        ({"properties": {"$ref": {"const": 1}}}, {"$ref": "#/" + "/".join(["properties"] * 100)}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {}}}, {"$ref": "#/$defs/b", "$defs": {"a": {}}}),
        ({"$ref": "#/anyOf/0", "anyOf": [{}]}, {"$ref": "#/anyOf/1", "anyOf": [{}]}),
        ({"$ref": "#"}, {"$ref": "https://json-schema.org/draft/2020-12/schema"}),
        ({"type": ["string", "null"]}, {"type": ["string", "string"]}),
        ({"pattern": "^a$"}, {"pattern": 7}),
    ],
    ids=["name", "enum", "times", "chain", "references", "doubled", "values", "no reference", "definition", "place",
         "remote", "types", "pattern"],
)  # fmt: skip
def test_each_bound_holds(fits: dict[str, Any], beyond: dict[str, Any]) -> None:
    assert excess(fits) is None
    assert excess(beyond) is not None


def test_a_long_reference_is_refused() -> None:
    assert str(LONGEST_REFERENCE) in str(excess({"anyOf": [{"$ref": "#/" + "_" * LONGEST_REFERENCE}]}))


@pytest.mark.parametrize(
    "keyword",
    ["maxContains", "maxItems", "maxLength", "maxProperties", "minContains", "minItems", "minLength", "minProperties"],
)
def test_how_often_is_a_whole_number(keyword: str) -> None:
    for times in (None, 0, 12):
        assert excess({keyword: times}) is None
    wrong: Any
    for wrong in (-1, 1.5, "3", True, [], 10**9):
        assert keyword in str(excess({keyword: wrong}))


def test_names_that_are_keywords_are_names() -> None:
    names = ("$defs", "allOf", "anyOf", "enum", "items", "maxItems", "pattern", "properties", "schema", "type")
    assert excess({"properties": {name: {"type": "string"} for name in names}, "required": list(names)}) is None


def test_a_refusal_quotes_nothing() -> None:
    schema: Any
    for schema in ({"$ref": "#/secret"}, {"pattern": "(secret)("}, {"properties": {"secret" * 99: {}}}):
        assert (why := excess(schema)) is not None
        assert "secret" not in why
