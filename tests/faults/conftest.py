"""One mesh for the faults that it survives, a client of it, and a reader of its whole log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.faults.load import Client, open_client
from tests.faults.log import LogReader, log_reader
from tests.mesh.running import RunningMesh, running_mesh, short_folder


@pytest.fixture(scope="session")
def mesh() -> Iterator[RunningMesh]:
    with short_folder() as folder, running_mesh(folder) as running:
        yield running


@pytest.fixture
async def client(mesh: RunningMesh) -> AsyncIterator[Client]:
    async with open_client(mesh.mesh) as opened:
        yield opened


@pytest.fixture
async def reader(mesh: RunningMesh) -> AsyncIterator[LogReader]:
    with short_folder() as folder:
        async with log_reader(mesh, folder) as opened:
            yield opened
