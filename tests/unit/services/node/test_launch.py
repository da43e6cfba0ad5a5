"""How engines are started, and what of that is claimed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from libs.aci.endpoints import CHAT, COMPLETIONS, DEFINED, MESSAGES
from libs.policy.measured_engine import MeasuredEngine
from libs.weights import WeightsMissing
from services.node.launch import EngineSettings, plan

SOCKET = Path("/run/engine.sock")
EMBEDDED = MeasuredEngine("embedded")


def test_the_claimed_digest_follows_what_decides_the_answers_and_no_path(tmp_path: Path) -> None:
    settings = EngineSettings(weights=tmp_path / "a.gguf", threads=1)
    digest = plan(settings, EMBEDDED, "an engine").arguments_sha256
    assert plan(replace(settings, weights=tmp_path / "b.gguf"), EMBEDDED, "an engine").arguments_sha256 == digest
    assert plan(replace(settings, context_tokens=512), EMBEDDED, "an engine").arguments_sha256 != digest


def test_vllm_is_started_as_a_module_with_its_key_in_the_environment(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    measured = MeasuredEngine("vllm", str(python), ("--dtype", "bfloat16"))
    launch = plan(EngineSettings(weights=tmp_path), measured, "an engine")
    argv = launch.argv(SOCKET)
    assert argv[:6] == [str(python), "-I", "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path)]
    assert argv[-5:] == ["--dtype", "bfloat16", "--no-enable-log-requests", "--uds", str(SOCKET)]
    assert launch.key_variable == "VLLM_API_KEY"
    assert launch.salted


def test_the_embedded_engine_is_started_by_the_nodes_interpreter_in_isolation() -> None:
    assert plan(EngineSettings(), EMBEDDED, "an engine").program[:2] == (sys.executable, "-I")


def test_vllm_without_weights_is_refused() -> None:
    with pytest.raises(WeightsMissing):
        plan(EngineSettings(), MeasuredEngine("vllm"), "an engine")


def test_the_embedded_engine_is_asked_everywhere_and_vllm_where_it_always_was(tmp_path: Path) -> None:
    settings = EngineSettings(weights=tmp_path)
    assert plan(settings, EMBEDDED, "an engine").endpoints == set(DEFINED)
    assert plan(settings, MeasuredEngine("vllm"), "an engine").endpoints == {CHAT, COMPLETIONS}


@pytest.mark.parametrize("kind", ["vllm", "embedded"])
def test_what_was_measured_says_where_the_engine_is_asked(tmp_path: Path, kind: str) -> None:
    measured = MeasuredEngine(kind, endpoints=frozenset({CHAT, MESSAGES}))
    assert plan(EngineSettings(weights=tmp_path), measured, "an engine").endpoints == {CHAT, MESSAGES}


def test_vllm_keeps_no_response_whatever_the_host_has_in_its_environment(tmp_path: Path) -> None:
    launch = plan(EngineSettings(weights=tmp_path), MeasuredEngine("vllm"), "an engine")
    assert launch.environment["VLLM_ENABLE_RESPONSES_API_STORE"] == "0"


def test_vllms_processes_meet_on_this_machine_alone_and_no_redirect_leads_elsewhere(tmp_path: Path) -> None:
    environment = plan(EngineSettings(weights=tmp_path), MeasuredEngine("vllm"), "an engine").environment
    assert environment["VLLM_HOST_IP"] == "127.0.0.1"
    assert (environment["GLOO_SOCKET_IFNAME"], environment["NCCL_SOCKET_IFNAME"]) == ("lo", "=lo")
    assert environment["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


@pytest.mark.parametrize(
    ("arguments", "salted"),
    [
        (("--no-enable-prefix-caching",), False),
        (("--dtype", "bfloat16", "--no_enable_prefix_caching"), False),
        ((), True),
        (("--enable-prefix-caching",), True),
    ],
    ids=repr,
)
def test_vllm_needs_no_salt_only_if_its_cache_is_measured_away(
    tmp_path: Path, arguments: tuple[str, ...], salted: bool
) -> None:
    assert plan(EngineSettings(weights=tmp_path), MeasuredEngine("vllm", None, arguments), "an engine").salted is salted


@pytest.mark.parametrize(
    "wrong", [{"silent_seconds": 0.0}, {"silent_seconds": -1.0}, {"memory_bytes": -1}, {"tenant_parallel": -1}]
)
def test_a_bound_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EngineSettings(**wrong)  # type: ignore[arg-type]
