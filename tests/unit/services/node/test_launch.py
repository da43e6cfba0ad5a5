"""How engines are started, and what of that is claimed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from libs.aci.endpoints import CHAT, COMPLETIONS, DEFINED, MESSAGES
from libs.policy.engine_arguments import EngineArgumentsRefused
from libs.policy.engine_server import SERVER, EngineServer
from libs.policy.measured_engine import MeasuredEngine
from libs.weights import WeightsMissing
from services.node.api.bodies import BEYOND_TEXT
from services.node.calling import Calling
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
    argv = launch.argv(tmp_path, SOCKET)
    assert argv[:6] == [str(python), "-I", "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path)]
    # Its HTTP server would write a line for each request, which says who asked where.
    assert "--disable-uvicorn-access-log" in argv
    assert argv[-5:] == ["--dtype", "bfloat16", "--no-enable-log-requests", "--uds", str(SOCKET)]
    assert launch.key_variable == "VLLM_API_KEY"
    assert launch.salted


def test_the_embedded_engine_is_started_by_the_nodes_interpreter_in_isolation() -> None:
    assert plan(EngineSettings(), EMBEDDED, "an engine").command[:2] == (sys.executable, "-I")


def test_the_packaged_model_has_a_template_with_tools_and_other_weights_their_own(tmp_path: Path) -> None:
    packaged = plan(EngineSettings(), EMBEDDED, "an engine").arguments
    other = plan(EngineSettings(weights=tmp_path / "a.gguf"), EMBEDDED, "an engine").arguments
    assert packaged[-2:] == ("--chat-template", "smollm2")
    assert "--chat-template" not in other


def test_llama_cpp_needs_help_to_call_tools_and_vllm_none(tmp_path: Path) -> None:
    assert plan(EngineSettings(), EMBEDDED, "an engine").calling == Calling("<tool_call>")
    assert plan(EngineSettings(weights=tmp_path / "a.gguf"), EMBEDDED, "an engine").calling == Calling()
    assert plan(EngineSettings(weights=tmp_path), MeasuredEngine("vllm"), "an engine").calling is None


def test_vllm_without_weights_is_refused() -> None:
    with pytest.raises(WeightsMissing):
        plan(EngineSettings(), MeasuredEngine("vllm"), "an engine")


def test_the_embedded_engine_is_asked_everywhere_and_vllm_where_it_always_was(tmp_path: Path) -> None:
    settings = EngineSettings(weights=tmp_path)
    assert plan(settings, EMBEDDED, "an engine").endpoints == set(DEFINED)
    assert plan(settings, MeasuredEngine("vllm"), "an engine").endpoints == {CHAT, COMPLETIONS}


def test_the_embedded_engine_takes_text_alone_and_vllm_what_its_model_does(tmp_path: Path) -> None:
    settings = EngineSettings(weights=tmp_path)
    assert plan(settings, EMBEDDED, "an engine").lacks == BEYOND_TEXT
    assert plan(settings, MeasuredEngine("vllm"), "an engine").lacks == frozenset()


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
    launch = plan(EngineSettings(weights=tmp_path), MeasuredEngine("vllm", None, arguments), "an engine")
    # By what it counts it shows that it parts its cache.
    assert (launch.salted, "--enable-prompt-tokens-details" in launch.arguments) == (salted, salted)


PLACES = ("-I", "-m", "server", "--model={weights}", "--listen", "{socket}", "--slots", "{parallel}")


def server(*arguments: str, cache_salt: bool = False) -> MeasuredEngine:
    program = EngineServer("/opt/server/bin/python", "server 1.0", "SERVER_API_KEY", cache_salt)
    return MeasuredEngine(SERVER, arguments=(*PLACES, *arguments), server=program)


def test_a_measured_command_gets_what_only_the_node_knows(tmp_path: Path) -> None:
    measured = server("--alias", "{model}", "--ctx={context_tokens}", "--json", '{"model":1}')
    settings = EngineSettings(model="a-model", weights=tmp_path, parallel=3, context_tokens=512)
    launch = plan(settings, measured, "openai-server server 1.0")
    assert launch.argv(tmp_path, SOCKET) == [
        *("/opt/server/bin/python", "-I", "-m", "server", f"--model={tmp_path}", "--listen", str(SOCKET)),
        *("--slots", "3", "--alias", "a-model", "--ctx=512", "--json", '{"model":1}'),
    ]
    assert (launch.key_variable, launch.environment) == ("SERVER_API_KEY", {})
    assert launch.endpoints == {CHAT, COMPLETIONS}


def test_a_measured_command_is_claimed_with_everything_but_paths(tmp_path: Path) -> None:
    settings = EngineSettings(weights=tmp_path / "a")
    digest = plan(settings, server(), "a server").arguments_sha256
    assert plan(replace(settings, weights=tmp_path / "b"), server(), "a server").arguments_sha256 == digest
    assert plan(replace(settings, parallel=9), server(), "a server").arguments_sha256 != digest
    assert plan(settings, server("--fast"), "a server").arguments_sha256 != digest


@pytest.mark.parametrize("cache_salt", [False, True])
def test_a_server_that_nobody_knows_must_prove_itself_and_is_salted_as_measured(
    tmp_path: Path, cache_salt: bool
) -> None:
    launch = plan(EngineSettings(weights=tmp_path), server(cache_salt=cache_salt), "a server")
    assert (launch.must_prove, launch.salted) == (True, cache_salt)
    for known in (EMBEDDED, MeasuredEngine("vllm")):
        assert not plan(EngineSettings(weights=tmp_path), known, "an engine").must_prove


@pytest.mark.parametrize("measured", [EMBEDDED, MeasuredEngine("vllm"), server()], ids=lambda one: one.kind)
def test_no_path_that_an_engine_is_given_can_be_an_option(tmp_path: Path, measured: MeasuredEngine) -> None:
    argv = plan(EngineSettings(weights=tmp_path), measured, "an engine").argv(Path("--enable-log-requests"), SOCKET)
    assert not [part for part in argv if part.startswith("--enable-log-requests")]
    assert [part for part in argv if part.endswith("/--enable-log-requests")]


@pytest.mark.parametrize("arguments", [(), ("--language-model-only",), ("--no-enable-prefix-caching",)], ids=repr)
def test_vllm_keeps_no_media_that_other_tenants_could_name(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    launch = plan(EngineSettings(weights=tmp_path), MeasuredEngine("vllm", None, arguments), "an engine")
    position = launch.arguments.index("--mm-processor-cache-gb")
    assert launch.arguments[position + 1] == "0"
    with pytest.raises(EngineArgumentsRefused):
        MeasuredEngine("vllm", None, ("--mm-processor-cache-gb", "4"))


@pytest.mark.parametrize(
    ("arguments", "fetches"),
    [
        ((), False),
        (("--dtype", "bfloat16"), False),
        (("--allowed-media-domains", "media.example.org"), True),
        (("--allowed_media_domains=media.example.org",), True),
    ],
    ids=repr,
)
def test_vllm_fetches_only_from_a_domain_that_is_measured(
    tmp_path: Path, arguments: tuple[str, ...], fetches: bool
) -> None:
    assert (
        plan(EngineSettings(weights=tmp_path), MeasuredEngine("vllm", None, arguments), "an engine").fetches is fetches
    )
    assert not plan(EngineSettings(), EMBEDDED, "an engine").fetches


@pytest.mark.parametrize(
    "wrong", [{"silent_seconds": 0.0}, {"silent_seconds": -1.0}, {"memory_bytes": -1}, {"tenant_parallel": -1}]
)
def test_a_bound_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EngineSettings(**wrong)  # type: ignore[arg-type]
