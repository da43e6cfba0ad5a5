"""Responsible for the measurement event log: its entries, the digests of runtime events, and replay."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha384

RUNTIME_EVENT = 0x08000001
RUNTIME_REGISTER = 3


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the log."""

    imr: int
    event_type: int
    digest: bytes
    name: str = ""
    payload: bytes = b""

    def to_json(self) -> dict[str, int | str]:
        return {
            "imr": self.imr,
            "event_type": self.event_type,
            "digest": self.digest.hex(),
            "event": self.name,
            "event_payload": self.payload.hex(),
        }


def runtime_event(name: str, payload: bytes) -> Event:
    """A version 1 runtime event: what RTMR3 is extended with.

    The digest has no length prefixes, so a name MUST NOT hold a colon; callers that take names from others check it.
    """
    digest = sha384(struct.pack("<I", RUNTIME_EVENT) + b":" + name.encode() + b":" + payload).digest()
    return Event(RUNTIME_REGISTER, RUNTIME_EVENT, digest, name, payload)


def replay(events: Iterable[Event], imr: int) -> bytes:
    """The value that register `imr` has after these events."""
    register = bytes(48)
    for event in events:
        if event.imr == imr:
            register = sha384(register + event.digest).digest()
    return register
