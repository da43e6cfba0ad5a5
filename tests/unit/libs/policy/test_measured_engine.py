"""Which engine a node runs is read from what was measured, strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from libs.aci.endpoints import CHAT, MESSAGES
from libs.policy.compose import ComposeMalformed
from libs.policy.engine_arguments import EngineArgumentsRefused
from libs.policy.measured_engine import EngineInterpreterRefused, MeasuredEngine, read_engine

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
