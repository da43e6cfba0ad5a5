"""The ledger's twenty faults in short: `pytest -k fault_07` runs one and all that belongs to it. Longer: `make faults`.

What tries a running ledger shares one; its log is held against everything that was ever seen of it after each fault.
"""

from __future__ import annotations

import ast
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from services.devtee.machine import Machine
from tests.fakes.joined_mesh import JoinedMesh
from tests.faults.ledger.apart import Apart, quick_folder, trying_apart
from tests.faults.ledger.elsewhere import ROOT
from tests.faults.ledger.ground import Ground, ground
from tests.faults.ledger.outcome import Batch
from tests.faults.ledger.stage import Stage
from tests.faults.ledger.table import FAULTS, Fault, Part
from tests.mesh.running import short_folder

SEED = 20
SHORT = [
    pytest.param(fault, part, id=f"{fault.keyword}-{part.name.replace(' ', '_')}")
    for fault in FAULTS
    for part in fault.parts
    if part.short
]


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    with trying_apart() as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_ground() -> AsyncIterator[Ground]:
    with short_folder() as folder:
        async with ground(JoinedMesh(folder, Machine.create(int(time.time())))) as opened:
            yield opened


@pytest.fixture
def stage(apart: Apart, shared_ground: Ground) -> Stage:
    @asynccontextmanager
    async def same() -> AsyncIterator[Ground]:
        yield shared_ground

    return Stage(apart, same)


@pytest.mark.mesh
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("fault", "part"), SHORT)
async def test_every_promise_holds(fault: Fault, part: Part, stage: Stage) -> None:
    with quick_folder() as folder:
        outcome = await part.run(stage, Batch(range(part.short), SEED, folder))
    assert outcome.holds, f"{fault.what}: {outcome.report()}"


def test_every_fault_has_a_short_form_and_what_belongs_to_it_is_there() -> None:
    for fault in FAULTS:
        assert fault.tests or any(part.short for part in fault.parts), fault.number
        for name in fault.tests:
            path, function = name.split("::")
            tree = ast.parse((ROOT / path).read_text())
            assert function in {getattr(node, "name", "") for node in tree.body}, name
