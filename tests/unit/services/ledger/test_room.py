"""The stream holds no more than it may and the log goes on: what is safe in it makes room for the rest."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from libs.events.connect import NatsLink
from libs.transparency import leaf
from libs.transparency.leaf import Kind
from services.ledger.intake.committing import Taken
from services.ledger.intake.room import Room
from tests.fakes.joined_mesh import JoinedMesh

from .live import LiveMesh, Place, Surroundings
from .vault_attack import rows_in

PATIENCE_SECONDS = 60.0
STREAM_BYTES = 2 * 1024 * 1024
BODY = "x" * 400_000
ENTRIES = 12
"""More than twice what the stream holds."""


class SmallStream(LiveMesh):
    """A mesh whose stream is full after five large entries."""

    def config(self, place: Place, surroundings: Surroundings) -> dict[str, Any]:
        return {**super().config(place, surroundings), "stream_max_bytes": STREAM_BYTES}


async def test_more_than_the_stream_holds_is_logged_and_nothing_is_missed(mesh: JoinedMesh) -> None:
    async with SmallStream(mesh).running() as live, live.router() as router:
        await live.start()
        for number in range(ENTRIES):
            body = {"n": number, "what": BODY}
            committed = await router.publisher.commit(Kind.SESSION, body, vault=None, timeout=PATIENCE_SECONDS)
            router.publisher.released(committed)
            if number == ENTRIES // 2:
                await live.kill()
                await live.start()
        await live.kill()
    kinds = Counter(leaf.parse(row.leaf_data).kind for _, row in rows_in(live.data_dir))
    assert (kinds[Kind.SESSION], kinds[Kind.GAP]) == (ENTRIES, 0)


class Stream:
    """Who takes in a stream, and what it is."""

    def __init__(self) -> None:
        self.taken: Taken | None = Taken(b"one", 7, 5)
        self.asked: list[int] = []
        self.asking, self.is_covered = asyncio.Event(), asyncio.Event()

    async def covering(self, size: int) -> None:
        self.asked.append(size)
        self.asking.set()
        await self.is_covered.wait()

    async def jetstream(self, timeout: float) -> Any:
        raise AssertionError("nothing of this stream may go")


async def test_nothing_goes_before_a_tree_covers_it_nor_from_a_stream_that_was_made_anew() -> None:
    stream = Stream()
    link: NatsLink = stream  # type: ignore[assignment]
    making = asyncio.create_task(Room(link, 1, stream, stream.covering).make())
    await stream.asking.wait()
    assert stream.asked == [5]
    assert not making.done()
    stream.taken = Taken(b"another", 7, 5)
    stream.is_covered.set()
    await making
