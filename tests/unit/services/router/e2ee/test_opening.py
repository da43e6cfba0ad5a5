"""What comes encrypted is opened as it was meant, or refused by its own type, in the order of the protocol's checks."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from libs.aci.e2ee.suites import SUITES
from libs.aci.endpoints import CHAT, COMPLETIONS, MESSAGES
from services.router.e2ee.errors import (
    ClientKeyRefused,
    ContentWithoutPlace,
    DecryptionFailed,
    E2eeRefused,
    EndpointWithoutFields,
    HeaderMissing,
    ModelKeyMismatch,
    ModelNotBound,
    NonceRefused,
    Replayed,
    TimestampRefused,
    VersionNotSupported,
)
from services.router.e2ee.opening import MOST_FIELDS, Opening
from services.router.e2ee.window import AcceptanceWindow
from services.router.reading import Reading
from services.router.workload.generation import E2eeKey
from tests.fakes.sealed_prompts import Client, ListedKeys

KEYS = tuple(E2eeKey.generate(suite) for suite in SUITES.values())

TENANT_ID = "ab" * 16
PATIENCE_SECONDS = 20.0


@pytest.fixture
def opening() -> Opening:
    return Opening(ListedKeys(*KEYS), AcceptanceWindow(), Reading())


@pytest.fixture(params=KEYS, ids=[key.suite.curve for key in KEYS])
def client(request: pytest.FixtureRequest) -> Client:
    return Client(request.param, request.param.suite.key())


async def refusal(opening: Opening, client: Client, body: bytes, **changed: str | None) -> type[E2eeRefused]:
    with pytest.raises(E2eeRefused) as refused:
        await opening.open(TENANT_ID, PATIENCE_SECONDS, client.headers(**changed), CHAT, body)
    return type(refused.value)


async def test_a_prompt_is_opened_and_its_answer_goes_to_who_sent_it(opening: Opening, client: Client) -> None:
    opened = await opening.open(
        TENANT_ID,
        PATIENCE_SECONDS,
        client.headers(),
        CHAT,
        client.chat(client.seal("messages.0.content", "é\u2028"), n=1),
    )
    assert opened.body == '{"model":"m","messages":[{"role":"user","content":"é\u2028"}],"n":1}'.encode()
    assert opened.envelope.key_id == client.key.key_id
    sealed = opened.envelope.suite.seal(opened.envelope.client, b"said", opened.envelope.binding.of_response("p", "i"))
    assert client.open("p", sealed, "i") == "said"


@pytest.mark.parametrize(
    ("plaintext", "restored"),
    [
        ('[{"type":"text","n":1.50}]', '[{"type":"text","n":1.50}]'),
        (" \n[ 1 ]", "[1]"),
        ("[]", "[]"),
        ('{"a":1}', r'"{\"a\":1}"'),
        ("[not json", '"[not json"'),
        ("", '""'),
        ("17", '"17"'),
    ],
)
async def test_a_whole_content_is_a_list_or_a_text(
    opening: Opening, client: Client, plaintext: str, restored: str
) -> None:
    opened = await opening.open(TENANT_ID, PATIENCE_SECONDS, client.headers(), CHAT, client.sealed_chat(plaintext))
    assert opened.body == f'{{"model":"m","messages":[{{"role":"user","content":{restored}}}]}}'.encode()


async def test_a_prompt_that_reads_as_a_list_stays_a_text(opening: Opening, client: Client) -> None:
    body = json.dumps({"model": "m", "prompt": client.seal("prompt", "[1]")}).encode()
    opened = await opening.open(TENANT_ID, PATIENCE_SECONDS, client.headers(), COMPLETIONS, body)
    assert opened.body == b'{"model":"m","prompt":"[1]"}'


@pytest.mark.parametrize("plaintext", [b'[{"a":1,"a":2}]', b"\xff", b"[\xff]"])
async def test_what_cannot_be_restored_is_refused(opening: Opening, client: Client, plaintext: bytes) -> None:
    assert await refusal(opening, client, client.sealed_chat(plaintext)) is DecryptionFailed


async def test_what_came_in_clear_beside_what_was_sealed_stays(opening: Opening, client: Client) -> None:
    parts = [{"text": "in clear"}, {"text": client.seal("messages.0.content.1.text", "a")}, {"text": "ab12"}]
    opened = await opening.open(TENANT_ID, PATIENCE_SECONDS, client.headers(), CHAT, client.chat(parts))
    assert [part["text"] for part in json.loads(opened.body)["messages"][0]["content"]] == ["in clear", "a", "ab12"]


async def test_one_field_that_cannot_be_opened_refuses_the_others(opening: Opening, client: Client) -> None:
    parts = [{"text": client.seal("messages.0.content.0.text", "a")}, {"text": "ab" * 80}]
    assert await refusal(opening, client, client.chat(parts)) is DecryptionFailed


async def test_a_truncated_field_is_not_taken_for_a_text(opening: Opening, client: Client) -> None:
    parts = [
        {"text": client.seal("messages.0.content.0.text", "a")},
        {"text": client.seal("messages.0.content.1.text", "b")[: 2 * client.key.suite.public_bytes + 1]},
    ]
    assert await refusal(opening, client, client.chat(parts)) is DecryptionFailed


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({"x_signing_algo": "ecdsa"}, VersionNotSupported),
        ({"x_e2ee_version": None}, HeaderMissing),
        ({"x_e2ee_version": "3"}, VersionNotSupported),
        ({"x_client_pub_key": None}, HeaderMissing),
        ({"x_model_pub_key": None}, HeaderMissing),
        ({"x_e2ee_nonce": None}, HeaderMissing),
        ({"x_e2ee_timestamp": None}, HeaderMissing),
        ({"x_e2ee_nonce": "0x" + "ab" * 31}, NonceRefused),
        ({"x_e2ee_timestamp": "1e9"}, TimestampRefused),
        ({"x_e2ee_timestamp": "\u0661"}, TimestampRefused),
        ({"x_e2ee_timestamp": "1"}, TimestampRefused),
        ({"x_model_pub_key": "ab" * 32}, ModelKeyMismatch),
        ({"x_client_pub_key": "ab"}, ClientKeyRefused),
    ],
)
async def test_headers_are_refused_before_anything_is_read(
    opening: Opening, client: Client, changed: dict[str, str | None], refused: type[E2eeRefused]
) -> None:
    assert await refusal(opening, client, b"{not json", **changed) is refused


async def test_an_older_protocol_alone_is_refused_too(opening: Opening) -> None:
    with pytest.raises(VersionNotSupported):
        await opening.open(TENANT_ID, PATIENCE_SECONDS, {"x-signing-algo": "ecdsa"}, CHAT, b"{}")


async def test_an_endpoint_without_fields_is_refused_first(opening: Opening) -> None:
    with pytest.raises(EndpointWithoutFields):
        await opening.open(TENANT_ID, PATIENCE_SECONDS, {"x-e2ee-nonce": ""}, MESSAGES, b"{not json")


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        (b"{not json", DecryptionFailed),
        (b"[]", DecryptionFailed),
        (b'{"model":"m","model":"m"}', DecryptionFailed),
        (b"{}", ModelNotBound),
        (b'{"model":7}', ModelNotBound),
        (b'{"model":"\\ud800"}', ModelNotBound),
        (b'{"model":"m"}', DecryptionFailed),
        (b'{"model":"m","messages":[{"content":"in clear"}]}', DecryptionFailed),
    ],
)
async def test_a_body_that_holds_nothing_sealed_is_refused(
    opening: Opening, client: Client, body: bytes, refused: type[E2eeRefused]
) -> None:
    assert await refusal(opening, client, body) is refused


async def test_a_request_comes_once_also_if_it_could_not_be_opened(opening: Opening, client: Client) -> None:
    assert await refusal(opening, client, client.chat("in clear")) is DecryptionFailed
    assert await refusal(opening, client, client.sealed_chat()) is Replayed


async def test_a_recorded_request_is_not_answered_to_somebody_else(opening: Opening, client: Client) -> None:
    body = client.sealed_chat()
    await opening.open(TENANT_ID, PATIENCE_SECONDS, client.headers(), CHAT, body)
    other = replace(client, private=client.key.suite.key())
    assert await refusal(opening, other, body) is Replayed


@pytest.mark.parametrize("asked", [{"tools": []}, {"functions": [1]}, {"logprobs": True}, {"prompt_logprobs": 0}])
async def test_what_would_be_answered_in_clear_is_refused(
    opening: Opening, client: Client, asked: dict[str, Any]
) -> None:
    body = client.chat(client.seal("messages.0.content", "a"), **asked)
    assert await refusal(opening, client, body) is ContentWithoutPlace


@pytest.mark.parametrize("asked", [{"tools": None}, {"logprobs": False}])
async def test_what_is_asked_not_to_be_answered_is_no_matter(
    opening: Opening, client: Client, asked: dict[str, Any]
) -> None:
    body = client.chat(client.seal("messages.0.content", "a"), **asked)
    await opening.open(TENANT_ID, PATIENCE_SECONDS, client.headers(), CHAT, body)


async def test_more_fields_than_anybody_needs_are_refused(opening: Opening, client: Client) -> None:
    sealed = [client.seal(f"prompt.{number}", "a") for number in range(2)]
    body = json.dumps({"model": "m", "prompt": sealed + sealed[:1] * MOST_FIELDS}).encode()
    assert await refusal(opening, client, body) is DecryptionFailed


async def test_a_model_that_would_be_hashed_with_every_field_is_short(opening: Opening, client: Client) -> None:
    long = replace(client, model="m" * 257)
    assert await refusal(opening, long, long.sealed_chat()) is ModelNotBound


async def test_what_was_refused_for_its_headers_may_come_again(opening: Opening, client: Client) -> None:
    assert await refusal(opening, client, client.sealed_chat(), x_e2ee_version="3") is VersionNotSupported
    await opening.open(TENANT_ID, PATIENCE_SECONDS, client.headers(), CHAT, client.sealed_chat())


async def test_another_routers_keys_open_nothing(client: Client) -> None:
    other = Opening(ListedKeys(*(E2eeKey.generate(suite) for suite in SUITES.values())), AcceptanceWindow(), Reading())
    assert await refusal(other, client, client.sealed_chat()) is ModelKeyMismatch


async def test_a_model_of_another_name_opens_nothing(opening: Opening, client: Client) -> None:
    sealed = replace(client, model="other").sealed_chat()
    assert await refusal(opening, client, sealed.replace(b"other", b"m")) is DecryptionFailed
