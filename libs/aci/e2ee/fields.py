"""Responsible for where content stands in requests and answers (e2ee-v2 §5): each place, by its field path.

It visits places and puts there what the visitor returns; what that does, to seal or to open, is the visitor's. Of an
answer nothing else is left but what is named here as saying nothing: engines have ever more members that quote prompt
or answer, and none of these may go out in clear.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from libs.aci.rewriting import Number, is_text
from libs.errors import Code, MeshError

Visit = Callable[[str, Any], Any]
"""Given a field path and the value there, returns what stands there from now on."""

_PARTS = (("text",), ("image_url", "url"), ("input_audio", "data"))
_SAID = ("content", "reasoning", "reasoning_content")
_HEARD = ("data", "transcript")

_SAYS_NOTHING = ("id", "object", "created", "model", "system_fingerprint", "service_tier", "usage")
_CHOICE_SAYS_NOTHING = ("index", "finish_reason")
_MESSAGE_SAYS_NOTHING = ("role",)
_AUDIO_SAYS_NOTHING = ("id", "expires_at")
_ENTRY_SAYS_NOTHING = ("index", "object")


class AnswerNotUnderstood(MeshError):
    """An answer has content where nothing says how it is to be sealed."""

    code = Code.INTERNAL
    reason = "E2EE_ANSWER_NOT_UNDERSTOOD"


def visit_request(members: dict[str, Any], visit: Visit) -> None:
    """Visit the places of a request, in order. What is not in the form that it should have has none."""
    messages = members.get("messages")
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            _visit_content(message, f"messages.{number}.content", visit)
    for name in ("prompt", "input"):
        value = members.get(name)
        if is_text(value):
            members[name] = visit(name, value)
        elif isinstance(value, list):
            # Token ids are among them, too, and pass.
            for number, item in enumerate(value):
                if is_text(item):
                    value[number] = visit(f"{name}.{number}", item)


def visit_answer(members: dict[str, Any], visit: Visit) -> dict[str, Any]:
    """Return an answer, or one event of a streamed one, with each place visited and all else but `_SAYS_NOTHING` left
    out. Raises `AnswerNotUnderstood`.

    A value is visited whatever it is, null apart: a service that says something in another form says it all the same.
    """
    left = _only(members, _SAYS_NOTHING)
    if members.get("choices") is not None:
        left["choices"] = [_choice(choice, f"choices.{place}", visit) for place, choice in _entries(members, "choices")]
    if members.get("data") is not None:
        left["data"] = [_entry(entry, f"data.{place}", visit) for place, entry in _entries(members, "data")]
    return left


def _choice(choice: dict[str, Any], path: str, visit: Visit) -> dict[str, Any]:
    left = _only(choice, _CHOICE_SAYS_NOTHING)
    for name in ("message", "delta"):
        if name in choice:
            left[name] = _message(_object(choice, name), f"{path}.{name}", visit)
    _visit_members(choice, ("text",), path, visit, left)
    return left


def _message(said: dict[str, Any] | None, path: str, visit: Visit) -> dict[str, Any] | None:
    if said is None:
        return None
    left = _only(said, _MESSAGE_SAYS_NOTHING)
    _visit_members(said, _SAID, path, visit, left)
    audio = _object(said, "audio")
    if audio is not None:
        left["audio"] = _only(audio, _AUDIO_SAYS_NOTHING)
        _visit_members(audio, _HEARD, f"{path}.audio", visit, left["audio"])
    return left


def _entry(entry: dict[str, Any], path: str, visit: Visit) -> dict[str, Any]:
    left = _only(entry, _ENTRY_SAYS_NOTHING)
    _visit_members(entry, ("embedding",), path, visit, left)
    return left


def _visit_content(message: dict[str, Any], path: str, visit: Visit) -> None:
    content = message.get("content")
    if is_text(content):
        message["content"] = visit(path, content)
    elif isinstance(content, list):
        for number, part in enumerate(content):
            for names in _PARTS:
                holder = part
                for name in names[:-1]:
                    holder = holder.get(name) if isinstance(holder, dict) else None
                if isinstance(holder, dict) and is_text(value := holder.get(names[-1])):
                    holder[names[-1]] = visit(".".join((path, str(number), *names)), value)


def _only(members: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if name in names}


def _visit_members(
    holder: dict[str, Any], names: Collection[str], path: str, visit: Visit, left: dict[str, Any]
) -> None:
    for name in names:
        if name in holder:
            value = holder[name]
            left[name] = None if value is None else visit(f"{path}.{name}", value)


def _entries(members: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of a list, each under its own index where it has one, else under its position."""
    entries = members[name]
    if not isinstance(entries, list):
        raise AnswerNotUnderstood(f"{name} is not a list")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise AnswerNotUnderstood(f"an entry of {name} is not an object")
        index = entry.get("index")
        yield str(index) if isinstance(index, Number) else str(position), entry


def _object(holder: dict[str, Any], name: str) -> dict[str, Any] | None:
    value = holder.get(name)
    if value is not None and not isinstance(value, dict):
        raise AnswerNotUnderstood(f"{name} is not an object")
    return value
