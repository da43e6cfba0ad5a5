"""It is responsible for how many sequences a request is: each of them, not the request, takes a place of the engine's.

Every prompt of a list is one, as often as choices are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libs.aci.endpoints import COMPLETIONS, EMBEDDINGS, Endpoint
from libs.aci.rewriting import Number

MOST_SEQUENCES = 1024
"""Of one request, however many places the engine has."""

_LISTED: Mapping[Endpoint, str] = {COMPLETIONS: "prompt", EMBEDDINGS: "input"}
"""The member that may be a list of prompts. Elsewhere a list is one conversation."""
_CHOICES = ("n", "best_of")


def sequences_of(members: Mapping[str, Any], endpoint: Endpoint) -> int:
    """Return how many the body's are there. Its choices MUST have been found to be whole numbers or none."""
    choices = [int(value) for name in _CHOICES if isinstance(value := members.get(name), Number)]
    listed = members.get(_LISTED[endpoint]) if endpoint in _LISTED else None
    return max([1, *choices]) * _prompts(listed)


def _prompts(value: object) -> int:
    """Token ids beside each other are one prompt; each text, and each list of ids, is one."""
    if not isinstance(value, list):
        return 1
    return max(1, sum(not isinstance(each, Number) for each in value))
