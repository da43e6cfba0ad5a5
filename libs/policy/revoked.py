"""It is responsible for what revocations take away from a policy, sorted by where it is looked up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from libs.policy.revocation import Revocation, RevocationKind


@dataclass(frozen=True, slots=True)
class Revoked:
    """Everything that is withdrawn now, in the form in which revocations name it."""

    compose_hashes: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()
    """Ids of machines and UEIDs of GPUs."""
    cpu_families: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    spiffe_ids: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()


NOTHING_REVOKED = Revoked()


def revoked_by(revocations: Iterable[Revocation]) -> Revoked:
    """Return what these revocations withdraw together, whatever their order."""
    values: defaultdict[RevocationKind, set[str]] = defaultdict(set)
    for revocation in revocations:
        values[revocation.kind].add(revocation.value)
    return Revoked(
        compose_hashes=frozenset(values[RevocationKind.MEASUREMENT]),
        devices=frozenset(values[RevocationKind.DEVICE]),
        cpu_families=frozenset(values[RevocationKind.CPU_FAMILY]),
        keys=frozenset(values[RevocationKind.KEY]),
        spiffe_ids=frozenset(values[RevocationKind.NODE]),
        tenants=frozenset(values[RevocationKind.TENANT]),
    )
