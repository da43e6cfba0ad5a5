"""The ledger's twenty faults in short: `pytest -k fault_07` runs one and all that belongs to it. Longer: `make faults`.

What tries a running ledger shares one; its log is held against everything that was ever seen of it after each fault.
"""

from __future__ import annotations

import ast
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from services.devtee.machine import Machine
from tests.fakes.joined_mesh import JoinedMesh
from tests.faults.ledger.apart import Apart, quick_folder, trying_apart
from tests.faults.ledger.elsewhere import ROOT
from tests.faults.ledger.ground import Ground, ground
from tests.faults.ledger.outcome import Batch, Outcome
from tests.faults.ledger.progress import Progress, units_of
from tests.faults.ledger.sources import SOURCES, digest_of
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


def test_shards_do_all_of_it_and_nothing_twice() -> None:
    units = units_of(frozenset(fault.number for fault in FAULTS), None)
    names = [unit.name for shard in range(3) for unit in units[shard::3]]
    assert sorted(names) == sorted({unit.name for unit in units})
    rounds = [number for unit in units_of(frozenset({5}), 1200) for number in unit.rounds]
    assert rounds == list(range(1200))


def test_a_run_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    [first, second] = units_of(frozenset({5}), 1000)
    path = tmp_path / "progress.jsonl"
    Progress(path, SEED, "this").add(first, Outcome(Counter(images=3), ["one did not start"]))
    with path.open("a") as file:
        file.write('{"unit": "5/im')
    again = Progress(path, SEED, "this")
    assert again.done == {first.name: Outcome(Counter(images=3), ["one did not start"])}
    again.add(second, Outcome(Counter(images=4)))
    assert set(Progress(path, SEED, "this").done) == {first.name, second.name}
    assert Progress(path, SEED + 1, "this").done == {}


def test_what_other_code_did_is_done_again_and_that_is_said(tmp_path: Path) -> None:
    [first, second] = units_of(frozenset({5}), 1000)
    path = tmp_path / "progress.jsonl"
    path.write_text(json.dumps({"unit": first.name, "seed": SEED, "counts": {"images": 3}, "wrong": []}) + "\n")
    Progress(path, SEED, "other").add(second, Outcome(Counter(images=4)))
    mine = Progress(path, SEED, "this")
    assert (mine.done, mine.begun_again) == ({}, 2)
    mine.add(second, Outcome(Counter(images=5)))
    again = Progress(path, SEED, "this")
    assert (again.done, again.begun_again) == ({second.name: Outcome(Counter(images=5))}, 1)


def test_code_is_another_when_any_of_it_changes_its_name_or_content(tmp_path: Path) -> None:
    source = tmp_path / "ledger" / "storage" / "frames.py"
    source.parent.mkdir(parents=True)
    source.write_text("one")
    digests = {digest_of(tmp_path, ["ledger"])}
    source.write_text("two")
    digests.add(digest_of(tmp_path, ["ledger"]))
    source.rename(source.with_name("other.py"))
    digests.add(digest_of(tmp_path, ["ledger"]))
    assert len(digests) == 3
    assert all((ROOT / folder).is_dir() for folder in SOURCES)
