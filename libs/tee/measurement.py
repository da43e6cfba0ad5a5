"""Responsible for measurements: what identifies code, system and machine shape, and the sets that policy allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from libs.errors import Code, MeshError
from libs.tee.rules import FOREVER
from libs.tee.steps import Note


class MeasurementNotAllowed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "MEASUREMENT_NOT_ALLOWED"


class MeasurementRevoked(MeshError):
    """Operators have withdrawn the application since policy allowed it."""

    code = Code.PERMISSION_DENIED
    reason = "MEASUREMENT_REVOKED"


class Measured(Protocol):
    """Values that are compared together, by name, in lower-case hex."""

    @property
    def compose_hash(self) -> str: ...

    def to_json(self) -> Mapping[str, str]: ...


M = TypeVar("M", bound=Measured)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What identifies a TD; every member is lower-case hex.

    The eight are compared together: a compose hash on another firmware is another measurement.
    """

    compose_hash: str
    app_id: str
    os_image_hash: str
    # SHA-256 of the payload of the `key-provider` event.
    key_provider: str
    mrtd: str
    rtmr0: str
    rtmr1: str
    rtmr2: str

    def to_json(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class MeasurementSet(Generic[M]):
    """A rule: the measurement is one of these. An empty set allows nothing."""

    allowed: frozenset[M]
    # Compose hashes, whatever they run on: allowed or not, they are refused.
    revoked: frozenset[str] = frozenset()

    def holds_until(self, facts: M, now: int, note: Note) -> int:
        found = facts.to_json()
        nearest = self._nearest(found)
        for name, value in found.items():
            note(name, value, "nothing" if nearest is None else nearest[name])
        if facts.compose_hash in self.revoked:
            raise MeasurementRevoked(f"compose hash {facts.compose_hash} is revoked")
        if facts in self.allowed:
            return FOREVER
        if nearest is None:
            raise MeasurementNotAllowed("policy allows no measurement here")
        # Name the difference, so that an operator sees what to allow or to rebuild.
        differences = [name for name, value in found.items() if nearest[name] != value]
        raise MeasurementNotAllowed(f"policy does not allow this measurement: {', '.join(differences)}")

    def _nearest(self, found: Mapping[str, str]) -> Mapping[str, str] | None:
        """Return the allowed measurement that differs least."""
        return min(
            (allowed.to_json() for allowed in self.allowed),
            key=lambda allowed: sum(allowed[name] != value for name, value in found.items()),
            default=None,
        )
