"""Routers among behaving twins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.joined_fixtures import kms, machine, mesh
from tests.fakes.routers import RouterBench, router_bench

__all__ = ["bench", "kms", "machine", "mesh", "two_nodes"]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[RouterBench]:
    """One node."""
    async with router_bench(tmp_path) as running:
        yield running


@pytest.fixture
async def two_nodes(tmp_path: Path) -> AsyncIterator[RouterBench]:
    async with router_bench(tmp_path, nodes=2) as running:
        yield running
