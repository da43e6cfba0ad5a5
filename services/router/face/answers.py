"""Responsible for an answer as every face gives it: plain values, and its bytes at once or one after another."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from libs.aci.endpoints import JSON
from libs.aci.sse import Protocol
from services.router.errors import RouterError
from services.router.face.arrivals import Arrival


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client gets."""

    status: int
    content_type: str
    body: bytes | AsyncGenerator[bytes, None]
    """Whoever asks a generator for more says that all before is written; closed early, it knows that it was not."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Beside those that every reply carries."""
    length: int | None = None
    """How many bytes a generator will give, where that is known."""

    @property
    def known_length(self) -> int | None:
        """How many bytes the body has, where that is known."""
        return len(self.body) if isinstance(self.body, bytes) else self.length


Headers = Callable[[], Mapping[str, str]]
"""Returns what every reply carries at this moment."""

Answer = Callable[[Arrival], AbstractAsyncContextManager[Reply]]
"""Answers a request; the reply is good while the context is open.

It raises nothing on entry but cancellation, and on leaving `TimeoutError` if the reply took too long to be written.
"""


def document(body: bytes) -> Reply:
    """Reply with JSON bytes as they are: something of them may be signed."""
    return Reply(200, JSON, body)


def value(members: Mapping[str, object]) -> Reply:
    """Reply with a JSON object."""
    return document(json.dumps(members).encode())


def refusal(error: RouterError, protocol: Protocol = Protocol.CHAT) -> Reply:
    """Reply with an error, as the protocol's clients read it."""
    status, body = error.told(protocol)
    return Reply(status, JSON, body, error.headers)
