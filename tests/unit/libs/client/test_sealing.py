"""What a client encrypts a router opens, and what is not encrypted to this request is never shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from libs.aci import keyset as keysets
from libs.aci.e2ee.suites import SUITES
from libs.aci.endpoints import CHAT
from libs.aci.keyset import Keyset, PublicKey, TlsKey
from libs.aci.rewriting import JsonNotRewritable
from libs.client.sealing import AnswerNotSealed, SealedRequest, SealingIncomplete, SealingNotOffered, seal
from services.router.e2ee.answers import cover
from services.router.e2ee.opening import Opened, Opening
from services.router.e2ee.window import AcceptanceWindow
from services.router.reading import Reading
from services.router.workload.generation import E2eeKey
from tests.fakes.sealed_prompts import ListedKeys

KEYS = tuple(E2eeKey.generate(suite) for suite in SUITES.values())
BODY = (
    '{"model":"m","messages":[{"role":"user","content":"é secret"},{"role":"user","content":[{"file":"secret"}]}],'
    '"temperature":1.50}'
).encode()
ANSWER = {"id": "x", "choices": [{"message": {"content": "said"}}]}


def keyset(*keys: PublicKey) -> Keyset:
    return keysets.build(
        subject=None,
        not_after=1,
        receipt_keys={"r": b"\x05" * 32},
        tls_keys=(TlsKey(hashlib.sha256(b"").hexdigest()),),
        e2ee_keys=keys,
    )


async def opened(sealed: SealedRequest) -> Opened:
    headers = {name.lower(): value for name, value in sealed.headers.items()}
    opening = Opening(ListedKeys(*KEYS), AcceptanceWindow(), Reading())
    return await opening.open("ab" * 16, 20.0, headers, CHAT, sealed.body)


@pytest.mark.parametrize("key", KEYS, ids=[key.suite.curve for key in KEYS])
async def test_a_router_opens_what_it_was_sent_and_the_client_its_answer(key: E2eeKey) -> None:
    sealed = seal(BODY, keyset(key.entry()))
    assert b"secret" not in sealed.body
    request = await opened(sealed)
    assert request.body == sealed.clear == BODY
    answer = cover(request.envelope, streams=False, status=200)
    answer.feed(json.dumps(ANSWER).encode())
    text = answer.finish()
    assert b"said" not in text
    assert sealed.opener.open(text) == ANSWER


def test_no_two_requests_share_anything() -> None:
    first, second = (seal(BODY, keyset(KEYS[0].entry())) for _ in range(2))
    for name in ("X-Client-Pub-Key", "X-E2EE-Nonce"):
        assert first.headers[name] != second.headers[name]
    assert first.body != second.body


def test_the_suite_for_browsers_comes_first() -> None:
    both = keyset(*(key.entry() for key in reversed(KEYS)))
    assert seal(BODY, both).opener.suite is SUITES[next(iter(SUITES))]


@pytest.mark.parametrize("keys", [(), (PublicKey("k", "a-suite-of-later", "00"),)])
def test_without_a_known_suite_nothing_is_sent(keys: tuple[PublicKey, ...]) -> None:
    with pytest.raises(SealingNotOffered):
        seal(BODY, keyset(*keys))


@pytest.mark.parametrize("body", [b"{", b'{"a":1,"a":2}'])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(JsonNotRewritable):
        seal(body, keyset(KEYS[0].entry()))


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b'{"model":"m","messages":[]}',
        b'{"model":7,"messages":[{"role":"user","content":"a"}]}',
        b'{"model":"m","messages":["a"]}',
        b'{"model":"m","messages":[{"role":"user"}]}',
        b'{"model":"m","messages":[{"role":"user","content":null}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"m","messages":[{"role":"assistant","content":"a","tool_calls":["said"]}]}',
        b'{"model":"m","messages":[{"role":"assistant","content":"a","reasoning_content":"said"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"prompt":"said"}',
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"tools":["said"]}',
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"logprobs":true}',
    ],
)
def test_nothing_is_sent_of_which_something_would_stay_in_clear(body: bytes) -> None:
    with pytest.raises(SealingIncomplete):
        seal(body, keyset(KEYS[0].entry()))


@pytest.mark.parametrize(
    "text", ["[1, 2]", ' [{"type":"image_url","image_url":{"url":"http://a.example"}}]', "[a", "\u2003[1]"]
)
async def test_a_text_that_reads_as_a_list_stays_one(text: str) -> None:
    sealed = seal(
        json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode(), keyset(KEYS[0].entry())
    )
    assert (await opened(sealed)).body == sealed.clear
    assert json.loads(sealed.clear)["messages"][0]["content"] == [{"type": "text", "text": text}]


def _in_clear(text: dict[str, Any]) -> None:
    text["choices"][0]["message"]["content"] = "said by somebody else"


def _elsewhere(text: dict[str, Any]) -> None:
    text["choices"][0]["index"] = 1


def _under_another_id(text: dict[str, Any]) -> None:
    text["id"] = "y"


def _as_a_list(text: dict[str, Any]) -> None:
    text["choices"][0]["message"]["content"] = ["said"]


def _beside_it(text: dict[str, Any]) -> None:
    text["choices"].append({"text": "said by somebody else"})


def _as_no_list(text: dict[str, Any]) -> None:
    text["choices"] = "said"


@pytest.mark.parametrize("lie", [_in_clear, _elsewhere, _under_another_id, _as_a_list, _beside_it, _as_no_list])
async def test_an_answer_that_was_changed_on_its_way_is_not_shown(lie: Callable[[dict[str, Any]], None]) -> None:
    sealed = seal(BODY, keyset(KEYS[0].entry()))
    answer = cover((await opened(sealed)).envelope, streams=False, status=200)
    answer.feed(json.dumps(ANSWER).encode())
    text = json.loads(answer.finish())
    lie(text)
    with pytest.raises(AnswerNotSealed):
        sealed.opener.open(json.dumps(text))


async def test_the_answer_to_another_request_is_not_shown() -> None:
    first, second = (seal(BODY, keyset(KEYS[0].entry())) for _ in range(2))
    answer = cover((await opened(first)).envelope, streams=False, status=200)
    answer.feed(json.dumps(ANSWER).encode())
    with pytest.raises(AnswerNotSealed):
        second.opener.open(answer.finish())


@pytest.mark.parametrize("text", ["", "said", '"said"', "[]", '{"id":"\\ud800","choices":[{"text":"00"}]}'])
def test_what_is_no_answer_is_not_shown(text: str) -> None:
    with pytest.raises(AnswerNotSealed):
        seal(BODY, keyset(KEYS[0].entry())).opener.open(text)
