"""Responsible for reading a prompt request's body: its model, whether it streams, and its ACI constraints (§5.3).

A body without constraints is forwarded byte for byte. One with them is written anew without them, member order and
number texts kept, because they name this router's own sessions and no node may see them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

from services.router.errors import InvalidRequest

MAX_MODEL_CHARACTERS = 256

_SESSION_ID = re.compile(r"[0-9a-f]{64}")
_ACI_MEMBERS = ("aci_verified", "aci_session_ids")


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


class _Number(str):
    """A number as it was written: rewriting a body must not round what it carries."""

    __slots__ = ()


def parse(body: bytes) -> Prompt:
    """Read a prompt request: its JSON, then its constraints, then the rest. Raises `InvalidRequest`."""
    members = _load(body)
    constraints = _constraints(members)
    if "cache_salt" in members:
        raise InvalidRequest("cache_salt is set by the service for each tenant and cannot be chosen by a client")
    return Prompt(_model(members), _stream(members), constraints, _strip(body, members))


def strip(body: bytes) -> bytes:
    """Return the body without `provider.aci_verified` and `provider.aci_session_ids`, untouched when it has neither.

    A `provider` that this leaves empty goes too. Raises `InvalidRequest` when the body is not a JSON object.
    """
    return _strip(body, _load(body))


def readdress(body: bytes, model: str, demands: Mapping[str, Any] | None = None) -> bytes:
    """Return the body for a provider that knows the model as `model`, with `demands` put into its `provider` member.

    All else stays as it was written, number texts included; a body that already says all this is returned untouched.
    """
    members = _load(body)
    if members["model"] == model and demands is None:
        return body
    rewritten = {**members, "model": model}
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
    parts: list[str] = []
    try:
        _write(dict(members), parts)
    except RecursionError as error:
        raise InvalidRequest("invalid json: the body is nested too deeply") from error
    return "".join(parts).encode("ascii")


def _load(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique_names,
            parse_int=_Number,
            parse_float=_Number,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        # The parser's own words could quote the prompt.
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


def _session_ids(value: object) -> frozenset[str]:
    if not isinstance(value, list) or not value:
        raise InvalidRequest("provider.aci_session_ids must be a non-empty array")
    # A number is a str here, so that its text survives; it is no session id, though 64 digits look like one.
    if not all(_is_text(item) and _SESSION_ID.fullmatch(item) for item in value):
        raise InvalidRequest("provider.aci_session_ids must hold ids of 64 lower-case hex digits")
    return frozenset(value)


def _model(members: dict[str, Any]) -> str:
    model = members.get("model")
    if not _is_text(model) or not model:
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


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and not isinstance(value, _Number)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two members of one name a node could read the other one.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name is repeated")
    return members


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _write(value: Any, parts: list[str]) -> None:
    """Append the compact text. Plain ASCII, so that lone surrogates stay the escapes they came as."""
    if isinstance(value, _Number):
        parts.append(str(value))
    elif isinstance(value, dict):
        parts.append("{")
        for position, (name, member) in enumerate(value.items()):
            parts.append(("," if position else "") + json.dumps(name) + ":")
            _write(member, parts)
        parts.append("}")
    elif isinstance(value, list):
        parts.append("[")
        for position, item in enumerate(value):
            if position:
                parts.append(",")
            _write(item, parts)
        parts.append("]")
    else:
        parts.append(json.dumps(value))
