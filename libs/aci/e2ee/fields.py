"""Responsible for where content stands in requests and answers (e2ee-v2 §5): each place, by its field path.

It visits places and puts there what the visitor returns; what that does, to seal or to open, is the visitor's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from libs.aci.rewriting import Number, is_text
from libs.errors import Code, MeshError

Visit = Callable[[str, Any], Any]
"""Given a field path and the value there, returns what stands there from now on."""

_PARTS = (("text",), ("image_url", "url"), ("input_audio", "data"))
_CHOICE_HOLDERS = ("message", "delta")
_SAID = ("content", "reasoning", "reasoning_content")


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


def visit_answer(members: dict[str, Any], visit: Visit) -> None:
    """Visit the places of an answer, or of one event of a streamed one. Raises `AnswerNotUnderstood`.

    A value is visited whatever it is, null apart: a service that says something in another form says it all the same.
    """
    for position, choice in _entries(members, "choices"):
        for holder in _CHOICE_HOLDERS:
            said = _object(choice, holder)
            for name in _SAID:
                _visit_member(said, name, f"choices.{position}.{holder}.{name}", visit)
            _visit_member(_object(said, "audio"), "data", f"choices.{position}.{holder}.audio.data", visit)
        _visit_member(choice, "text", f"choices.{position}.text", visit)
    for position, entry in _entries(members, "data"):
        _visit_member(entry, "embedding", f"data.{position}.embedding", visit)


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


def _visit_member(holder: dict[str, Any], name: str, path: str, visit: Visit) -> None:
    value = holder.get(name)
    if value is not None:
        holder[name] = visit(path, value)


def _entries(members: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of a list, each under its own index where it has one, else under its position."""
    entries = members.get(name)
    if entries is None:
        return
    if not isinstance(entries, list):
        raise AnswerNotUnderstood(f"{name} is not a list")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise AnswerNotUnderstood(f"an entry of {name} is not an object")
        index = entry.get("index")
        yield str(index) if isinstance(index, Number) else str(position), entry


def _object(holder: dict[str, Any], name: str) -> dict[str, Any]:
    value = holder.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise AnswerNotUnderstood(f"{name} is not an object")
    return value
