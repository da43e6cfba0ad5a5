from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.attestation.collateral import CollateralCache
from services.devtee.machine import Machine
from tests.fakes.joined_fixtures import kms, machine, mesh
from tests.fakes.joined_mesh import Clock, JoinedMesh
from tests.fakes.proxied_pccs import Pccs, proxied

__all__ = ["kms", "machine", "mesh"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def pccs(machine: Machine, clock: Clock) -> AsyncIterator[Pccs]:
    async with proxied(machine, clock) as running:
        yield running


@pytest.fixture
def cache(pccs: Pccs, clock: Clock) -> CollateralCache:
    return CollateralCache(pccs.url, 10.0, clock)


@pytest.fixture
def quote(mesh: JoinedMesh) -> bytes:
    return mesh.tds["router"].quote(b"x")
