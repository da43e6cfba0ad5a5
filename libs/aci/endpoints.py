"""Responsible for where prompts are sent (§5): the one table of endpoints that routers, nodes and clients share.

It is an allow list. Engines answer on paths that nobody has heard of; no prompt reaches one that is not in `SERVED`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from libs.aci.sse import Protocol

JSON = "application/json"
EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path that takes prompts, by POST alone."""

    path: str
    protocol: Protocol
    """Whose events a stream of it carries, and where its answers have their id."""
    streams: bool
    """Whether an answer may be an event stream."""
    e2ee: bool
    """Whether end-to-end encryption (version 2, §5) has fields for it; it refuses the others."""

    @property
    def content_types(self) -> frozenset[str]:
        """The media types that an answer may have."""
        return frozenset({JSON, EVENT_STREAM}) if self.streams else frozenset({JSON})


CHAT = Endpoint("/v1/chat/completions", Protocol.CHAT, streams=True, e2ee=True)
COMPLETIONS = Endpoint("/v1/completions", Protocol.CHAT, streams=True, e2ee=True)
EMBEDDINGS = Endpoint("/v1/embeddings", Protocol.CHAT, streams=False, e2ee=True)
MESSAGES = Endpoint("/v1/messages", Protocol.MESSAGES, streams=True, e2ee=False)
RESPONSES = Endpoint("/v1/responses", Protocol.RESPONSES, streams=True, e2ee=False)

DEFINED = (CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES)
"""What the protocol defines."""

SERVED: Mapping[str, Endpoint] = {endpoint.path: endpoint for endpoint in (CHAT, COMPLETIONS)}
"""What this mesh serves, by path."""
