"""It is responsible for the order in which the instances of one role are asked, and for what their silence means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from libs.errors import Code, MeshError

_AWAY = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED})

T = TypeVar("T")


def is_away(error: MeshError) -> bool:
    """Say whether an error leaves open what another instance would answer."""
    return error.code in _AWAY


def preferred_first(all_of_them: Sequence[T], preferred: T) -> Sequence[T]:
    """Return them with one at the front, the others in their order."""
    return (preferred, *(each for each in all_of_them if each is not preferred))


def telling_most(errors: Sequence[MeshError]) -> MeshError:
    """Return the first refusal among errors, or the first error where all say that somebody is away."""
    return next((error for error in errors if not is_away(error)), errors[0])
