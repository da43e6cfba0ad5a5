"""One development machine for this folder's tests, and a TD on it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from dstack_sdk import AsyncDstackClient

from services.devtee.guest import serving_guest
from services.devtee.machine import InstanceIdentity, Machine, VirtualTd
from services.devtee.methods import GuestMethods

NOW = 1_790_000_000
COMPOSE = b'{"name":"node","teemesh":{"role":"node"}}\n'


@pytest.fixture(scope="session")
def now() -> int:
    return NOW


@pytest.fixture(scope="session")
def machine() -> Machine:
    return Machine.create(NOW)


@pytest.fixture
def td(machine: Machine) -> VirtualTd:
    return machine.boot(COMPOSE, InstanceIdentity.random(), NOW)


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """Short enough for a Unix socket, which pytest's own folders may not be."""
    with tempfile.TemporaryDirectory(prefix="devtee") as folder:
        yield Path(folder) / "guest.sock"


@pytest.fixture
async def guest(td: VirtualTd, socket_path: Path) -> AsyncIterator[AsyncDstackClient]:
    async with (
        serving_guest(socket_path, GuestMethods(td, lambda: NOW)),
        AsyncDstackClient(str(socket_path), timeout=30) as client,
    ):
        yield client
