"""It is responsible for how an engine that needs help is asked for the call of a tool that a client demands.

llama.cpp takes a `tool_choice` that names a tool for "auto", and answers in words; of Anthropic's form it reads that
some tool is to be called, and not which. So it is shown the named tool alone and told that a call is required, which it
heeds: nothing else can be called then. It lets the model say whatever it likes before the call, and a small one never
comes to it. So the answer is begun with the opening of a call; by its grammar the engine then ends it as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Calling:
    """The help that an engine needs which heeds no names."""

    opening: str | None = None
    """What an answer is begun with where a call is demanded; None: the model begins it."""

    def ask(self, body: bytes, members: Mapping[str, Any], protocol: Protocol) -> bytes:
        """Return the body as the engine is to be asked; untouched where no call is demanded. `members` are the body's.
        Raises `ToolChoiceRefused` or `BodyRefused`.
        """
        choice = members.get("tool_choice")
        changes: dict[str, Any] = {}
        if isinstance(choice, dict) and not (protocol is Protocol.MESSAGES and _kind(choice) in _HEEDED):
            changes = _alone(choice, members.get("tools"), protocol)
        elif not _is_required(choice, protocol):
            return body
        if self.opening is not None:
            changes |= _begun(members, protocol, self.opening)
        if not changes:
            return body
        try:
            return rewriting.dumps({**members, **changes})
        except JsonNotRewritable as error:
            raise BodyRefused("the body is nested too deeply") from error


def _is_required(choice: object, protocol: Protocol) -> bool:
    if protocol is Protocol.MESSAGES:
        return isinstance(choice, dict) and _kind(choice) == "any"
    return choice == "required"


def _alone(choice: Mapping[str, Any], tools: object, protocol: Protocol) -> dict[str, Any]:
    """Return what shows the named tool alone and requires one call. Raises `ToolChoiceRefused`."""
    name = _name(choice, protocol) if _kind(choice) == _NAMING[protocol] else None
    named = [tool for tool in tools if _name(tool, protocol) == name] if isinstance(tools, list) else []
    if not is_text(name) or not named:
        raise ToolChoiceRefused("tool_choice must be a word that is known here, or name one of the tools")
    if protocol is Protocol.MESSAGES:
        required = {**{member: value for member, value in choice.items() if member != "name"}, "type": "any"}
        return {"tools": named, "tool_choice": required}
    return {"tools": named, "tool_choice": "required", "parallel_tool_calls": False}


def _begun(members: Mapping[str, Any], protocol: Protocol, opening: str) -> dict[str, Any]:
    """Return the turns so far, with the answer begun. What is no list of turns is the engine's to refuse, and one that
    its client has begun stays so.
    """
    where = "input" if protocol is Protocol.RESPONSES else "messages"
    turns = members.get(where)
    if protocol is Protocol.RESPONSES and is_text(turns):
        turns = [{"role": "user", "content": turns}]
    if not isinstance(turns, list) or not turns:
        return {}
    last = turns[-1]
    if isinstance(last, dict) and last.get("role") == "assistant":
        return {}
    begun = {"role": "assistant", "content": opening}
    return {where: [*turns, {"type": "message", **begun} if protocol is Protocol.RESPONSES else begun]}


def _kind(choice: Mapping[str, Any]) -> str | None:
    kind = choice.get("type")
    return kind if is_text(kind) else None


def _name(value: object, protocol: Protocol) -> object:
    """Return what a tool, or a choice of one, is called; None where it has no name."""
    if protocol is Protocol.CHAT:
        value = value.get("function") if isinstance(value, dict) else None
    return value.get("name") if isinstance(value, dict) else None
