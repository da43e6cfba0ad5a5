"""Responsible for where prompts are sent (§5): the one table of endpoints that routers, nodes and clients share.

It is an allow list. Engines answer on paths that nobody has heard of; no prompt reaches one that is not in `SERVED`,
nor one that the node which gets it does not claim to offer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from libs.aci.sse import Protocol

JSON = "application/json"
EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """A path that takes prompts, by POST alone. There is one object for each, which only equals itself: it is looked up
    some fifty times in a request.
    """

    path: str
    protocol: Protocol
    """Whose events a stream of it carries, and where its answers have their id."""
    streams: bool
    """Whether an answer may be an event stream."""
    e2ee: bool
    """Whether end-to-end encryption (version 2, §5) has fields for it; it refuses the others."""
    runs_model: bool = True
    """False where an answer needs the tokenizer alone: no cache of an engine's has a part in it."""

    @property
    def content_types(self) -> frozenset[str]:
        """The media types that an answer may have."""
        return frozenset({JSON, EVENT_STREAM}) if self.streams else frozenset({JSON})


CHAT = Endpoint("/v1/chat/completions", Protocol.CHAT, streams=True, e2ee=True)
COMPLETIONS = Endpoint("/v1/completions", Protocol.CHAT, streams=True, e2ee=True)
EMBEDDINGS = Endpoint("/v1/embeddings", Protocol.CHAT, streams=False, e2ee=True)
MESSAGES = Endpoint("/v1/messages", Protocol.MESSAGES, streams=True, e2ee=False)
COUNT_TOKENS = Endpoint("/v1/messages/count_tokens", Protocol.MESSAGES, streams=False, e2ee=False, runs_model=False)
RESPONSES = Endpoint("/v1/responses", Protocol.RESPONSES, streams=True, e2ee=False)

DEFINED = (CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, COUNT_TOKENS, RESPONSES)
"""What the protocol knows, and what belongs to one of these."""

SERVED: Mapping[str, Endpoint] = {endpoint.path: endpoint for endpoint in DEFINED}
"""What this mesh serves, by path: where a node offers it."""

FIRST = (CHAT, COMPLETIONS)
"""What a node offers whose claims name no endpoints: it was measured before they did."""


def offered(claimed: object) -> frozenset[Endpoint]:
    """Return what a node offers by the member `endpoints` of its claims, None without one: paths of `SERVED`.

    A path that is not known here is passed over, for the node may be newer; what is no list of texts offers nothing.
    """
    if claimed is None:
        return frozenset(FIRST)
    if not isinstance(claimed, list) or not all(isinstance(path, str) for path in claimed):
        return frozenset()
    return frozenset(endpoint for path, endpoint in SERVED.items() if path in claimed)


def protocol_at(path: str) -> Protocol:
    """Return whose clients ask there, so that they can read a refusal, also where nothing is served."""
    endpoint = SERVED.get(path)
    if endpoint is not None:
        return endpoint.protocol
    return Protocol.MESSAGES if path.startswith(MESSAGES.path + "/") else Protocol.CHAT


def paths(endpoints: Collection[Endpoint]) -> list[str]:
    """Return their paths, sorted: as claims name them."""
    return sorted(endpoint.path for endpoint in endpoints)
