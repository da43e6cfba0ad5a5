"""Registries on a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.registries import Mesh, Registry, registry_mesh


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with registry_mesh(tmp_path) as running:
        yield running


@pytest.fixture
async def registry(mesh: Mesh) -> AsyncIterator[Registry]:
    async with mesh.registry() as running:
        yield running
