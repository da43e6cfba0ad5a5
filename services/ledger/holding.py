"""It is responsible for when something counts: as soon as enough members of the log hold it durably."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Holding(Protocol):
    """Who knows what the members hold."""

    def require_writer(self) -> None:
        """Raise what ends this process unless nobody else can have begun to write."""
        ...

    async def held(self) -> None:
        """Return once everything that is written so far counts. Nothing MUST be written meanwhile."""
        ...

    async def share(self, generation: int) -> None:
        """Return once the keyring that is stored, of this generation, counts."""
        ...

    async def forgotten(self) -> None:
        """Return once no member has an older keyring than the one that counts."""
        ...


class Alone:
    """The log is on this machine alone: what is durable here counts."""

    def require_writer(self) -> None:
        return

    async def held(self) -> None:
        return

    async def share(self, generation: int) -> None:
        return

    async def forgotten(self) -> None:
        return


@dataclass(frozen=True, slots=True)
class Term:
    """One writer's time."""

    epoch: int
    """Above that of every frame in the log."""
    holding: Holding
