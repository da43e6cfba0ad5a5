"""What a user of an OpenAI client gets: answers, and errors of stable types."""

from __future__ import annotations

import json
import ssl
import time
from pathlib import Path

import openai
import pytest
from openai import DefaultHttpxClient, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.mesh.https import Https
from tests.mesh.running import RunningMesh

pytestmark = pytest.mark.mesh

CHAT = "/v1/chat/completions"
QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of France? Answer in one sentence."}
]


def chat_body(model: str) -> bytes:
    return json.dumps({"model": model, "messages": QUESTION, "max_tokens": 8}).encode()


def test_the_openai_package_gets_a_buffered_answer(mesh: RunningMesh, openai_client: OpenAI) -> None:
    answer = openai_client.chat.completions.create(model=mesh.mesh["model"], messages=QUESTION, max_tokens=24)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_the_openai_package_gets_a_streamed_answer(mesh: RunningMesh, openai_client: OpenAI) -> None:
    chunks = list(
        openai_client.chat.completions.create(
            model=mesh.mesh["model"], messages=QUESTION, max_tokens=24, temperature=0, stream=True
        )
    )
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert len([choice for choice in choices if choice.delta.content]) > 1
    assert choices[-1].finish_reason in ("stop", "length")


def test_every_answer_names_its_receipt_and_the_receipt_is_in_the_log(mesh: RunningMesh, https: Https) -> None:
    answer = https.post(CHAT, chat_body(mesh.mesh["model"]))
    assert answer.status == 200
    receipt_id = answer.headers["X-Receipt-Id"]
    assert https.get(f"/v1/aci/receipts/{receipt_id}").status == 200
    # The log is signed about once a second; until then the router says to ask again.
    asked_until = time.monotonic() + 20
    while (commitment := https.get(f"/v1/teemesh/receipts/{receipt_id}/commitment")).status == 404:
        assert commitment.error_type == "not_found"
        assert time.monotonic() < asked_until
    assert commitment.status == 200
    assert commitment.json


def test_the_models_are_those_of_the_policy(mesh: RunningMesh, openai_client: OpenAI) -> None:
    assert [model.id for model in openai_client.models.list()] == [mesh.mesh["model"]]


def test_another_ca_is_not_believed(mesh: RunningMesh) -> None:
    described = mesh.mesh
    strangers = ssl.create_default_context(cafile=described["vendor_root"])
    with (
        OpenAI(
            base_url=f"{described['router_url']}/v1",
            api_key=described["api_key"],
            http_client=DefaultHttpxClient(verify=strangers),
            max_retries=0,
        ) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.models.list()


@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
def test_without_an_api_key_there_is_nothing(mesh: RunningMesh, https: Https, path: str) -> None:
    body = chat_body(mesh.mesh["model"])
    answer = https.post(path, body, authorized=False) if path == CHAT else https.get(path, authorized=False)
    assert (answer.status, answer.error_type) == (401, "unauthorized")


def test_a_wrong_api_key_is_told_nothing_more(mesh: RunningMesh) -> None:
    described = mesh.mesh
    stranger = Https(described["router_url"], described["router_ca"], "sk-teemesh-of-somebody-else")
    answer = stranger.get("/v1/models")
    assert (answer.status, answer.error_type) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("body", "status", "error_type"),
    [
        (chat_body("no-such-model"), 404, "not_found_error"),
        (b"{not json", 400, "invalid_request_error"),
        (b"[]", 400, "invalid_request_error"),
        (b'{"messages": []}', 400, "invalid_request_error"),
        (b'{"x": "' + b"x" * (2 << 20) + b'"}', 413, "request_too_large"),
    ],
    ids=["unknown model", "malformed", "no object", "no model", "oversized"],
)
def test_bad_input_is_an_error_of_a_stable_type(https: Https, body: bytes, status: int, error_type: str) -> None:
    answer = https.post(CHAT, body)
    assert (answer.status, answer.error_type) == (status, error_type)


@pytest.mark.parametrize("nonce", ["", "zz", "AB" * 32, "ab" * 31])
def test_a_wrong_nonce_is_an_error_of_a_stable_type(https: Https, nonce: str) -> None:
    answer = https.get(f"/v1/aci/attestation?nonce={nonce}")
    assert (answer.status, answer.error_type) == (400, "invalid_request_error")


def test_a_fresh_nonce_gets_a_report_of_its_own(https: Https) -> None:
    one, other = (https.get(f"/v1/aci/attestation?nonce={nonce * 32}") for nonce in ("ab", "cd"))
    assert one.status == other.status == 200
    assert one.body != other.body


def test_bad_input_stops_nothing(mesh: RunningMesh, https: Https) -> None:
    before = mesh.mesh["services"]
    https.post(CHAT, b"\xff\xfe")
    https.get("/nowhere")
    assert https.post(CHAT, chat_body(mesh.mesh["model"])).status == 200
    assert mesh.mesh["services"] == before


def test_the_files_of_a_user_are_where_mesh_json_says(mesh: RunningMesh) -> None:
    described = mesh.mesh
    for name in ("router_ca", "mesh_ca", "operator_cert", "operator_key", "policy", "vendor_root"):
        assert Path(described[name]).is_file()
    assert all(entry["pid"] for entry in described["services"].values())
