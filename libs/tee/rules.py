"""Responsible for how rules compose: a rule judges verified facts, and rules combine by `AllOf` and `AnyOf`.

A rule says until when the facts satisfy it, or raises its own refusal. A composition of nothing allows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from libs.errors import Code, MeshError
from libs.tee.steps import Note

Facts = TypeVar("Facts", contravariant=True)
Judged = TypeVar("Judged")

FOREVER = 2**53 - 1
"""Until when something holds that does not depend on time; unix seconds."""


class NothingAllowed(MeshError):
    """Policy has an empty composition here, so nothing satisfies it."""

    code = Code.PERMISSION_DENIED
    reason = "NOTHING_ALLOWED"


class Rule(Protocol[Facts]):
    """A condition on verified facts."""

    def holds_until(self, facts: Facts, now: int, note: Note) -> int:
        """Return until when (unix seconds) the facts satisfy the rule, or raise its refusal."""
        ...


@dataclass(frozen=True, slots=True)
class AllOf(Generic[Judged]):
    """Every rule must hold, for as long as the first of them to end; the first that refuses speaks."""

    rules: tuple[Rule[Judged], ...]

    def holds_until(self, facts: Judged, now: int, note: Note) -> int:
        if not self.rules:
            raise NothingAllowed("policy states no rule here, so nothing is allowed")
        return min(rule.holds_until(facts, now, note) for rule in self.rules)


@dataclass(frozen=True, slots=True)
class AnyOf(Generic[Judged]):
    """One rule must hold, for as long as the last of those that do. Where none does, the first one's refusal counts."""

    rules: tuple[Rule[Judged], ...]

    def holds_until(self, facts: Judged, now: int, note: Note) -> int:
        refusals: list[MeshError] = []
        ends: list[int] = []
        for rule in self.rules:
            try:
                ends.append(rule.holds_until(facts, now, note))
            except MeshError as refusal:
                refusals.append(refusal)
        if ends:
            return max(ends)
        if refusals:
            raise refusals[0]
        raise NothingAllowed("policy lists no alternative here, so nothing is allowed")
