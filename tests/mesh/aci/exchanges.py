"""Prompts, answers and the receipts over them: one of each kind, made when first asked for and kept for all tests."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.mesh.aci import reader
from tests.mesh.aci.provider import ANSWER, EVENTS
from tests.mesh.aci.stage import PLAIN_MODEL, RENAMED_MODEL, UNPROVEN_MODEL, Stage, Tenant
from tests.mesh.aci.wire import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Answer, Headers

MARKER = "prompt-marker-7c1f"
"""Part of every prompt here: it must turn up nowhere else."""
STREAMED = (
    b'data: {"id":"chatcmpl-streamed","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}'
    b"\n\n"
)
FINISHED = (
    b'data: {"id":"chatcmpl-streamed","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},'
    b'"finish_reason":"stop"}]}\n\n'
)
DONE = b"data: [DONE]\n\n"
_LONGEST = {RESPONSES: "max_output_tokens"}
"""What bounds an answer, where it is not `max_tokens`."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request as it was sent, its answer as it came, and the receipt."""

    endpoint: str
    request: bytes
    answer: Answer
    receipt: dict[str, Any]
    ended_at: float


def prompt(endpoint: str, model: str, text: str = MARKER, **members: Any) -> bytes:
    """A body in the shape of the endpoint's API."""
    asked: dict[str, Any] = {"model": model}
    if endpoint in (CHAT, MESSAGES):
        asked["messages"] = [{"role": "user", "content": text}]
    elif endpoint == COMPLETIONS:
        asked["prompt"] = text
    else:
        asked["input"] = text
    longest = {} if endpoint == EMBEDDINGS else {_LONGEST.get(endpoint, "max_tokens"): 3}
    return json.dumps(asked | longest | members).encode()


def constrained(model: str, provider: Any, **members: Any) -> bytes:
    """A chat request with this `provider` member (section 5.3)."""
    return prompt(CHAT, model, provider=provider, **members)


def exchange(stage: Stage, endpoint: str, body: bytes, tenant: Tenant, headers: Headers = ()) -> Exchange:
    """Send a prompt and fetch its receipt."""
    answer = stage.router.post(endpoint, body, key=tenant.key, headers=headers)
    ended_at = time.time()
    fetched = stage.router.receipt(answer.receipt_id, tenant.key)
    assert fetched.status == 200
    return Exchange(endpoint, body, answer, reader.parse(fetched.body), ended_at)


def current_session(stage: Stage) -> str:
    """The session under which the mesh's node can be cited now."""
    (session,) = stage.router.get(f"/v1/aci/sessions?model={stage.model}").json["sessions"]
    return str(session["session_id"])


class Exchanges:
    """One exchange of each kind."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._made: dict[str, Exchange] = {}

    def __getitem__(self, kind: str) -> Exchange:
        if kind not in self._made:
            self._made[kind] = _KINDS[kind](self._stage)
            assert self._made[kind].answer.status == STATUSES[kind]
        return self._made[kind]


def _by_node(endpoint: str, *, stream: bool) -> Callable[[Stage], Exchange]:
    return lambda stage: exchange(stage, endpoint, prompt(endpoint, stage.model, stream=stream), stage.owner)


def _pinned(stage: Stage) -> Exchange:
    body = constrained(stage.model, {"aci_session_ids": [current_session(stage)]})
    return exchange(stage, CHAT, body, stage.owner)


def _verified(stage: Stage) -> Exchange:
    return exchange(stage, CHAT, constrained(stage.model, {"aci_verified": True}), stage.owner)


def _pin_unknown(stage: Stage) -> Exchange:
    return exchange(stage, CHAT, constrained(stage.model, {"aci_session_ids": ["ab" * 32]}), stage.owner)


def _unverifiable(stage: Stage) -> Exchange:
    return exchange(stage, CHAT, constrained(UNPROVEN_MODEL, {"aci_verified": True}), stage.guest)


def _malformed(stage: Stage) -> Exchange:
    return exchange(stage, CHAT, b'{"model": "', stage.owner)


def _model_unknown(stage: Stage) -> Exchange:
    return exchange(stage, CHAT, prompt(CHAT, "no-such-model"), stage.owner)


def _unverified(stage: Stage) -> Exchange:
    stage.provider.answers(ANSWER)
    return exchange(stage, CHAT, prompt(CHAT, PLAIN_MODEL), stage.guest)


def _renamed(stage: Stage) -> Exchange:
    stage.provider.answers(ANSWER)
    return exchange(stage, CHAT, prompt(CHAT, RENAMED_MODEL), stage.guest)


def _unverified_stream(stage: Stage) -> Exchange:
    stage.provider.answers(STREAMED, FINISHED, DONE, content_type=EVENTS)
    return exchange(stage, CHAT, prompt(CHAT, PLAIN_MODEL, stream=True), stage.guest)


_KINDS: Mapping[str, Callable[[Stage], Exchange]] = {
    "chat": _by_node(CHAT, stream=False),
    "streamed chat": _by_node(CHAT, stream=True),
    "completion": _by_node(COMPLETIONS, stream=False),
    "streamed completion": _by_node(COMPLETIONS, stream=True),
    "embedding": _by_node(EMBEDDINGS, stream=False),
    "message": _by_node(MESSAGES, stream=False),
    "streamed message": _by_node(MESSAGES, stream=True),
    "response": _by_node(RESPONSES, stream=False),
    "streamed response": _by_node(RESPONSES, stream=True),
    "verified": _verified,
    "pinned": _pinned,
    "unverified": _unverified,
    "unverified stream": _unverified_stream,
    "renamed": _renamed,
    "malformed": _malformed,
    "unknown model": _model_unknown,
    "unknown pin": _pin_unknown,
    "unverifiable": _unverifiable,
}
STATUSES = dict.fromkeys(_KINDS, 200) | {
    "malformed": 400,
    "unknown model": 404,
    "unknown pin": 412,
    "unverifiable": 503,
}
ALL = tuple(_KINDS)
BY_NODE = (
    *("chat", "streamed chat", "completion", "streamed completion", "embedding"),
    *("message", "streamed message", "response", "streamed response", "verified", "pinned"),
)
BY_PROVIDER = ("unverified", "unverified stream", "renamed")
SERVED = (*BY_NODE, *BY_PROVIDER)
REFUSED = ("malformed", "unknown model", "unknown pin", "unverifiable")
STREAMS = ("streamed chat", "streamed completion", "streamed message", "streamed response", "unverified stream")
