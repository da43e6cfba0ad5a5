"""Fixtures of folders whose tests need members that join."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.devtee.machine import Machine
from tests.fakes.joined_mesh import JoinedMesh, KmsCore


@pytest.fixture(scope="session")
def machine() -> Machine:
    return Machine.create(int(time.time()))


@pytest.fixture
def mesh(machine: Machine) -> Iterator[JoinedMesh]:
    """Its folder is short enough for Unix sockets, which pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="mesh") as folder:
        yield JoinedMesh(Path(folder), machine)


@pytest.fixture
def kms(mesh: JoinedMesh) -> KmsCore:
    return mesh.kms()
