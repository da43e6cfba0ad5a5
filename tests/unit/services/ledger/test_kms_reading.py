"""A KMS that reads the log: a disk that was put back is noticed, and nothing is served before the log's end.

The ledger is the real process; the KMS's keys are opened anew over its folder, as a start does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from libs.errors import MeshError
from services.kms.changes import Change
from services.kms.currency import KeyStateBehind
from services.kms.keys import KeyService
from services.kms.log_reading import LogReading
from tests.fakes.joined_mesh import JoinedMesh

from .live import LiveMesh

ADA = "spiffe://mesh.test/operator/ada"
MODEL = "models/a"
PATIENCE_SECONDS = 30.0


@pytest.fixture
async def live(mesh: JoinedMesh) -> AsyncIterator[LiveMesh]:
    async with LiveMesh(mesh).running() as running:
        yield running


@asynccontextmanager
async def reading(reading: LogReading) -> AsyncIterator[None]:
    """Read the log while the body runs."""
    task = asyncio.create_task(reading.keep())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def is_current(keys: KeyService) -> bool:
    try:
        keys.listing.page("", 0)
    except KeyStateBehind:
        return False
    return True


async def until_current(keys: KeyService) -> None:
    await until(lambda: is_current(keys))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.05)


async def test_a_kms_whose_disk_was_put_back_takes_over_what_the_log_has(live: LiveMesh) -> None:
    await live.start()
    await until_current(live.keys)
    book = live.mesh.folder / "keys.sealed"
    image = book.read_bytes()
    await live.keys.rotation.rotate(MODEL, 2, ADA)
    await live.keys.rotation.rotate(MODEL, 3, ADA)
    book.write_bytes(image)
    with capture_logs() as captured:
        keys, log_reading = live.key_service()
        assert keys.book.newest(MODEL) == 1
        async with reading(log_reading):
            with pytest.raises(KeyStateBehind):
                await keys.rotation.rotate(MODEL, 2, ADA)  # Else epoch 2 would begin a second time.
            await until_current(keys)
            assert keys.book.newest(MODEL) == 3
    gone_back = [entry for entry in captured if "had gone back" in str(entry["event"])]
    assert [(entry["name"], entry["epoch"]) for entry in gone_back] == [(MODEL, 2), (MODEL, 3)]


async def test_an_empty_disk_is_no_way_to_use_a_retired_key(live: LiveMesh) -> None:
    await live.start()
    await until_current(live.keys)
    change = Change(MODEL, None, 1, live.member.spiffe_id, "order:00", 1)
    live.keys.book.change(change)
    await live.decisions.record(change.to_body())
    (live.mesh.folder / "keys.sealed").unlink()
    keys, log_reading = live.key_service()
    async with reading(log_reading):
        await until_current(keys)
        with pytest.raises(MeshError) as refusal:
            keys.book.newest(MODEL)
    assert refusal.value.reason == "KEY_RETIRED"


async def test_what_the_log_did_not_hear_of_is_said_again_after_a_start(live: LiveMesh) -> None:
    await live.start()
    await until_current(live.keys)
    # As if the process had died between its disk and its outbox.
    live.keys.book.change(Change(MODEL, 2, 1, live.member.spiffe_id, ADA, 1))
    keys, log_reading = live.key_service()
    assert [change.epoch for change in keys.book.pages.unlogged] == [2]
    async with reading(log_reading):
        await until(lambda: not keys.book.pages.unlogged)
    assert keys.book.newest(MODEL) == 2


async def test_without_a_ledger_nobody_is_current(live: LiveMesh) -> None:
    keys, log_reading = live.key_service()
    async with reading(log_reading):
        assert not is_current(keys)
        await live.start()
        await until_current(keys)


async def test_a_start_goes_on_where_the_last_one_stopped(live: LiveMesh) -> None:
    await live.start()
    await until_current(live.keys)
    token = live.keys.book.pages.token
    assert token
    keys, _ = live.key_service()
    assert keys.book.pages.token
