"""How engines are started, and what of that is claimed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from libs.weights import WeightsMissing
from services.node.launch import EngineKindUnknown, EngineSettings, plan

SOCKET = Path("/run/engine.sock")


def test_the_claimed_digest_follows_what_decides_the_answers_and_no_path(tmp_path: Path) -> None:
    settings = EngineSettings(weights=tmp_path / "a.gguf", threads=1)
    digest = plan(settings).arguments_sha256
    assert plan(replace(settings, weights=tmp_path / "b.gguf")).arguments_sha256 == digest
    assert plan(replace(settings, context_tokens=512)).arguments_sha256 != digest


def test_vllm_is_started_as_a_module_with_its_key_in_the_environment(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    settings = EngineSettings(kind="vllm", weights=tmp_path, python=python, arguments=("--dtype", "bfloat16"))
    launch = plan(settings)
    argv = launch.argv(SOCKET)
    assert argv[:5] == [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path)]
    assert argv[-4:] == ["--dtype", "bfloat16", "--uds", str(SOCKET)]
    assert launch.key_variable == "VLLM_API_KEY"
    assert launch.salted


def test_vllm_without_weights_is_refused() -> None:
    with pytest.raises(WeightsMissing):
        plan(EngineSettings(kind="vllm"))


def test_another_kind_is_refused() -> None:
    with pytest.raises(EngineKindUnknown):
        plan(EngineSettings(kind="oracle"))
