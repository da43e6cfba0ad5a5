"""A run of a stage: hashed before and after, refused before the work where it could not be logged, and logged once."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from libs import jcs
from libs.errors import MeshError
from libs.events.pipeline import Step, parse_stage
from libs.jobs import Given, Recorded, Stages
from libs.transparency.leaf import Kind
from libs.weights import measure
from tests.fakes.joined_mesh import Clock
from tests.fakes.ledgers import LedgerTwin

MAKER = b"\x07" * 32


async def no_key(name: str, epoch: int) -> X25519PrivateKey:
    raise AssertionError(f"nothing here is sealed, and {name} was asked for")


class Bench:
    """A folder with a data set, and a ledger."""

    def __init__(self, folder: Path) -> None:
        self.data, self.weights = folder / "data", folder / "weights"
        self.data.mkdir()
        (self.data / "part-1").write_text("1 2 3\n")
        self.ledger, self.clock = LedgerTwin(), Clock(1_000.5)
        self.worked = 0

    async def train(self) -> None:
        self.worked += 1
        self.weights.mkdir()
        (self.weights / "model").write_text("6\n")
        self.clock.now += 2

    async def run(self, work: Callable[[], Awaitable[None]] | None = None, **changes: Any) -> Recorded:
        given: dict[str, Any] = {
            "inputs": {"data": Given(self.data, MAKER)},
            "outputs": {"weights": self.weights},
            "parameters": {"epochs": 3},
        }
        name = changes.pop("name", "first")
        stages = Stages(self.ledger, 5.0, no_key, self.clock)
        return await stages.run(Step.TRAINING, name, work or self.train, **{**given, **changes})

    async def refusal(self, work: Callable[[], Awaitable[None]] | None = None, **changes: Any) -> str:
        with pytest.raises(MeshError) as refused:
            await self.run(work, **changes)
        return refused.value.reason


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_a_stage_is_logged_with_what_it_read_and_made(bench: Bench) -> None:
    recorded = await bench.run()
    ((kind, body, tenant),) = bench.ledger.entries
    assert (kind, tenant) == (Kind.PIPELINE, None)
    stage = parse_stage(jcs.loads_object(jcs.dumps(dict(body))))
    assert stage == recorded.stage
    ((data,), (weights,)) = stage.inputs, stage.outputs
    assert (data.name, data.made_by) == ("data", MAKER)
    assert data.sha256 == (await measure(bench.data)).manifest.digest
    assert (weights.name, weights.sha256) == ("weights", (await measure(bench.weights)).manifest.digest)
    assert (stage.began_ms, stage.ended_ms) == (1_000_500, 1_002_500)
    other = await bench.run(outputs={"weights": bench.weights.parent / "empty"}, work=_making(bench), parameters={})
    assert other.stage.parameters_sha256 != stage.parameters_sha256
    assert other.entry_id != recorded.entry_id


def _making(bench: Bench) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        (bench.weights.parent / "empty").write_text("")

    return work


async def test_what_lies_there_before_is_no_output(bench: Bench) -> None:
    bench.weights.mkdir()
    assert await bench.refusal() == "OUTPUT_THERE_BEFORE"
    assert (bench.worked, bench.ledger.entries) == (0, [])


@pytest.mark.parametrize("changes", [{"name": "two\nlines"}, {"outputs": {}}, {"inputs": {}}])
async def test_what_could_not_be_logged_is_refused_before_the_work(bench: Bench, changes: dict[str, Any]) -> None:
    if "inputs" in changes:
        changes = {"inputs": {"a\tb": Given(bench.data)}}
    assert await bench.refusal(**changes) == "STAGE_MALFORMED"
    assert (bench.worked, bench.ledger.entries) == (0, [])


async def test_an_input_that_is_not_there_is_refused_before_the_work(bench: Bench) -> None:
    assert await bench.refusal(inputs={"data": Given(bench.data / "part-2")}) == "WEIGHTS_MISSING"
    assert bench.worked == 0


async def test_an_input_that_changes_under_the_work_is_refused(bench: Bench) -> None:
    async def poison() -> None:
        await bench.train()
        (bench.data / "part-2").write_text("666\n")

    assert await bench.refusal(poison) == "WEIGHTS_CHANGED"
    assert bench.ledger.entries == []


async def test_work_that_makes_nothing_is_refused(bench: Bench) -> None:
    async def idle() -> None:
        pass

    assert await bench.refusal(idle) == "WEIGHTS_MISSING"
    assert bench.ledger.entries == []


async def test_work_that_fails_leaves_no_entry(bench: Bench) -> None:
    async def fail() -> None:
        await bench.train()
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        await bench.run(fail)
    assert bench.ledger.entries == []


async def test_a_stage_counts_only_once_the_ledger_has_it(bench: Bench) -> None:
    bench.ledger.silent = True
    assert await bench.refusal() == "LEDGER_UNAVAILABLE"


SPENT = {"epsilon": "7.3", "delta": "0.00001", "unit": "row", "releases": 1, "library": "x", "version": "1"}


async def test_what_the_work_says_of_privacy_is_logged(bench: Bench) -> None:
    stated = bench.data.parent / "privacy.json"

    async def state() -> None:
        await bench.train()
        stated.write_text(json.dumps(SPENT, indent=2))

    recorded = await bench.run(state, privacy=stated)
    ((_, body, _),) = bench.ledger.entries
    assert body["privacy"] == SPENT
    assert recorded.stage.privacy is not None
    assert recorded.stage.privacy.epsilon == "7.3"


@pytest.mark.parametrize("stated", [None, b"", b"{}", b"[]", b'{"epsilon":7.3}', b" " * 5_000 + b"{}"])
async def test_work_that_says_nothing_of_privacy_is_not_logged(bench: Bench, stated: bytes | None) -> None:
    path = bench.data.parent / "privacy.json"

    async def state() -> None:
        await bench.train()
        if stated is not None:
            path.write_bytes(stated)

    assert await bench.refusal(state, privacy=path) == "PRIVACY_NOT_STATED"
    assert bench.ledger.entries == []


async def test_what_was_said_before_is_not_what_the_work_says(bench: Bench) -> None:
    (bench.data.parent / "privacy.json").write_text(json.dumps(SPENT))
    assert await bench.refusal(privacy=bench.data.parent / "privacy.json") == "OUTPUT_THERE_BEFORE"
    assert bench.worked == 0


async def test_a_clock_that_is_put_back_ends_no_stage_before_it_began(bench: Bench) -> None:
    async def back() -> None:
        await bench.train()
        bench.clock.now -= 1_000

    stage = (await bench.run(back)).stage
    assert stage.began_ms == stage.ended_ms
