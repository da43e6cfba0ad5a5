"""An entry in clear is its one canonical form, and says what its leaf says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from libs import jcs
from libs.audit.log.entries import EntryWrong, canonical, read_entry, read_object

ISSUER = b"\x11" * 32
MEMBERS: dict[str, Any] = {
    "v": 1,
    "kind": 16,
    "issuer": ISSUER.hex(),
    "issuer_seq": 3,
    "prev": "22" * 32,
    "tenant": None,
    "body": {"b": [1, {"a": "\u00e9"}], "\U0001f600": True, "\ufb01": None},
}


def of(value: bytes) -> bytes:
    return bytes(32) + value


def test_entry_is_read_as_its_issuer_wrote_it() -> None:
    entry = read_entry(of(jcs.dumps(MEMBERS)), 16, ISSUER, 3)
    assert (entry.previous, entry.body) == (b"\x22" * 32, MEMBERS["body"])


def test_canonical_form_is_that_of_the_other_reading() -> None:
    values: list[dict[str, Any]] = [
        MEMBERS,
        {"\U0001f600": 1, "\ufb01": 2, "a": '\u2028\x7f\x00"\\'},
        {"": {}, "z": []},
    ]
    assert [canonical(value) for value in values] == [jcs.dumps(value) for value in values]


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": True},
        {"kind": 17},
        {"kind": True},
        {"issuer": "22" * 32},
        {"issuer_seq": 4},
        {"tenant": "ef" * 16},
        {"prev": "22" * 31},
        {"prev": "AA" * 32},
        {"prev": None},
        {"body": []},
        {"more": 1},
    ],
)
def test_entry_that_says_something_else_than_its_leaf_is_wrong(changes: dict[str, Any]) -> None:
    with pytest.raises(EntryWrong):
        read_entry(of(jcs.dumps({**MEMBERS, **changes})), 16, ISSUER, 3)


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(MEMBERS).encode(),
        jcs.dumps(MEMBERS) + b"\n",
        jcs.dumps(MEMBERS).replace(b'"v":1', b'"v":1.0'),
        jcs.dumps(MEMBERS).replace(b'"v":1', b'"v":1,"v":1'),
        jcs.dumps(MEMBERS).replace(b'"issuer_seq":3', b'"issuer_seq":9007199254740992'),
        jcs.dumps(MEMBERS).replace("\u00e9".encode(), b"\\u00e9"),
        jcs.dumps(MEMBERS).replace(b"null", b"NaN"),
        b"[]",
        b"\xff",
        b"",
        b"[" * 100_000,
    ],
)
def test_json_in_another_form_than_its_one_is_wrong(data: bytes) -> None:
    with pytest.raises(EntryWrong):
        read_object(data)
