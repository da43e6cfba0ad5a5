"""A mesh whose node runs an OpenAI-compatible server of which it knows nothing but its measured command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from libs.weights import read_manifest
from tests.mesh.https import Https
from tests.mesh.running import RunningMesh, running_mesh, short_folder

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(300)]

CHAT = "/v1/chat/completions"
ENGINE = {
    "kind": "openai-server",
    "program": sys.executable,
    # The embedded engine's server, started as anybody's would be.
    "arguments": [
        *("-I", "-m", "services.node.embedded", "--key-variable", "SERVER_API_KEY", "--threads", "1"),
        *("--weights", "{weights}", "--socket", "{socket}", "--model-alias", "{model}"),
        *("--context", "{context_tokens}", "--parallel", "{parallel}"),
    ],
    "name": "llama.cpp b9000",
    "key_variable": "SERVER_API_KEY",
    "cache_salt": False,
}


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with short_folder() as folder:
        file = folder / "engine.json"
        file.write_text(json.dumps(ENGINE))
        with running_mesh(folder, "--engine-server", str(file), "--parallel", "1") as running:
            yield running


def test_its_answers_are_verified_and_name_what_was_measured(mesh: RunningMesh) -> None:
    asked = mesh.run("chat", "What is the capital of France? Answer in one sentence.")
    assert "VERIFIED: 12 of 12" in asked.stdout, asked.stdout + asked.stderr
    assert "engine openai-server llama.cpp b9000" in asked.stdout
    described = mesh.mesh
    https = Https(described["router_url"], described["router_ca"], described["api_key"])
    body = {"model": described["model"], "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    answer = https.post(CHAT, json.dumps(body).encode())
    assert answer.status == 200, answer.body
    receipt = https.get(f"/v1/aci/receipts/{answer.headers['X-Receipt-Id']}").json
    (node,) = [event for event in receipt["event_log"] if event["type"] == "teemesh.node"]
    manifest = read_manifest((mesh.state / "config" / "weights.json").read_bytes())
    assert (node["engine"], node["weights_sha256"]) == ("openai-server llama.cpp b9000", manifest.digest.hex())
    # It is asked where it was measured to be asked: embeddings are not among that.
    refused = https.post("/v1/embeddings", json.dumps({"model": described["model"], "input": "Hi"}).encode())
    assert (refused.status, refused.json["error"]["type"]) == (404, "not_found_error")
