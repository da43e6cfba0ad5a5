"""The engine of a local mesh: what a command line asks for is what is measured, listed and started."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from libs.aci.endpoints import CHAT, MESSAGES
from libs.config import load
from libs.policy.compose import render
from libs.policy.engine_server import SERVER, EngineServer
from libs.policy.measured_engine import MeasuredEngine, read_engine
from services.cli.__main__ import main
from services.cli.local.config import Addresses, write_service_configs
from services.cli.local.engine import EMBEDDED, MODEL, LocalEngine
from services.cli.local.policy import open_operators
from services.cli.mesh.layout import Layout
from services.cli.mesh.ports import NAMES
from services.node.config import Config
from services.node.launch import plan

VLLM = MeasuredEngine("vllm", "/opt/vllm/bin/python", ("--enforce-eager",))
OTHER = MeasuredEngine(
    SERVER,
    arguments=("--model", "{weights}", "--host", "{socket}", "--parallel", "{parallel}"),
    server=EngineServer("/opt/llama/bin/llama-server", "llama.cpp b9000", "LLAMA_API_KEY", cache_salt=False),
)
ASKED_AT = replace(VLLM, endpoints=frozenset({CHAT, MESSAGES}))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"\x01" * 64)
    return folder


@pytest.mark.parametrize("measured", [EMBEDDED.measured, VLLM, ASKED_AT, OTHER])
def test_the_engine_is_measured(tmp_path: Path, measured: MeasuredEngine) -> None:
    layout = Layout(tmp_path / "state")
    layout.prepare()
    anchors = open_operators(layout).anchors("node")
    compose = render(LocalEngine(measured).template(), "ab" * 32, anchors)
    assert read_engine(compose.decode()) == measured


async def test_policy_lists_the_weights_that_the_engine_is_given(weights: Path) -> None:
    listed = await LocalEngine(VLLM, weights).manifest()
    (weights / "model.safetensors").write_bytes(b"\x02" * 64)
    assert await LocalEngine(VLLM, weights).manifest() != listed
    assert await EMBEDDED.manifest() != listed


def test_the_node_starts_what_was_asked_for(tmp_path: Path, weights: Path) -> None:
    layout = Layout(tmp_path / "state")
    layout.prepare()
    addresses = Addresses({name: 20_000 + place for place, name in enumerate(NAMES)}, router_port=8443)
    write_service_configs(layout, addresses, layout.policy(1), engine=LocalEngine(VLLM, weights, parallel=7))
    settings = load(layout.config("node"), Config).engine
    argv = plan(settings, VLLM, "vllm").argv(weights, tmp_path / "socket")
    assert argv[0] == VLLM.python
    assert argv[argv.index("--model") + 1] == str(weights)
    assert argv[argv.index("--served-model-name") + 1] == MODEL
    assert argv[argv.index("--max-num-seqs") + 1] == "7"
    assert "--enforce-eager" in argv


@pytest.mark.parametrize(
    "options",
    [
        ["--vllm", "/usr/bin/python3"],
        ["--weights", "/tmp"],
        ["--vllm-argument=--enforce-eager"],
        ["--vllm-endpoint", "/v1/messages"],
        ["--vllm", "/usr/bin/python3", "--weights", "/tmp", "--engine-server", "/dev/null"],
    ],
)
def test_half_an_engine_is_refused(tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--state", str(tmp_path / "state"), *options]) == 1
    assert "ENGINE_UNCLEAR" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_an_engine_that_would_log_requests_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vllm = ["--vllm", "/usr/bin/python3", "--weights", str(tmp_path), "--vllm-argument=--enable-log-requests"]
    assert main(["up", "--state", str(tmp_path / "state"), *vllm]) == 1
    assert "ENGINE_ARGUMENTS_REFUSED" in capsys.readouterr().err


def test_another_server_is_what_its_file_measures_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "engine.json"
    for measured, reason in ((VLLM, "ENGINE_UNCLEAR"), (OTHER, "COMPOSE_MALFORMED")):
        more = {"more": True} if measured is OTHER else {}
        file.write_text(json.dumps({**measured.to_json(), **more}))
        assert main(["up", "--state", str(tmp_path / "state"), "--engine-server", str(file)]) == 1
        assert reason in capsys.readouterr().err
        assert not (tmp_path / "state").exists()
