"""Requests that wait for room: nobody asks again, nobody is lost, and whoever leaves leaves nothing behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from services.router.errors import Overloaded, TenantRevoked
from services.router.metrics import RoutingMetrics
from services.router.routing.preference import NodesFull
from services.router.routing.queue import Queue
from services.router.routing.settings import RoutingSettings
from tests.fakes.routers import PATIENCE_SECONDS


class Nodes:
    """One model's nodes, of a capacity, and those that ask for them."""

    def __init__(self, capacity: int, *, length: int = 100, seconds: float = PATIENCE_SECONDS) -> None:
        self.capacity = capacity
        self.taken = 0
        self.most = 0
        self.asked = 0
        self.refuses: Exception | None = None
        self.metrics = RoutingMetrics()
        self.queue = Queue(RoutingSettings(queue_length=length, queue_seconds=seconds), self.metrics)
        self.served: list[str] = []

    @contextmanager
    def held(self) -> Iterator[None]:
        self.taken += 1
        self.most = max(self.most, self.taken)
        try:
            yield
        finally:
            self.taken -= 1
            self.queue.news(("m",))

    def take(self) -> Nodes:
        self.asked += 1
        if self.refuses is not None:
            raise self.refuses
        if self.taken >= self.capacity:
            raise NodesFull("full")
        return self

    async def ask(self, name: str, end: asyncio.Event | None = None, seconds: float = PATIENCE_SECONDS) -> None:
        """One request; its tenant is its name's first letter. It runs until `end`."""
        place = await self.queue.turn("m", name[0], None, self.take, seconds)
        with place.held():
            self.served.append(name)
            await (asyncio.sleep(0) if end is None else end.wait())

    @property
    def waiting(self) -> int:
        return self.metrics.waiting.numbers[""]


