"""It is responsible for a `tool_choice` that names one tool, where the engine heeds no names.

llama.cpp takes it for "auto", and answers in words; of Anthropic's form it reads that some tool is to be called, and
not which. It does heed that a call is required. So it is shown the named tool alone and told that: nobody else can be
called then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libs.aci import rewriting
from libs.aci.rewriting import JsonNotRewritable, is_text
from libs.aci.sse import Protocol
from services.node.refused import BodyRefused

_NAMING = {Protocol.CHAT: "function", Protocol.RESPONSES: "function", Protocol.MESSAGES: "tool"}
"""The `type` of a choice that names a tool."""
_HEEDED = frozenset({"any", "auto", "none"})
"""Of Anthropic's choices, which are objects, those that name none."""


class ToolChoiceRefused(BodyRefused):
    """The choice is of a kind that the engine would not heed, or of a tool that is not there."""

    reason = "TOOL_CHOICE_REFUSED"


def shown_alone(body: bytes, members: Mapping[str, Any], protocol: Protocol) -> bytes:
    """Return the body with the tool that its choice names as the only one, and a call required; untouched where it
    names none. `members` are the body's. Raises `ToolChoiceRefused` or `BodyRefused`.
    """
    choice = members.get("tool_choice")
    if not isinstance(choice, dict) or (protocol is Protocol.MESSAGES and _kind(choice) in _HEEDED):
        return body
    name = _name(choice, protocol) if _kind(choice) == _NAMING[protocol] else None
    tools = members.get("tools")
    named = [tool for tool in tools if _name(tool, protocol) == name] if isinstance(tools, list) else []
    if not is_text(name) or not named:
        raise ToolChoiceRefused("tool_choice must be a word that is known here, or name one of the tools")
    required = _required(choice, protocol)
    try:
        return rewriting.dumps({**members, "tools": named, "tool_choice": required})
    except JsonNotRewritable as error:
        raise BodyRefused("the body is nested too deeply") from error


def _kind(choice: Mapping[str, Any]) -> str | None:
    kind = choice.get("type")
    return kind if is_text(kind) else None


def _name(value: object, protocol: Protocol) -> object:
    """Return what a tool, or a choice of one, is called; None where it has no name."""
    if protocol is Protocol.CHAT:
        value = value.get("function") if isinstance(value, dict) else None
    return value.get("name") if isinstance(value, dict) else None


def _required(choice: Mapping[str, Any], protocol: Protocol) -> object:
    if protocol is not Protocol.MESSAGES:
        return "required"
    return {**{member: value for member, value in choice.items() if member != "name"}, "type": "any"}
