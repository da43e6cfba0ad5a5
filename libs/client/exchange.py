"""Responsible for one exchange as the client saw it: the exact request, the hash of the exact response, and when."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from libs.errors import Code, MeshError


class ReceiptNotNamed(MeshError):
    """The response names no receipt, so nothing about it can be proven."""

    code = Code.NOT_FOUND
    reason = "RECEIPT_NOT_NAMED"


@dataclass(frozen=True, slots=True)
class OpeningKey:
    """What opens the answer to one encrypted request (E2EE v2). Whoever has it and the answer reads it."""

    algo: str
    """Of a suite that is known here."""
    secret: bytes = field(repr=False)
    """The private key that was made for this request alone."""
    nonce: str
    """As `X-E2EE-Nonce` had it."""
    timestamp: int
    """Unix seconds, as `X-E2EE-Timestamp` had it."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its response, whole unless it broke off. Times are in Unix seconds by the client's clock."""

    request: bytes = field(repr=False)
    response_hash: str
    """`sha256:` and hex over the raw body as it came off the wire, stream framing included."""
    receipt_id: str | None
    """As the response named it; unauthenticated."""
    sent_at: float
    received_at: float
    response: bytes | None = field(default=None, repr=False)
    """The raw body itself, where it was to be kept."""
    broken_off: str | None = None
    """The reason why the client could not read the answer to its end, or read nothing in it."""
    opening_key: OpeningKey | None = None
    """Of a request that was encrypted, where the answer was to be kept."""
    sealed_to: str | None = None
    """SHA-256 of the key, hex, to which the answer was to be encrypted; None: nothing was."""


def receipt_segment(receipt_id: str | None) -> str:
    """Return a receipt's id as one segment of a path, whatever a header said. Raises `ReceiptNotNamed`."""
    if receipt_id is None:
        raise ReceiptNotNamed("the response names no receipt")
    if not receipt_id.isascii() or not all(letter.isalnum() or letter in "-_" for letter in receipt_id):
        raise ReceiptNotNamed("the response names its receipt by something that is no id")
    return receipt_id


def chat_body(
    model: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    stream: bool = True,
    max_tokens: int = 64,
    temperature: float = 0,
) -> bytes:
    """Return a chat request that demands verified serving (ACI §5.3), so that anything less is refused."""
    return json.dumps(
        {
            "model": model,
            "messages": [dict(message) for message in messages],
            "stream": stream,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "provider": {"aci_verified": True},
        },
        separators=(",", ":"),
    ).encode()


def delta_text(value: Any) -> str:
    """Return the text that one event of a chat stream adds, given its data; empty when it adds none."""
    return _text(value, "delta")


def message_text(value: Any) -> str:
    """Return the text of a buffered chat response, given its JSON; empty when it holds none."""
    return _text(value, "message")


def _text(value: Any, holder: str) -> str:
    choices = value.get("choices") if isinstance(value, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get(holder) if isinstance(first, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else ""
