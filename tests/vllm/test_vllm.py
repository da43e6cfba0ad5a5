"""vLLM as the engine: it answers provably, shares no prefix among tenants, dies loudly, leaves no text behind."""

from __future__ import annotations

import json
import os
import secrets
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from libs.policy.measured_engine import MeasuredEngine
from libs.weights import read_manifest
from services.node.launch import EngineSettings, plan
from tests.mesh.https import Https
from tests.mesh.openai_sdk import client_of
from tests.mesh.patience import until
from tests.mesh.running import RunningMesh, running_mesh, short_folder, teemesh
from tests.vllm.engine_process import LOOPBACK, EngineProcess

CHAT = "/v1/chat/completions"
WHERE = os.environ.get("TEEMESH_VLLM")
VERSION = "0.32.0"
START_SECONDS = 300.0
"""On a machine that does other things as well."""
_OTHERS = ("teemesh-*", "torchinductor_*", "vllm*")
"""What may lie in everybody's temporary folder, whatever the engine is told."""

pytestmark = [
    pytest.mark.mesh,
    pytest.mark.timeout(600),
    pytest.mark.skipif(WHERE is None, reason="TEEMESH_VLLM does not name an environment with vLLM: make test-vllm"),
]


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    environment = Path(str(WHERE)).absolute()
    arguments = ["--dtype", "bfloat16", "--enforce-eager"]
    with short_folder() as folder:
        home, temporary = folder / "home", folder / "tmp"
        home.mkdir()
        temporary.mkdir()
        with running_mesh(
            folder,
            *("--vllm", str(environment / "bin" / "python")),
            *("--weights", str(environment / "weights" / "smollm2-135m")),
            *("--parallel", "4"),
            *(f"--vllm-argument={argument}" for argument in arguments),
            # What the engine leaves, it leaves in this folder.
            environment={"VLLM_CPU_KVCACHE_SPACE": "1", "HOME": str(home), "TMPDIR": str(temporary)},
        ) as running:
            yield running


@pytest.fixture
def https(mesh: RunningMesh) -> Https:
    described = mesh.mesh
    return Https(described["router_url"], described["router_ca"], described["api_key"])


def other_tenant(mesh: RunningMesh, https: Https, name: str) -> Https:
    signing = ("--sign-key", str(mesh.state / "operators" / "tenant-admin.pem"))
    done = teemesh("tenants", "create", name, *signing, "--json", "--mesh", str(mesh.state / "mesh.json"))
    assert done.returncode == 0, done.stderr
    return replace(https, api_key=json.loads(done.stdout)["api_key"])


def body(mesh: RunningMesh, prompt: str, **members: Any) -> bytes:
    messages = [{"role": "user", "content": prompt}]
    return json.dumps({"model": mesh.mesh["model"], "messages": messages, "temperature": 0, **members}).encode()


def events(https: Https, receipt_id: str) -> dict[str, Any]:
    return {event["type"]: event for event in https.get(f"/v1/aci/receipts/{receipt_id}").json["event_log"]}


def test_an_answer_names_engine_arguments_and_weights_and_is_verified(mesh: RunningMesh, https: Https) -> None:
    asked = mesh.run("chat", "What is the capital of France? Answer in one sentence.")
    assert "VERIFIED: 12 of 12" in asked.stdout, asked.stdout + asked.stderr
    assert f"engine vllm {VERSION}" in asked.stdout
    answer = https.post(CHAT, body(mesh, "What is the capital of Italy?", max_tokens=8, seed=7))
    assert answer.status == 200, answer.body
    node = events(https, answer.headers["X-Receipt-Id"])["teemesh.node"]
    manifest = read_manifest((mesh.state / "config" / "weights.json").read_bytes())
    assert (node["engine"], node["weights_sha256"]) == (f"vllm {VERSION}", manifest.digest.hex())
    own = {event["type"]: event for event in json.loads(node["receipt"])["event_log"]}["teemesh.generation"]
    assert own["engine_args_sha256"] == node["engine_args_sha256"]
    assert json.loads(own["sampling"]) == {"max_tokens": "8", "seed": "7", "temperature": "0"}
    assert own["prompt_tokens"] > own["completion_tokens"] > 0


