"""What is wrong with a value that should have a shape, and where: the first of it, and nothing that no row names."""

from __future__ import annotations

from typing import Any

import pytest

from libs.aci.rewriting import dumps, loads
from services.node.api.kinds import (
    FLAG,
    NULL,
    OBJECT,
    STRING,
    TEXT,
    Data,
    Each,
    EngineTakes,
    Members,
    Token,
    Word,
    a,
    by,
    members,
    simple,
)

IDS = a(TEXT, Each(a(TEXT, Token(), Each(a(Token()))), fewest=1, numbers_apart=True))
PARTS = by("type", {"text": members("text", text=STRING, **simple("other")), "image": members()})
TOOL = Members({"strict": a(FLAG)}, others=True)
TABLE = a(
    Members(
        {
            "who": a(TEXT, NULL),
            "on": a(FLAG, NULL),
            "ids": IDS,
            "parts": a(Each(a(PARTS))),
            "tools": a(Each(a(by("type", {"function": TOOL.also("name")}, others=TOOL)))),
            "choice": a(Word(frozenset({"auto", "none"})), OBJECT),
            "unsaid": a(by("type", {"text": members("text", text=STRING)}, unsaid="text")),
            "data": a(Data()),
        },
        needs=("who",),
        others=True,
    )
)


def fault(text: str, *lacks: str) -> str | None:
    found = TABLE.fault(loads(text.encode()), EngineTakes(frozenset(lacks)))
    return None if found is None else str(found.refusal())


@pytest.mark.parametrize(
    "more",
    [
        "",
        ',"on":true',
        ',"on":null',
        ',"ids":"a"',
        ',"ids":["a","b"]',
        ',"ids":["a",[1,2]]',
        ',"ids":[0,4294967295]',
        ',"parts":[]',
        ',"parts":[{"type":"text","text":"","other":7},{"type":"image"}]',
        ',"tools":[{"type":"function","name":7},{"type":"browser"}]',
        ',"choice":"none"',
        ',"choice":{"any":"thing"}',
        ',"unnamed":[{"type":7}]',
        ',"unsaid":{"text":"a"}',
        ',"unsaid":{"type":"text","text":"a"}',
        ',"data":"AAAA"',
    ],
)
def test_what_has_its_shape_has_no_fault(more: str) -> None:
    assert fault('{"who":"me"' + more + "}") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "must be an object"),
        ("{}", "who is missing"),
        ('{"who":7}', "who must be a string or null"),
        ('{"who":{}}', "who must be a string or null"),
        ('{"who":null,"on":"true"}', "on must be true or false or null"),
        ('{"who":null,"on":0}', "on must be true or false or null"),
        ('{"who":null,"ids":[]}', "ids must have at least 1"),
        ('{"who":null,"ids":[1,"a"]}', "ids must have numbers alone, or none"),
        ('{"who":null,"ids":[1,[2]]}', "ids must have numbers alone, or none"),
        ('{"who":null,"ids":[-1]}', "ids[0] must be a token's number"),
        ('{"who":null,"ids":[1,1.5]}', "ids[1] must be a token's number"),
        ('{"who":null,"ids":[10000000000]}', "ids[0] must be a token's number"),
        ('{"who":null,"ids":[["a"]]}', "ids[0][0] must be a number"),
        ('{"who":null,"ids":["a",null]}', "ids[1] must be a string or a number or a list"),
        ('{"who":null,"parts":{}}', "parts must be a list"),
        ('{"who":null,"parts":["a"]}', "parts[0] must be an object"),
        ('{"who":null,"parts":[{"text":"a"}]}', "parts[0].type must be a string"),
        ('{"who":null,"parts":[{"type":7}]}', "parts[0].type must be a string"),
        ('{"who":null,"parts":[{"type":"sound"}]}', "parts[0].type must be one of image, text"),
        ('{"who":null,"parts":[{"type":"image"},{"type":"text"}]}', "parts[1].text is missing"),
        ('{"who":null,"parts":[{"type":"text","text":[]}]}', "parts[0].text must be a string"),
        ('{"who":null,"tools":[{"type":"function"}]}', "tools[0].name is missing"),
        ('{"who":null,"tools":[{"type":"browser","strict":7}]}', "tools[0].strict must be true or false"),
        ('{"who":null,"choice":"all"}', "choice must be one of auto, none"),
        ('{"who":null,"parts":[{"type":"image","uuid":1}]}', "parts[0] has a member that is not taken: 'uuid'"),
        ('{"who":null,"unsaid":{"type":null,"text":"a"}}', "unsaid.type must be a string"),
        ('{"who":null,"unsaid":{}}', "unsaid.text is missing"),
        ('{"who":null,"data":""}', "data must not be empty"),
    ],
)
def test_what_has_not_is_told_where(text: str, said: str) -> None:
    assert fault(text) == said


def test_what_is_not_had_is_not_known_and_not_offered() -> None:
    pictured = '{"who":null,"parts":[{"type":"image"}]}'
    assert fault(pictured) is None
    assert fault(pictured, "image") == "parts[0].type must be one of text"
    assert fault('{"who":null,"tools":[{"type":"image"}]}', "image") == "tools[0].type must be one of function"


@pytest.mark.parametrize(
    "value", [{"choice": "x" * 100_000}, {"parts": [{"type": "text", "text": "", "x" * 100_000: 1}]}]
)
def test_a_long_word_is_not_said_again(value: dict[str, Any]) -> None:
    assert len(fault(dumps({"who": "me"} | value).decode()) or "") < 150
