"""What a row is: an attack on real listeners and functions that does one thing wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.unit.libs.identity.relays.ground import Ground

Attack = Callable[[Ground], Awaitable[object]]
"""Raises the refusal as a `MeshError`; whatever it returns means that it got through."""


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    """What is presented, in words that no other row has."""
    reason: str
    attack: Attack
