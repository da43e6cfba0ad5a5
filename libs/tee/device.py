"""Responsible for which machines policy accepts: each by its own id, or by its CPU family.

A machine's id is SHA-256 of what its CPU alone has: the PPID of the PCK certificate (TDX), the CHIP_ID (SEV-SNP). Its
family is the FMSPC (TDX); or the product (SEV-SNP), lower case, with CPU family and model where the report states them:
`genoa-19-11`. A list may name a product as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from libs.errors import Code, MeshError
from libs.tee.rules import FOREVER, AllOf, AnyOf, Rule
from libs.tee.steps import Note


class DeviceRevoked(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "DEVICE_REVOKED"


class DeviceNotListed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "DEVICE_NOT_LISTED"


class CpuFamilyRevoked(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "CPU_FAMILY_REVOKED"


class CpuFamilyNotListed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "CPU_FAMILY_NOT_LISTED"


@dataclass(frozen=True, slots=True)
class Device:
    """The machine that verified evidence comes from."""

    # Lower-case hex.
    id: str
    family: str


def _covers(whole: str, part: str) -> bool:
    return part == whole or part.startswith(f"{whole}-")


@dataclass(frozen=True, slots=True)
class NotRevoked:
    """A rule: neither the machine nor its family is on these lists."""

    ids: frozenset[str]
    families: frozenset[str]

    def holds_until(self, facts: Device, now: int, note: Note) -> int:
        note("machine", facts.id, "not revoked")
        note("CPU family", facts.family, "not revoked")
        if facts.id in self.ids:
            raise DeviceRevoked(f"machine {facts.id} is revoked")
        # A machine that does not say which model it is may be the one that is revoked.
        if any(_covers(family, facts.family) or _covers(facts.family, family) for family in self.families):
            raise CpuFamilyRevoked(f"CPU family {facts.family} is revoked")
        return FOREVER


@dataclass(frozen=True, slots=True)
class Listed:
    """A rule: the machine is one of these. An empty list allows nothing."""

    ids: frozenset[str]

    def holds_until(self, facts: Device, now: int, note: Note) -> int:
        note("machine", facts.id, self.ids)
        if facts.id not in self.ids:
            raise DeviceNotListed(f"policy lists machines, and {facts.id} is none of them")
        return FOREVER


@dataclass(frozen=True, slots=True)
class FamilyListed:
    """A rule: the machine's CPU family is one of these. An empty list allows nothing."""

    families: frozenset[str]

    def holds_until(self, facts: Device, now: int, note: Note) -> int:
        note("CPU family", facts.family, self.families)
        if not any(_covers(family, facts.family) for family in self.families):
            raise CpuFamilyNotListed(f"policy lists CPU families, and {facts.family} is none of them")
        return FOREVER


@dataclass(frozen=True, slots=True)
class DeviceLists:
    """Policy's lists. Where one of the first two is not empty, a machine must be on either."""

    allowed: frozenset[str] = frozenset()
    revoked: frozenset[str] = frozenset()
    allowed_families: frozenset[str] = frozenset()
    revoked_families: frozenset[str] = frozenset()

    def without(self, ids: frozenset[str], families: frozenset[str]) -> DeviceLists:
        """Return the lists with these machines and families revoked too, allowed or not."""
        return replace(self, revoked=self.revoked | ids, revoked_families=self.revoked_families | families)

    def rule(self) -> Rule[Device]:
        """Compose the lists: not revoked and, where policy lists machines or families, listed."""
        not_revoked = NotRevoked(self.revoked, self.revoked_families)
        lists: list[Rule[Device]] = []
        if self.allowed:
            lists.append(Listed(self.allowed))
        if self.allowed_families:
            lists.append(FamilyListed(self.allowed_families))
        return AllOf((not_revoked, AnyOf(tuple(lists)))) if lists else not_revoked
