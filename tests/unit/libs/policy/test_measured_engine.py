"""Which engine a node runs is read from what was measured, strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from libs.aci.endpoints import CHAT, EMBEDDINGS, MESSAGES, RESPONSES, paths
from libs.policy.compose import ComposeMalformed
from libs.policy.engine_arguments import EngineArgumentsRefused
from libs.policy.engine_server import EngineServer, EngineServerRefused
from libs.policy.measured_engine import EngineInterpreterRefused, MeasuredEngine, engine_of, read_engine

TEMPLATES = Path(__file__).parents[4] / "deploy" / "dstack"


def compose(engine: Any) -> str:
    return json.dumps({"name": "teemesh-node", "teemesh_engine": engine})


def test_both_templates_name_their_engine() -> None:
    assert read_engine((TEMPLATES / "node-embedded.app-compose.json").read_text()) == MeasuredEngine("embedded")
    production = read_engine((TEMPLATES / "node.app-compose.json").read_text())
    assert (production.kind, production.python) == ("vllm", "/opt/vllm/bin/python")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"name": "teemesh-node"}),
        compose({"kind": "oracle", "arguments": []}),
        compose({"kind": "vllm"}),
        compose({"kind": "vllm", "arguments": "--trust-remote-code"}),
        compose({"kind": "vllm", "arguments": [1]}),
        compose({"kind": "vllm", "arguments": ["two\nlines"]}),
        compose({"kind": "vllm", "arguments": [], "python": "python"}),
        compose({"kind": "vllm", "arguments": [], "middleware": "evil"}),
        compose({"kind": "vllm", "arguments": [], "endpoints": []}),
        compose({"kind": "vllm", "arguments": [], "endpoints": "/v1/messages"}),
        compose({"kind": "vllm", "arguments": [], "endpoints": ["/v1/messages", "/v1/messages"]}),
        compose({"kind": "vllm", "arguments": [], "endpoints": ["/v1/systemone"]}),
        compose({"kind": "vllm", "arguments": [], "endpoints": ["/v1/messages/"]}),
        compose({"kind": "vllm", "arguments": [], "endpoints": None}),
        "not json",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ComposeMalformed):
        read_engine(text)


def test_what_would_make_receipts_false_is_refused_measured_or_not() -> None:
    with pytest.raises(EngineArgumentsRefused):
        read_engine(compose({"kind": "vllm", "arguments": ["--model", "/data/other"]}))
    with pytest.raises(EngineArgumentsRefused):
        read_engine(compose({"kind": "embedded", "arguments": ["--anything"]}))
    with pytest.raises(EngineInterpreterRefused):
        read_engine(compose({"kind": "embedded", "arguments": [], "python": "/opt/other/bin/python"}))


def test_where_it_is_asked_may_be_measured_too() -> None:
    named = {"kind": "vllm", "arguments": [], "endpoints": ["/v1/chat/completions", "/v1/messages"]}
    assert read_engine(compose(named)).endpoints == frozenset({CHAT, MESSAGES})
    assert read_engine(compose({"kind": "vllm", "arguments": []})).endpoints is None


SERVER: dict[str, Any] = {
    "kind": "openai-server",
    "program": "/opt/llama/bin/llama-server",
    "arguments": ["--model", "{weights}", "--host", "{socket}", "--parallel", "{parallel}", "--alias", "{model}"],
    "name": "llama.cpp b9000",
    "key_variable": "LLAMA_API_KEY",
    "cache_salt": False,
}


def test_another_server_is_its_whole_command() -> None:
    found = read_engine(compose(SERVER))
    assert found == MeasuredEngine(
        "openai-server",
        arguments=tuple(SERVER["arguments"]),
        server=EngineServer("/opt/llama/bin/llama-server", "llama.cpp b9000", "LLAMA_API_KEY", cache_salt=False),
    )


@pytest.mark.parametrize(
    "engine",
    [
        {"kind": "embedded", "arguments": []},
        {"kind": "vllm", "arguments": ["--enforce-eager"], "python": "/opt/vllm/bin/python"},
        SERVER,
        SERVER | {"endpoints": paths([CHAT, MESSAGES]), "cache_salt": True},
    ],
)
def test_an_engine_is_written_as_it_is_read(engine: dict[str, Any]) -> None:
    assert engine_of(engine).to_json() == engine


@pytest.mark.parametrize("left_out", ["program", "name", "key_variable", "cache_salt", "arguments"])
def test_nothing_of_another_server_goes_without_saying(left_out: str) -> None:
    with pytest.raises(ComposeMalformed, match=left_out):
        engine_of({name: value for name, value in SERVER.items() if name != left_out})


@pytest.mark.parametrize(
    "wrong",
    [
        {"program": "llama-server"},
        {"program": "/opt/llama server"},
        {"name": ""},
        {"name": "a\nb"},
        {"key_variable": "PATH"},
        {"key_variable": "LD_PRELOAD"},
        {"key_variable": "llama_api_key"},
        {"cache_salt": "no"},
        {"environment": {}},
        {"kind": "vllm"},
        {"kind": "embedded"},
    ],
    ids=repr,
)
def test_what_is_no_server_or_another_engines_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ComposeMalformed):
        engine_of(SERVER | wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        # It would load what nobody hashed, listen where others reach it, or take more at once than it was tried with.
        {"arguments": ["--host", "{socket}", "--parallel", "{parallel}"]},
        {"arguments": ["--model", "{weights}", "--parallel", "{parallel}"]},
        {"arguments": ["--model", "{weights}", "--host", "{socket}", "--parallel", "4"]},
        {"arguments": [*SERVER["arguments"], "--port", "{port}"]},
        {"arguments": [*SERVER["arguments"], "--api-key={key}"]},
        # Nobody could say there whether tenants share a cache, or whether answers are kept.
        {"endpoints": paths([CHAT, EMBEDDINGS])},
        {"endpoints": paths([CHAT, RESPONSES])},
    ],
    ids=repr,
)
def test_a_server_with_which_no_promise_could_be_kept_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(EngineServerRefused) as refusal:
        engine_of(SERVER | wrong)
    assert refusal.value.reason == "ENGINE_SERVER_REFUSED"


def test_another_server_has_no_interpreter_of_vllms() -> None:
    with pytest.raises(EngineInterpreterRefused):
        engine_of(SERVER | {"python": "/opt/vllm/bin/python"})
