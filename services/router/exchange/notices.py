"""It is responsible for what an answer says of itself that its end, its receipt or its cost rest on: of a whole answer,
and of each event of a stream. Each is read once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from libs.aci import sse
from libs.aci.json_values import has_more_values
from libs.aci.sse import Mark, Protocol
from libs.aci.usage import Tokens, tokens_of
from services.router.exchange.volume import text_octets

MOST_VALUES = 1 << 21
"""Of an answer, or of one event: of what has more nothing is known."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a whole answer says."""

    chat_id: str | None = None
    """Its own id."""
    tokens: Tokens = field(default_factory=Tokens)


@dataclass(frozen=True, slots=True)
class Notice:
    """What one event says."""

    mark: Mark
    chat_id: str | None = None
    """The response's own id, if this event carries it."""
    tokens: Tokens = field(default_factory=Tokens)
    sequence_number: int | None = None
    octets: int | None = None
    """How many bytes of text it adds; None: it is no part of an answer."""


def said_by(body: bytes | bytearray, protocol: Protocol) -> Said:
    """Read a whole answer. Of many values that takes long."""
    members = None if has_more_values(body, MOST_VALUES) else sse.object_of(body)
    return Said() if members is None else Said(sse.id_of(members, protocol), tokens_of(members, protocol))


def notice(raw: bytes, protocol: Protocol) -> Notice:
    """Read one event. Of many values that takes long."""
    if len(raw) > MOST_VALUES and has_more_values(raw, MOST_VALUES):
        return Notice(Mark.FINISH)  # For all that is known it may be the end.
    event = sse.parse_event(raw)
    members = event.json()
    mark = sse.mark_of(event, members, protocol)
    if members is None:
        return Notice(mark)
    number = members.get("sequence_number") if protocol is Protocol.RESPONSES else None
    return Notice(
        mark,
        sse.id_of(members, protocol),
        tokens_of(members, protocol),
        number if isinstance(number, int) else None,
        text_octets(members),
    )
