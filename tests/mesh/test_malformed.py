"""What a real engine fails on, sent by one tenant: refused by its name, or that tenant's own; the node serves on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from libs.aci.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint
from services.node.questions import question
from tests.mesh.routers import Router, another_router
from tests.mesh.running import RunningMesh, teemesh

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(400)]

BREAKER_FAILURES = 3
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
MALFORMED: list[tuple[Endpoint, dict[str, Any]]] = [
    (CHAT, {"tools": "x"}),
    (CHAT, {"tools": [{"type": "function"}]}),
    (CHAT, {"tools": [{"type": "function", "function": {"name": 7}}]}),
    (CHAT, {"messages": [{"role": 7, "content": "Hi"}]}),
    (CHAT, {"messages": [{"role": "user", "content": "Hi", "name": 7}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]}),
    (CHAT, {"messages": [{"role": "user", "content": [IMAGE]}]}),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "a"}}]}]}),
    (COMPLETIONS, {"prompt": []}),
    (COMPLETIONS, {"prompt": [1, [2]]}),
    (EMBEDDINGS, {"input": {}}),
    (MESSAGES, {"messages": [{"role": 7, "content": "Hi"}]}),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64"}}]}]}),
    (RESPONSES, {"input": [{"role": "user", "content": "Hi", "name": 7}]}),
    (RESPONSES, {"tools": [{"type": "function"}]}),
]
NO_REASONING = {"role": "assistant", "content": "Hi", "reasoning_content": None}
"""Some engines give it so, and their clients send it back; this one fails on it."""


@pytest.fixture(scope="module")
def router(mesh: RunningMesh) -> Iterator[Router]:
    with another_router(mesh, breaker_failures=BREAKER_FAILURES) as running:
        yield running


def avoided(router: Router) -> dict[str, int]:
    """How many nodes are, by cause."""
    causes = ("errors", "latency", "one_tenant")
    return {cause: router.counted(f'teemesh_router_breakers_open{{cause="{cause}"}}') for cause in causes}


def asked(mesh: RunningMesh, endpoint: Endpoint, members: dict[str, Any]) -> bytes:
    return json.dumps(question(endpoint, mesh.mesh["model"]) | members).encode()


def other_tenants_key(mesh: RunningMesh) -> str:
    signing = ("--sign-key", str(mesh.state / "operators" / "tenant-admin.pem"))
    done = teemesh("tenants", "create", "Other", *signing, "--json", "--mesh", str(mesh.state / "mesh.json"))
    assert done.returncode == 0, done.stderr
    key: str = json.loads(done.stdout)["api_key"]
    return key


def test_what_is_malformed_is_refused_by_its_name_and_no_node_is_avoided(mesh: RunningMesh, router: Router) -> None:
    for endpoint, members in MALFORMED:
        answer = router.https.post(endpoint.path, asked(mesh, endpoint, members))
        assert (answer.status, answer.error_type) == (400, "invalid_request_error"), members
        assert next(iter(members)) in answer.json["error"]["message"]
        assert router.https.get(f"/v1/aci/receipts/{answer.headers['X-Receipt-Id']}").status == 200
    assert avoided(router) == {"errors": 0, "latency": 0, "one_tenant": 0}


def test_what_the_engine_refuses_at_length_is_refused_in_few_words_and_no_node_is_avoided(
    mesh: RunningMesh, router: Router
) -> None:
    tool = {"name": "a", "input_schema": {"type": "x" * 70_000}}
    repeated = asked(mesh, MESSAGES, {"tools": [tool], "tool_choice": {"type": "any"}})
    for _ in range(2 * BREAKER_FAILURES):
        answer = router.https.post(MESSAGES.path, repeated)
        assert (answer.status, answer.json["error"]["message"]) == (400, "the request was refused")
    assert avoided(router) == {"errors": 0, "latency": 0, "one_tenant": 0}


def test_a_node_whose_engine_fails_on_what_one_tenant_asks_is_avoided_by_that_one_alone(
    mesh: RunningMesh, router: Router
) -> None:
    breaking = asked(mesh, CHAT, {"messages": [NO_REASONING, {"role": "user", "content": "Hi"}]})
    for _ in range(2 * BREAKER_FAILURES):
        assert router.https.post(CHAT.path, breaking).status == 502
    assert avoided(router) == {"errors": 0, "latency": 0, "one_tenant": 1}
    other = replace(router.https, api_key=other_tenants_key(mesh))
    usual = asked(mesh, CHAT, {"max_tokens": 1})
    assert other.post(CHAT.path, usual).status == 200
    assert avoided(router) == {"errors": 0, "latency": 0, "one_tenant": 1}
    # It is the only node, so it is asked all the same.
    assert router.https.post(CHAT.path, usual).status == 200
    assert avoided(router) == {"errors": 0, "latency": 0, "one_tenant": 0}


def test_a_key_to_a_cache_changes_nothing_of_what_the_engine_is_told(mesh: RunningMesh, router: Router) -> None:
    plain = {"max_tokens": 8, "temperature": 0, "store": False, "user": "u", "metadata": {"a": "b"}}
    hinted = {"prompt_cache_key": "of another tenant", "prompt_cache_retention": "24h"}
    answers = [
        router.https.post(CHAT.path, asked(mesh, CHAT, plain | more)) for more in ({}, hinted, hinted, {"user": "v"})
    ]
    assert [answer.status for answer in answers] == [200] * len(answers)
    (said,) = {answer.json["choices"][0]["message"]["content"] for answer in answers}
    assert said
    cached = [answer.json["usage"].get("prompt_tokens_details", {}).get("cached_tokens", 0) for answer in answers]
    assert cached == [0] * len(answers)
