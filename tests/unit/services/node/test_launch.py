"""How engines are started, and what of that is claimed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from libs.policy.measured_engine import MeasuredEngine
from libs.weights import WeightsMissing
from services.node.launch import EngineSettings, plan

SOCKET = Path("/run/engine.sock")
EMBEDDED = MeasuredEngine("embedded")


def test_the_claimed_digest_follows_what_decides_the_answers_and_no_path(tmp_path: Path) -> None:
    settings = EngineSettings(weights=tmp_path / "a.gguf", threads=1)
    digest = plan(settings, EMBEDDED).arguments_sha256
    assert plan(replace(settings, weights=tmp_path / "b.gguf"), EMBEDDED).arguments_sha256 == digest
    assert plan(replace(settings, context_tokens=512), EMBEDDED).arguments_sha256 != digest


def test_vllm_is_started_as_a_module_with_its_key_in_the_environment(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    measured = MeasuredEngine("vllm", str(python), ("--dtype", "bfloat16"))
    launch = plan(EngineSettings(weights=tmp_path), measured)
    argv = launch.argv(SOCKET)
    assert argv[:5] == [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path)]
    assert argv[-4:] == ["--dtype", "bfloat16", "--uds", str(SOCKET)]
    assert launch.key_variable == "VLLM_API_KEY"
    assert launch.salted


def test_vllm_without_weights_is_refused() -> None:
    with pytest.raises(WeightsMissing):
        plan(EngineSettings(), MeasuredEngine("vllm"))
