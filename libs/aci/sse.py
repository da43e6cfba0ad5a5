"""Responsible for event streams: splitting bytes into events without changing one, and knowing how each protocol ends.

What is hashed and sent is the raw bytes; parsing serves only to see where a stream ends. Line ends are LF, CRLF or CR,
as the WHATWG event-stream grammar has them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from libs.aci.json_values import FEW_VALUES, weight

DONE = b"data: [DONE]\n\n"

# A CR counts only when no LF follows it, else CRLF would be taken for two line ends.
_LINE_END = rb"(?:\r\n|\n|\r(?!\n))"
_EVENT_END = re.compile(_LINE_END + _LINE_END)
_LINES = re.compile(r"\r\n|\n|\r")


class Protocol(Enum):
    """Whose events a stream carries."""

    CHAT = "chat"
    """OpenAI chat completions and completions."""
    MESSAGES = "messages"
    """Anthropic messages."""
    RESPONSES = "responses"
    """OpenAI responses."""


class Mark(Enum):
    """What an event means for the end of its stream."""

    CONTENT = "content"
    FINISH = "finish"
    """Carries a finish reason; more events may follow."""
    TERMINAL = "terminal"
    """The protocol's last event."""
    ERROR = "error"
    """The server's own report of failure; nothing is added after it."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its exact bytes, its type and its data as a client would see them."""

    raw: bytes
    event: str | None
    data: str

    def json(self) -> dict[str, Any] | None:
        """Return the data as `object_of` reads it."""
        return object_of(self.data)


class EventSplitter:
    """Splits a stream, fed in any chunks, into events whose bytes add up to the stream.

    `tail` holds what has come and is not yet part of a whole event; its owner MUST bound it by `pending`.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    @property
    def tail(self) -> bytes:
        return bytes(self._buffer)

    @property
    def pending(self) -> int:
        """How many bytes the tail has."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that these bytes complete."""
        return [parse_event(raw) for raw in self.split(data)]

    def split(self, data: bytes) -> list[bytes]:
        """Return the bytes of the events that these bytes complete."""
        self._buffer += data
        events: list[bytes] = []
        # A CR at the end may be half of a CRLF: leave it until the next byte is there.
        end = len(self._buffer) - (1 if self._buffer.endswith(b"\r") else 0)
        start = 0
        position = self._searched
        while (match := _EVENT_END.search(self._buffer, position, end)) is not None:
            events.append(bytes(self._buffer[start : match.end()]))
            start = position = match.end()
        del self._buffer[:start]
        # An event's end is at most four bytes long, so what came before the last four needs no second look.
        self._searched = max(0, len(self._buffer) - 4)
        return events

    def take(self) -> bytes:
        """Return the tail and forget it."""
        tail = self.tail
        self._buffer.clear()
        self._searched = 0
        return tail

    def at_boundary(self) -> bool:
        """Say whether an event could begin here."""
        return not self._buffer.strip(b"\r\n")

    def between_events(self) -> bool:
        """Say whether all that came is whole: at a boundary, or one blank line short of dispatching a whole event. Of
        one that takes long to read it says that it is not.
        """
        if self.at_boundary():
            return True
        if not self._buffer.endswith((b"\n", b"\r")) or weight(self._buffer) > FEW_VALUES:
            return False
        pending = parse_event(bytes(self._buffer))
        return not pending.data or pending.data.startswith("[DONE]") or pending.json() is not None


def parse_event(raw: bytes) -> Event:
    """Read one event's fields. Never fails: what is not a field is ignored, as the grammar says."""
    name: str | None = None
    data: list[str] = []
    for line in _LINES.split(raw.decode("utf-8", errors="replace").removeprefix("\ufeff")):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value
    return Event(raw, name, "\n".join(data))


def object_of(text: str | bytes | bytearray) -> dict[str, Any] | None:
    """Read a JSON object for what it says of itself; None for what is none. Of its fractions there is nothing but that
    they are there: embeddings and probabilities have a great many.
    """
    try:
        read = text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass")
        value = _DECODER.decode(read)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _fraction(number: str) -> float:
    """Python code, in which a thread that reads much passes on its turn."""
    return 0.5


_DECODER = json.JSONDecoder(parse_float=_fraction)


def mark(event: Event, protocol: Protocol) -> Mark:
    """Say what the event means for the end of its stream."""
    return mark_of(event, event.json(), protocol)


def mark_of(event: Event, members: dict[str, Any] | None, protocol: Protocol) -> Mark:
    """The same of an event whose data was read."""
    if protocol is Protocol.CHAT and event.data.startswith("[DONE]"):
        return Mark.TERMINAL
    if members is None:
        return Mark.CONTENT
    match protocol:
        case Protocol.CHAT:
            return _mark_chat(members)
        case Protocol.MESSAGES:
            marks = {"message_delta": Mark.FINISH, "message_stop": Mark.TERMINAL, "error": Mark.ERROR}
        case Protocol.RESPONSES:
            marks = {
                "response.completed": Mark.TERMINAL,
                "response.incomplete": Mark.TERMINAL,
                "response.failed": Mark.TERMINAL,
                "response.cancelled": Mark.TERMINAL,
                "error": Mark.ERROR,
            }
    kind = members.get("type", event.event)
    return marks.get(kind, Mark.CONTENT) if isinstance(kind, str) else Mark.CONTENT


def id_of(members: dict[str, Any], protocol: Protocol) -> str | None:
    """Return the id in one JSON object, of a stream's event or a whole response."""
    match protocol:
        case Protocol.CHAT:
            holder: Any = members
        case Protocol.MESSAGES:
            holder = members.get("message", members)
        case Protocol.RESPONSES:
            holder = members.get("response", members)
    value = holder.get("id") if isinstance(holder, dict) else None
    return value if isinstance(value, str) and 0 < len(value) <= 256 and value.isascii() else None


def error_event(protocol: Protocol, error_type: str, message: str, *, status: int, sequence_number: int = 0) -> bytes:
    """Return the protocol's error as stream bytes.

    The two leading line ends dispatch an event that was written and not yet dispatched.
    """
    match protocol:
        case Protocol.CHAT:
            error = {"message": message, "type": error_type, "code": status, "param": None}
            return b"\n\ndata: " + _compact({"error": error}) + b"\n\n" + DONE
        case Protocol.MESSAGES:
            value: dict[str, Any] = {"type": "error", "error": {"type": error_type, "message": message}}
        case Protocol.RESPONSES:
            value = {
                "type": "error",
                "code": "server_error" if error_type == "upstream_error" else error_type,
                "message": message,
                "param": None,
                "sequence_number": sequence_number,
            }
    return b"\n\nevent: error\ndata: " + _compact(value) + b"\n\n"


def _mark_chat(members: dict[str, Any]) -> Mark:
    if members.get("error") is not None:
        return Mark.ERROR
    choices = members.get("choices")
    if isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") is not None for choice in choices
    ):
        return Mark.FINISH
    return Mark.CONTENT


def _compact(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("utf-8")
