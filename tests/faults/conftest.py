"""One mesh for the faults that it survives, a client of it, and a reader of its whole log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.faults.load import Client, open_client
from tests.faults.log import LogReader, log_reader
from tests.mesh.running import RunningMesh, running_mesh, short_folder


@pytest.fixture(scope="package")
def mesh() -> Iterator[RunningMesh]:
    """One that has recovered from the tests before; whoever needs it whole asks until it is, and fails when it is not.

    What a test finds in the log or in an answer it tells from what others left by what is its own: a receipt's id, the
    policy's successor, the one revocation that there is.
    """
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
