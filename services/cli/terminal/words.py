"""It is responsible for writing evidence's own words so that they cannot steer a terminal or forge a line."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Json = str | int | bool | None | Sequence["Json"] | Mapping[str, "Json"]

_SHOWN_LETTERS = 200
_LAST_MOMENT = 253_402_300_799
"""The end of the year 9999: what is later is no time that anybody meant."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Unix seconds."""

    seconds: int

    def __str__(self) -> str:
        if not 0 <= self.seconds <= _LAST_MOMENT:
            return f"{self.seconds} (no time)"
        return f"{time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime(self.seconds))} ({self.seconds})"


def plain(text: str) -> str:
    """Return text in one line of printable characters; everything else is escaped as in Python source."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def shown(value: Json | Moment) -> str:
    """Return a value as people read it, no longer than a few lines."""
    match value:
        case None:
            text = "none"
        case True | False:
            text = "yes" if value else "no"
        case str():
            text = plain(value)
        case Moment() | int():
            text = str(value)
        case _:
            text = json.dumps(value)
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}... ({len(text)} letters)"
