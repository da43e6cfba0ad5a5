"""It is responsible for what a conversation begins with, by which its turns are known to belong together.

It is part of a prompt: it MUST NOT be logged, nor be a label, nor leave this process other than as the prompt itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from libs.aci.rewriting import is_text

_MAX_OCTETS = 16 << 10
_MAX_CHARACTERS = 1 << 10


def beginning_of(members: Mapping[str, Any]) -> bytes:
    """Return what stays the same while a conversation goes on: what comes before its first answer, up to 16 KiB of it.

    Of a prompt without messages, which grows at its end, it is the first KiB.
    """
    messages = members.get("messages", members.get("input"))
    if isinstance(messages, list):
        asked = (number for number, message in enumerate(messages, 1) if _is_of_a_user(message))
        # Each is an octet or more: what comes after so many is none of the first.
        most = min(next(asked, len(messages)), _MAX_OCTETS)
        first = [members.get("system"), members.get("instructions"), *messages[:most]]
        try:
            return json.dumps(first, sort_keys=True).encode()[:_MAX_OCTETS]
        except RecursionError:
            return b""  # Nested just so deeply that it could be read; whether it is refused is not decided here.
    text = next((members[name] for name in ("prompt", "input") if is_text(members.get(name))), "")
    return json.dumps(text[:_MAX_CHARACTERS]).encode() if text else b""


def _is_of_a_user(message: object) -> bool:
    return isinstance(message, dict) and message.get("role") == "user"
