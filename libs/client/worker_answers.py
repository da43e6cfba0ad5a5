"""Responsible for what a dstack-vllm-proxy worker's signature over an answer is found and checked by: id and hashes.

Nothing here is believed of an id: it says where the signature is asked for, and which answer that is over, hashes show.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from libs.aci import sse
from libs.aci.json_values import has_more_values
from libs.aci.sse import Protocol

MOST_VALUES = 1 << 20
"""Of a whole answer that is written as the worker does: its values take some 100 MB."""
HEAD_BYTES = 64 << 10
"""Of an answer that is not read: in what it begins with its id stands."""

_ID = re.compile(rb'"id"\s*:\s*"([A-Za-z0-9_-]{1,256})"')


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """What the signature over one answer is found and checked by."""

    answer_id: str | None
    hashes: frozenset[str]
    """SHA-256 of each form in which the worker may have signed it, bare hex."""


def read_whole(body: bytes | bytearray) -> WorkerAnswer:
    """Read an answer that was not streamed. A worker signs the JSON as it writes it, which is not the JSON as it is
    sent; of one with more than `MOST_VALUES` only the latter counts.

    Of many values it takes long: a second for the most, in which it leaves other threads their turn.
    """
    sent = hashlib.sha256(body).hexdigest()
    if has_more_values(body, MOST_VALUES):
        return WorkerAnswer(named_in(body), frozenset({sent}))
    written = hashlib.sha256()
    try:
        value = json.loads(body, parse_float=_float)
        _write(value, lambda text: written.update(text.encode("ascii")))
    except (ValueError, RecursionError):
        return WorkerAnswer(None, frozenset({sent}))
    answer_id = sse.id_of(value, Protocol.CHAT) if isinstance(value, dict) else None
    return WorkerAnswer(answer_id, frozenset({sent, written.hexdigest()}))


def named_in(head: bytes | bytearray) -> str | None:
    """Return the first id in the first `HEAD_BYTES` of an answer, or of a stream of events, without reading them."""
    found = _ID.search(head, 0, HEAD_BYTES)
    return None if found is None else found[1].decode("ascii")


def _float(text: str) -> float:
    """Python code, in which a thread that reads much passes on its turn."""
    return float(text)


def _write(value: Any, write: Callable[[str], object]) -> None:
    """Write a value as `json.dumps` does, piece by piece and in Python: that one keeps its turn until it ends."""
    before = ""
    if isinstance(value, dict):
        write("{")
        for name, member in value.items():
            write(f"{before}{_text(name)}: ")
            _write(member, write)
            before = ", "
        write("}")
    elif isinstance(value, list):
        write("[")
        for item in value:
            write(before)
            _write(item, write)
            before = ", "
        write("]")
    else:
        write(_text(value))


_text = json.JSONEncoder().encode
"""Of a text, number, true, false or null."""