def test_it_says_what_its_model_works(mesh: RunningMesh, https: Https) -> None:
    """By the names that a node reads to know that it does not hang."""
    engine = EngineProcess(mesh)
    names = plan(EngineSettings(weights=mesh.state), MeasuredEngine("vllm"), "vllm").work_metrics

    def said() -> dict[str, float]:
        return {name: engine.metric(name) for name in names}

    before = said()
    assert https.post(CHAT, body(mesh, "Count to ten.", max_tokens=8, ignore_eos=True)).status == 200
    grown = {name for name, value in said().items() if value > before[name]}
    assert {"vllm:generation_tokens_total", "vllm:prompt_tokens_total"} <= grown <= names


def test_its_processes_speak_to_each_other_on_this_machine_alone(mesh: RunningMesh) -> None:
    listening = EngineProcess(mesh).listening
    assert listening
    assert listening <= LOOPBACK


def test_tenants_share_no_prefix_and_one_alone_has_its_own(mesh: RunningMesh, https: Https) -> None:
    engine, others = EngineProcess(mesh), other_tenant(mesh, https, "Other")
    prompt = body(mesh, "These words are the beginning of everybody's prompt. " * 20, max_tokens=1)

    def hits(tenant: Https) -> float:
        before = engine.metric("vllm:prefix_cache_hits_total")
        assert tenant.post(CHAT, prompt).status == 200
        return engine.metric("vllm:prefix_cache_hits_total") - before

    assert hits(https) == 0
    assert hits(https) >= 128
    assert hits(others) == 0
    assert hits(others) >= 128


def test_an_engine_that_is_killed_ends_its_answers_and_comes_back(mesh: RunningMesh, https: Https) -> None:
    killed = EngineProcess(mesh).pid
    described = mesh.mesh
    with client_of(mesh, timeout_seconds=120) as client:
        stream = client.chat.completions.with_raw_response.create(
            model=described["model"],
            messages=[{"role": "user", "content": "Count from one to one thousand."}],
            max_tokens=1000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        chunks = iter(stream.parse())
        next(chunks)
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(openai.APIError):
            _ = list(chunks)
        receipt_id = stream.headers["X-Receipt-Id"]
    until(lambda: https.get(f"/v1/aci/receipts/{receipt_id}").status == 200, mesh.logs)
    assert "teemesh.abort" in events(https, receipt_id)
    until(lambda: https.post(CHAT, body(mesh, "Hi", max_tokens=1)).status == 200, mesh.logs, seconds=START_SECONDS)
    assert EngineProcess(mesh).pid != killed


def test_no_text_is_left_behind(mesh: RunningMesh, https: Https) -> None:
    """Neither in what the mesh keeps, nor in anybody's logs, caches and temporary files."""
    marker = f"marker-{secrets.token_hex(16)}"
    asked = https.post(CHAT, body(mesh, f"Repeat after me: {marker}", max_tokens=64, ignore_eos=True))
    assert asked.status == 200
    said = asked.json["choices"][0]["message"]["content"].strip()[:60]
    assert len(said) >= 20
    texts = [marker.encode(), said.encode(), json.dumps(said)[1:-1].encode()]
    folder = mesh.state.parent
    shared = Path(tempfile.gettempdir())

    def holders() -> dict[Path, list[bytes]]:
        searched = [folder, *(path for name in _OTHERS for path in shared.glob(name)), Path("/dev/shm")]
        files = [path for place in searched for path in (place, *place.rglob("*")) if path.is_file()]
        assert any(path.name == "node.log" for path in files)
        held = {path: _held(path, texts) for path in files}
        return {path: found for path, found in held.items() if found}

    assert any((folder / "home" / ".cache" / "vllm").rglob("*"))
    assert holders() == {}
    # The search finds what is there.
    controls = [folder / "home" / ".cache" / "control", folder / "tmp" / "control", mesh.state / "control"]
    with tempfile.NamedTemporaryFile(prefix="vllm_control_", dir=shared) as everybodys:
        for control, text in zip([*controls, Path(everybodys.name)], [*texts, texts[0]], strict=True):
            control.write_bytes(b"before " + text + b" after")
        assert holders().keys() == {*controls, Path(everybodys.name)}


def _held(path: Path, texts: list[bytes]) -> list[bytes]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return [text for text in texts if text in content]
