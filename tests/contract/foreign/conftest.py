"""A router, and another mesh's router that is its foreign provider."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.foreign_routers import (
    OtherRouter,
    first_router,
    listing,
    other_router,
)
from tests.fakes.routers import RouterBench


@pytest.fixture
def other_mesh() -> AttestedMesh:
    return AttestedMesh.create(int(time.time()))


@pytest.fixture
async def other(tmp_path: Path, other_mesh: AttestedMesh) -> AsyncIterator[OtherRouter]:
    async with other_router(tmp_path / "other", other_mesh) as running:
        yield running


@pytest.fixture
async def router(tmp_path: Path, other: OtherRouter) -> AsyncIterator[RouterBench]:
    async with first_router(tmp_path / "first", other.mesh, listing(other.mesh, other.origin)) as running:
        yield running