async def settled() -> None:
    """Everybody has come as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(claim: Callable[[], bool]) -> None:
    while not claim():  # noqa: ASYNC110 - one turn of the loop at a time, no later
        await asyncio.sleep(0)


@asynccontextmanager
async def full(nodes: Nodes) -> AsyncIterator[asyncio.Event]:
    """All places are taken, until the event or the end."""
    end = asyncio.Event()
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        for _ in range(nodes.capacity):
            tasks.create_task(nodes.ask("x", end))
        await settled()
        yield end
        end.set()


async def test_of_many_more_than_there_is_room_for_all_are_served_in_turn() -> None:
    nodes = Nodes(2)
    async with full(nodes) as end, asyncio.TaskGroup() as tasks:
        for name in [f"a{number}" for number in range(20)] + ["b0", "c0", "b1", "c1"]:
            tasks.create_task(nodes.ask(name))
        await settled()
        assert nodes.waiting == 24
        end.set()
    assert nodes.served[2:8] == ["a0", "b0", "c0", "a1", "b1", "c1"]
    assert sorted(nodes.served[8:]) == sorted(f"a{number}" for number in range(2, 20))
    assert (nodes.most, nodes.taken, nodes.waiting) == (2, 0, 0)
    assert not nodes.queue._lines


async def test_where_there_is_room_nobody_waits() -> None:
    nodes = Nodes(1)
    await nodes.ask("a")
    assert (nodes.asked, nodes.metrics.waited_seconds.classes.count(0)) == (
        1,
        len(nodes.metrics.waited_seconds.classes),
    )


async def test_nobody_asks_while_nothing_happens() -> None:
    nodes = Nodes(1)
    async with full(nodes), asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(nodes.ask(f"{tenant}0")) for tenant in "abc"]
        await settled()
        asked = nodes.asked
        await settled()
        assert nodes.asked == asked
        nodes.queue.news(("another model",))
        await settled()
        assert nodes.asked == asked
        for task in waiting:
            task.cancel()


async def test_those_who_want_the_same_are_asked_for_once_at_a_time() -> None:
    nodes = Nodes(1)
    async with full(nodes), asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(nodes.ask(f"a{number}")) for number in range(50)]
        await settled()
        asked = nodes.asked
        nodes.queue.news(("m",))
        nodes.queue.news(("m",))
        await settled()
        assert nodes.asked == asked + 1
        for task in waiting:
            task.cancel()


async def test_whoever_leaves_while_waiting_leaves_no_trace() -> None:
    nodes = Nodes(1)
    async with full(nodes) as end, asyncio.TaskGroup() as tasks:
        first, second, third = (tasks.create_task(nodes.ask(name)) for name in ("a1", "a2", "a3"))
        await settled()
        second.cancel()
        await settled()
        assert nodes.waiting == 2
        end.set()
    assert (nodes.served, first.done(), third.done()) == (["x", "a1", "a3"], True, True)
    assert (nodes.taken, nodes.waiting) == (0, 0)
    assert not nodes.queue._lines


async def test_whoever_leaves_at_the_moment_of_their_turn_passes_it_on() -> None:
    nodes = Nodes(1)
    async with full(nodes) as end, asyncio.TaskGroup() as tasks:
        leaving = tasks.create_task(nodes.ask("a1"))
        tasks.create_task(nodes.ask("a2"))
        await settled()
        end.set()
        await until(lambda: bool(nodes.served) and not nodes.taken)  # The place is free, and its turn not given.
        await until(lambda: nodes.taken > 0)  # It is given to the first, who has not heard of it yet.
        leaving.cancel()
    assert nodes.served == ["x", "a2"]
    assert (nodes.most, nodes.taken) == (1, 0)


async def test_who_comes_while_others_wait_is_not_served_before_them() -> None:
    nodes = Nodes(1)
    async with full(nodes) as end, asyncio.TaskGroup() as tasks:
        tasks.create_task(nodes.ask("a1"))
        await settled()
        end.set()
        await until(lambda: not nodes.taken)  # The place is free, and its turn not given.
        await nodes.ask("a2")
    assert nodes.served == ["x", "a1", "a2"]


async def test_who_finds_room_of_another_kind_does_not_wait_for_those_who_cannot_use_it() -> None:
    nodes, others = Nodes(1), Nodes(1)
    others.queue = nodes.queue
    async with full(nodes), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(nodes.ask("a1"))
        await settled()
        place = await nodes.queue.turn("m", "a", "elsewhere", others.take, PATIENCE_SECONDS)
        assert (place, waiting.done()) == (others, False)
        waiting.cancel()


async def test_a_turn_is_judged_anew() -> None:
    nodes = Nodes(1)
    async with full(nodes) as end:
        waiting = asyncio.create_task(nodes.ask("a1"))
        await settled()
        nodes.refuses = TenantRevoked("revoked meanwhile")
        end.set()
        with pytest.raises(TenantRevoked):
            await waiting
    assert nodes.served == ["x"]


async def test_who_finds_the_line_full_is_turned_away_and_told_for_how_long() -> None:
    nodes = Nodes(1, length=2, seconds=7.0)
    async with full(nodes) as end, asyncio.TaskGroup() as tasks:
        for name in ("a1", "a2"):
            tasks.create_task(nodes.ask(name))
        await settled()
        with pytest.raises(Overloaded) as refusal:
            await nodes.ask("a3")
        assert (refusal.value.retry_seconds, refusal.value.headers) == (7, {"Retry-After": "7"})
        end.set()
    assert nodes.served == ["x", "a1", "a2"]
    assert nodes.metrics.turned_away.numbers == {"full": 1}


async def test_a_tenant_that_fills_the_line_makes_way_for_another() -> None:
    nodes = Nodes(1, length=4)
    async with full(nodes) as end:
        crowd = [asyncio.create_task(nodes.ask(f"a{number}")) for number in range(4)]
        await settled()
        other = asyncio.create_task(nodes.ask("b0"))
        with pytest.raises(Overloaded):
            await crowd[3]
        end.set()
        await asyncio.gather(*crowd[:3], other)
    assert nodes.served == ["x", "a0", "b0", "a1", "a2"]
    assert nodes.metrics.turned_away.numbers == {"displaced": 1}


async def test_one_that_leaves_as_it_is_to_make_way_harms_nobody() -> None:
    nodes = Nodes(1, length=2)
    async with full(nodes) as end:
        first, leaving = (asyncio.create_task(nodes.ask(name)) for name in ("a1", "a2"))
        await settled()
        other = asyncio.create_task(nodes.ask("b1"))
        leaving.cancel()  # Its turn can be given to nobody now, and it is still in the line when the other comes.
        await settled()
        end.set()
        await asyncio.gather(first, other)
    assert nodes.served == ["x", "a1", "b1"]
    assert (nodes.taken, nodes.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("most", "own", "reason"), [(0.01, 60.0, "waited"), (60.0, 0.01, "waited"), (60.0, 0.0, "no_time")]
)
async def test_nobody_waits_longer_than_they_may_or_have(most: float, own: float, reason: str) -> None:
    nodes = Nodes(1, seconds=most)
    async with full(nodes):
        with pytest.raises(Overloaded):
            await nodes.ask("a1", seconds=own)
        assert nodes.waiting == 0
        assert not nodes.queue._lines
    assert nodes.served == ["x"]
    assert nodes.metrics.turned_away.numbers == {reason: 1}


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_comes_and_goes_nobody_is_lost_and_nothing_is_left(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a seed makes the test repeat
    nodes = Nodes(3, length=12)
    ends: list[str] = []
    inside: set[str] = set()

    async def client(name: str) -> None:
        for _ in range(chance.randrange(200)):
            await asyncio.sleep(0)
        inside.add(name)
        try:
            place = await nodes.queue.turn("m", name[0], chance.randrange(2), nodes.take, PATIENCE_SECONDS)
            with place.held():
                for _ in range(chance.randrange(8)):
                    await asyncio.sleep(0)
            ends.append("served")
        except Overloaded:
            ends.append("refused")
        except asyncio.CancelledError:
            ends.append("left")
            raise
        finally:
            inside.discard(name)

    async with asyncio.timeout(PATIENCE_SECONDS):
        names = [f"{chance.choice('aaab')}{number}" for number in range(300)]
        clients = {name: asyncio.create_task(client(name)) for name in names}
        while not all(task.done() for task in clients.values()):
            await asyncio.sleep(0)
            if inside and chance.random() < 0.4:
                clients[chance.choice(sorted(inside))].cancel()
        await asyncio.gather(*clients.values(), return_exceptions=True)
    assert len(ends) == len(clients)
    assert min(ends.count(end) for end in ("served", "refused", "left")) > 10
    assert (nodes.most, nodes.taken, nodes.waiting) == (3, 0, 0)
    assert not nodes.queue._lines


async def test_lines_of_models_do_not_meet() -> None:
    nodes = Nodes(1)
    async with full(nodes) as end:
        waiting = asyncio.create_task(nodes.ask("a1"))
        await settled()
        idle = Nodes(1)
        assert await nodes.queue.turn("n", "a", None, idle.take, PATIENCE_SECONDS) is idle
        end.set()
        await waiting
