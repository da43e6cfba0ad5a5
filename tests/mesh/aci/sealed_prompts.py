"""Prompts under E2EE v2, and what a service must have made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.mesh.aci import reader
from tests.mesh.aci.exchanges import MARKER
from tests.mesh.aci.provider import EVENTS, Provider
from tests.mesh.aci.sealing import Envelope
from tests.mesh.aci.stage import Stage
from tests.mesh.aci.wire import CHAT, Answer, Headers

RESPONSE_ID = "chatcmpl-sealed"


def compact(value: Any) -> bytes:
    """The serialisation that the receipt is over (e2ee-v2 section 8): members in order, texts as they are."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def chat(envelope: Envelope, content: Any, **members: Any) -> dict[str, Any]:
    return {"model": envelope.model, "messages": [{"role": "user", "content": content}], **members}


def sealed_chat(envelope: Envelope, text: str = MARKER, **members: Any) -> dict[str, Any]:
    return chat(envelope, envelope.seal("messages.0.content", text), **members)


def ask(
    stage: Stage,
    envelope: Envelope,
    body: Mapping[str, Any] | bytes,
    *,
    endpoint: str = CHAT,
    more: Headers = (),
    changed: Mapping[str, str | None] | None = None,
) -> Answer:
    """Send a request under the headers of the protocol, some of them changed."""
    data = body if isinstance(body, bytes) else compact(body)
    headers = [*envelope.headers(changed or {}), *more]
    return stage.router.post(endpoint, data, key=stage.guest.key, headers=headers)


def receipt_of(stage: Stage, answer: Answer) -> dict[str, Any]:
    receipt: dict[str, Any] = reader.parse(stage.router.receipt(answer.receipt_id, stage.guest.key).body)
    return receipt


def answers_with(provider: Provider, *choices: Mapping[str, Any], response_id: str | None = RESPONSE_ID) -> None:
    """Have the provider answer a chat, buffered, with these choices."""
    named = {} if response_id is None else {"id": response_id}
    provider.answers(compact(named | {"object": "chat.completion", "choices": list(choices)}))


def message(text: str, index: int = 0, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    held = {"role": "assistant", "content": text, **(more or {})}
    return {"index": index, "finish_reason": "stop", "message": held}


def streams(provider: Provider, *choices: Mapping[str, Any], kind: str = "chat.completion.chunk") -> None:
    """Have the provider stream these choices, one in each event."""
    events = [
        b"data: " + compact({"id": RESPONSE_ID, "object": kind, "choices": [choice]}) + b"\n\n" for choice in choices
    ]
    provider.answers(*events, b"data: [DONE]\n\n", content_type=EVENTS)


def chunks(answer: Answer) -> Sequence[Mapping[str, Any]]:
    """The JSON of each event of a stream."""
    pieces = [piece.removeprefix(b"data: ") for piece in answer.body.split(b"\n\n")]
    return [json.loads(piece) for piece in pieces if piece.startswith(b"{")]


def require_sealed(answer: Answer, *plaintexts: str) -> None:
    """An answer under the protocol, in which none of these can be read."""
    assert answer.status == 200
    assert answer.header("X-E2EE-Applied") == "true"
    for plaintext in plaintexts:
        assert plaintext.encode() not in answer.body
