from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.https_router import RouterTwin, serving


@pytest.fixture
def mesh() -> AttestedMesh:
    return AttestedMesh.create(int(time.time()))


@pytest.fixture
async def router(mesh: AttestedMesh, tmp_path: Path) -> AsyncIterator[RouterTwin]:
    twin = RouterTwin(mesh)
    async with serving(twin, tmp_path):
        yield twin
