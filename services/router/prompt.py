"""Responsible for reading a prompt request's body: its model, whether it streams, and its ACI constraints (§5.3).

A body without constraints is forwarded byte for byte. One with them is written anew without them, member order and
number texts kept, because they name this router's own sessions and no node may see them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from libs.aci import rewriting
from libs.aci.endpoints import COUNT_TOKENS, EMBEDDINGS, RESPONSES, Endpoint
from libs.aci.json_values import MOST_VALUES, has_more_values
from libs.aci.rewriting import JsonNotRewritable, Number, is_text
from services.router.beginning import beginning_of
from services.router.errors import InvalidRequest, TooManyValues

MAX_MODEL_CHARACTERS = 256

_SESSION_ID = re.compile(r"[0-9a-f]{64}")
_ACI_MEMBERS = ("aci_verified", "aci_session_ids")
_KEPT_ELSEWHERE = ("previous_response_id", "conversation", "prompt")
"""What a request to /v1/responses may name that lies with a service."""
_BOUNDS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_MANY = 10**12
"""What is more is as much as this: it is more than any answer."""


class BoundMalformed(InvalidRequest):
    """How much is asked for is no whole number in digits: engines read other forms of one, each in its own way."""

    reason = "BOUND_MALFORMED"


@dataclass(frozen=True, slots=True)
class Constraints:
    """What the client demands of whoever serves. Pinned sessions imply `verified`."""

    verified: bool = False
    session_ids: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request body, judged. `forwarded` is what the node gets and what `request.forwarded` hashes."""

    model: str
    stream: bool
    constraints: Constraints
    forwarded: bytes
    beginning: bytes = field(default=b"", repr=False)
    """What all turns of one conversation begin with; empty where nothing is known of that. It MUST NOT be logged."""
    most_completion: int | None = None
    """How many tokens each completion may have, as the body bounds it; None: it does not."""
    completions: int = 1
    """How many it asks for."""


def parse(body: bytes, endpoint: Endpoint) -> Prompt:
    """Read a prompt request: its JSON, then its constraints, then the rest. Raises `InvalidRequest`, of which
    `BoundMalformed` is one.

    A body with many values MUST be read beside the event loop, one at a time (`Reading`).
    """
    members = _load(body)
    constraints = _constraints(members)
    if "cache_salt" in members:
        raise InvalidRequest("cache_salt is set by the service for each tenant and cannot be chosen by a client")
    if endpoint == RESPONSES:
        _require_nothing_kept(members)
    return Prompt(
        _model(members),
        _stream(members),
        constraints,
        _strip(body, members),
        beginning_of(members),
        _most_completion(members),
        0 if endpoint in (EMBEDDINGS, COUNT_TOKENS) else _completions(members),
    )


def strip(body: bytes) -> bytes:
    """Return the body without `provider.aci_verified` and `provider.aci_session_ids`, untouched when it has neither.

    A `provider` that this leaves empty goes too. Raises `InvalidRequest` when the body is not a JSON object.
    """
    return _strip(body, _load(body))


def readdress(body: bytes, endpoint: Endpoint, model: str, demands: Mapping[str, Any] | None = None) -> bytes:
    """Return the body for a provider that knows the model as `model`, with `demands` put into its `provider` member,
    and at /v1/responses with `store: false`: whoever leaves that out is remembered there.

    All else stays as it was written, number texts included; a body that already says all this is returned untouched.
    """
    members = _load(body)
    is_kept = endpoint == RESPONSES and members.get("store") is not False
    if members["model"] == model and demands is None and not is_kept:
        return body
    rewritten = {**members, "model": model}
    if is_kept:
        rewritten["store"] = False
    if demands is not None:
        # A body that is forwarded has passed `parse`: its `provider` is an object, null or absent.
        rewritten["provider"] = {**(members.get("provider") or {}), **demands}
    return _written(rewritten)


def _strip(body: bytes, members: dict[str, Any]) -> bytes:
    provider = members.get("provider")
    if not isinstance(provider, dict) or not any(name in provider for name in _ACI_MEMBERS):
        return body
    kept = {name: value for name, value in provider.items() if name not in _ACI_MEMBERS}
    rewritten = {name: kept if name == "provider" else value for name, value in members.items()}
    if not kept:
        del rewritten["provider"]
    return _written(rewritten)


