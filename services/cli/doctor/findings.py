"""It is responsible for the form of a diagnosis: one thing that was looked at, how it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """`remedy` is empty when nothing is wrong."""

    what: str
    detail: str
    remedy: str = ""

    @property
    def sound(self) -> bool:
        return not self.remedy
