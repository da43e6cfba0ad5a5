"""Canonical JSON within ACI's constraints (appendix A): what libs.jcs writes, and what it refuses to read.

The documents are made from a seed, so a failure can be made again. Each is written by libs.jcs's own encoder and by a
library that shares nothing with it. That library is also libs.jcs's last resort for what its encoder cannot order:
where a text brings it to that the two are one, so there the comparison is with RFC 8785's rules spelt out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
import rfc8785

from libs import jcs

DOCUMENTS = 100_000
SEED = 8785
NAMES = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/ "\\\t'
TEXT = NAMES + "\x00\x08\x0c\n\r\x1f\x7f\x80é߿ࠀ\u2028\u2029퟿\ue000\ufffd￿"
BEYOND = "\U00010000\U0001f600\U0010ffff"
INTEGERS = (0, 1, -1, 10, 2**31, -(2**31), 2**32, 2**53 - 1, -(2**53) + 1)


def documents(count: int, seed: int, alphabet: str) -> Iterator[Any]:
    """Objects such as ACI hashes: ASCII names, integers, texts of any characters, a few levels deep."""
    choice = random.Random(seed)  # noqa: S311 - a generator that can be repeated

    def text(characters: str) -> str:
        return "".join(choice.choices(characters, k=choice.randrange(8)))

    def value(depth: int) -> Any:
        kind = choice.randrange(8 if depth else 5)
        if kind == 0:
            return choice.choice((None, True, False))
        if kind == 1:
            return choice.choice((choice.choice(INTEGERS), choice.randrange(-(2**53) + 1, 2**53)))
        if kind < 5:
            return text(alphabet)
        if kind == 5:
            return [value(depth - 1) for _ in range(choice.randrange(4))]
        return members(depth - 1)

    def members(depth: int) -> dict[str, Any]:
        return {text(NAMES): value(depth) for _ in range(choice.randrange(5))}

    for _ in range(count):
        yield members(3)


def shuffled(value: Any, choice: random.Random) -> Any:
    """The same value with its members in another order."""
    if isinstance(value, dict):
        names = list(value)
        choice.shuffle(names)
        return {name: shuffled(value[name], choice) for name in names}
    return [shuffled(item, choice) for item in value] if isinstance(value, list) else value


def test_two_independent_encoders_agree_on_a_hundred_thousand_documents() -> None:
    choice = random.Random(SEED)  # noqa: S311 - a generator that can be repeated
    different: set[bytes] = set()
    for document in documents(DOCUMENTS, SEED, TEXT):
        expected = rfc8785.dumps(document)
        assert jcs.dumps(shuffled(document, choice)) == expected, document
        different.add(expected)
    assert len(different) > DOCUMENTS * 3 // 4


def test_what_is_read_back_is_what_was_written() -> None:
    for document in documents(DOCUMENTS // 10, SEED + 1, TEXT + BEYOND):
        canonical = jcs.dumps(document)
        assert jcs.loads(canonical) == jcs.loads_canonical(canonical) == document
        assert jcs.dumps_parsed(jcs.loads(json.dumps(document, indent=1).encode())) == canonical


def written(value: Any) -> str:
    """RFC 8785 section 3.2 spelt out, for values without floats."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{written(name)}:{written(value[name])}" for name in names) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value)) + '"'
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _escaped(character: str) -> str:
    short = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    if character in short:
        return short[character]
    return f"\\u{ord(character):04x}" if character < " " else character


def test_characters_beyond_the_basic_plane_are_written_as_the_rfc_says() -> None:
    for document in documents(DOCUMENTS // 10, SEED + 2, TEXT + BEYOND * 9):
        assert jcs.dumps(document).decode() == written(document), document


@pytest.mark.parametrize(
    "text",
    ["1.0", "-0.0", "0.5", "1e3", "1E3", "1e-3", "NaN", "Infinity", "-Infinity", "9007199254740992", "1" * 400],
    ids=lambda text: text[:20],
)
@pytest.mark.parametrize("place", ["{}", '{{"a":{}}}', '{{"a":[{{"b":{}}}]}}'])
def test_a_number_that_is_no_safe_integer_is_refused(place: str, text: str) -> None:
    for read in (jcs.loads, jcs.loads_canonical):
        with pytest.raises(jcs.JsonMalformed) as refusal:
            read(place.format(text).encode())
        assert refusal.value.reason == "JSON_MALFORMED"


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":1}',
        '{"a":1,"b":2,"a":3}',
        '{"x":{"a":1,"a":2}}',
        '[{"a":null,"a":null}]',
        '{"a":1,"\\u0061":1}',
        '{"":1,"":1}',
    ],
)
def test_a_name_that_comes_twice_is_refused(text: str) -> None:
    with pytest.raises(jcs.JsonMalformed) as refusal:
        jcs.loads(text.encode())
    assert "duplicate name" in str(refusal.value)
    with pytest.raises(jcs.JsonMalformed):
        jcs.loads_canonical(text.encode())


@pytest.mark.parametrize(
    "data",
    [
        rb'"\ud800"',
        rb'"\udfff"',
        rb'{"\udc00":1}',
        rb'{"a":["\udc00\ud800"]}',
        rb'"\ud800\u0041"',
        b'"\xed\xa0\x80"',
        b'{"\xed\xbf\xbf":1}',
    ],
)
def test_half_a_surrogate_pair_is_refused(data: bytes) -> None:
    for read in (jcs.loads, jcs.loads_canonical):
        with pytest.raises(jcs.JsonMalformed):
            read(data)


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, ["a", {"b": "\udc00"}]], ids=ascii)
def test_half_a_surrogate_pair_is_never_written(value: Any) -> None:
    with pytest.raises(jcs.JsonMalformed):
        jcs.dumps(value)