def _written(members: Mapping[str, Any]) -> bytes:
    try:
        return rewriting.dumps(dict(members))
    except JsonNotRewritable as error:
        raise InvalidRequest("invalid json: the body is nested too deeply") from error


def _load(body: bytes) -> dict[str, Any]:
    if has_more_values(body, MOST_VALUES):
        raise TooManyValues(f"the body has more than {MOST_VALUES} JSON values")
    try:
        value = rewriting.loads(body)
    except JsonNotRewritable as error:
        raise InvalidRequest("invalid json: the body must be one UTF-8 JSON object without repeated names") from error
    if not isinstance(value, dict):
        raise InvalidRequest("invalid json: the body must be an object")
    return value


def _constraints(members: dict[str, Any]) -> Constraints:
    provider = members.get("provider")
    if provider is None:
        return Constraints()
    if not isinstance(provider, dict):
        raise InvalidRequest("provider must be an object")
    verified = provider.get("aci_verified", False)
    if not isinstance(verified, bool):
        raise InvalidRequest("provider.aci_verified must be true or false")
    session_ids = _session_ids(provider["aci_session_ids"]) if "aci_session_ids" in provider else None
    if any(name.startswith("aci_") and name not in _ACI_MEMBERS for name in provider):
        raise InvalidRequest("provider has an aci_ member that this version does not define")
    if session_ids is not None and "aci_verified" in provider and not verified:
        raise InvalidRequest("provider.aci_session_ids cannot be combined with aci_verified: false")
    return Constraints(verified or session_ids is not None, session_ids)


def _require_nothing_kept(members: dict[str, Any]) -> None:
    """Refuse what rests on what a service keeps of earlier requests, or has it keep this one. Raises `InvalidRequest`.

    Nobody here keeps a prompt or an answer once it was given.
    """
    named = [name for name in _KEPT_ELSEWHERE if members.get(name) is not None]
    if named:
        raise InvalidRequest(f"{named[0]} names what this service does not keep: send the whole conversation")
    for name in ("store", "background"):
        if members.get(name) not in (None, False):
            raise InvalidRequest(f"{name} must be false: this service keeps no response")


def _session_ids(value: object) -> frozenset[str]:
    if not isinstance(value, list) or not value:
        raise InvalidRequest("provider.aci_session_ids must be a non-empty array")
    # A number is a str here, so that its text survives; it is no session id, though 64 digits look like one.
    if not all(is_text(item) and _SESSION_ID.fullmatch(item) for item in value):
        raise InvalidRequest("provider.aci_session_ids must hold ids of 64 lower-case hex digits")
    return frozenset(value)


def _model(members: dict[str, Any]) -> str:
    model = members.get("model")
    if not is_text(model) or not model:
        raise InvalidRequest("model must be the id of a model, see GET /v1/models")
    # It goes into receipts and logs, which have no room for lone surrogates or control characters.
    if len(model) > MAX_MODEL_CHARACTERS or not model.isprintable():
        raise InvalidRequest(f"model must be at most {MAX_MODEL_CHARACTERS} printable characters")
    return model


def _stream(members: dict[str, Any]) -> bool:
    stream = members.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("stream must be true or false")
    return stream is True


def _most_completion(members: dict[str, Any]) -> int | None:
    bounds = [number for name in _BOUNDS if (number := _number(members, name)) is not None]
    # Engines differ in which they go by.
    return max(bounds, default=None)


def _completions(members: dict[str, Any]) -> int:
    prompts = members.get("prompt")
    # Of a list of token ids there is one prompt, of a list of texts or of such lists as many as it has.
    many = isinstance(prompts, list) and any(is_text(each) or isinstance(each, list) for each in prompts)
    choices = max(_number(members, "n") or 1, _number(members, "best_of") or 1)
    return min(choices * (len(prompts) if many and prompts else 1), _MANY)


def _number(members: dict[str, Any], name: str) -> int | None:
    """Return a count; None where there is none. Raises `BoundMalformed`."""
    value = members.get(name)
    if value is None:
        return None
    if not isinstance(value, Number) or not value.isdigit():
        raise BoundMalformed(f"{name} must be a whole number, written in digits alone, or left out")
    return min(int(value), _MANY) if len(value) <= len(str(_MANY)) else _MANY
