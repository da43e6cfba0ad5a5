"""It is responsible for what a client is told where an engine does not serve its request.

Nothing of that is the node's own failure, however the engine says it: what one tenant asks, no other has to answer for.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from libs.aci.endpoints import Endpoint
from libs.aci.error_bodies import as_anthropic, error_body
from libs.aci.sse import Protocol
from services.node.channel import Answer, EngineUnavailable
from services.node.refused import BodyRefused, Refusal
from services.node.requests_fault import RequestsFault

_SUCCESS = 200
_MAX_REFUSAL_BYTES = 64 << 10
_FAILED = "the engine failed to answer this request"
_REFUSED = "the request was refused"


async def refusal_of(answer: Answer, endpoint: Endpoint, faults: Collection[RequestsFault]) -> Refusal | None:
    """Return what is told in place of the answer; None where it is the client's as it is.

    Raises `EngineUnavailable` for what is between the node and its engine, and what the answer's chunks do.
    """
    is_foreign = answer.content_type not in endpoint.content_types
    if answer.status in (401, 403) or (answer.status < 400 and (answer.status != _SUCCESS or is_foreign)):
        # Nothing of it is the model's answer.
        raise EngineUnavailable(f"the engine refuses this node with status {answer.status}")
    if answer.status < 400:
        return None
    if answer.status >= 500:
        told = _told(await _short(answer), faults) if faults else None
        if told is None:
            # The engine's own words may tell of its inside.
            return Refusal(502, error_body("upstream_error", _FAILED, endpoint.protocol))
        return Refusal(BodyRefused.status, error_body(BodyRefused.type, told, endpoint.protocol))
    if is_foreign:
        return Refusal(answer.status, error_body(BodyRefused.type, _REFUSED, endpoint.protocol))
    if endpoint.protocol is Protocol.MESSAGES:
        # Engines speak of it in OpenAI's form here, too.
        return Refusal(answer.status, as_anthropic(await _short(answer)))
    return None


async def _short(answer: Answer) -> bytes:
    """Return the body, and nothing of one that is long: engines repeat in it what they were asked."""
    body = b""
    async for chunk in answer.chunks:
        body += chunk
        if len(body) > _MAX_REFUSAL_BYTES:
            return b""
    return body


def _told(body: bytes, faults: Collection[RequestsFault]) -> str | None:
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return next((fault.told for fault in faults if isinstance(message, str) and fault.begins.match(message)), None)
