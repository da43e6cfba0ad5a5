"""The writer's trees reach another member, each kind for itself, and what was not taken is shown again."""

from __future__ import annotations

import asyncio

from libs.errors import Code, MeshError
from services.ledger.checkpoints.auditing import SignedTree
from services.ledger.growth import Growth
from services.ledger.replication.others import OtherMember
from services.ledger.replication.showing import keep_showing


class NotNow(MeshError):
    code = Code.UNAVAILABLE
    reason = "NOT_NOW"


class Trees:
    """A log that is signed and witnessed as a test has it."""

    def __init__(self) -> None:
        self._signed, self._witnessed = Growth(0, b""), Growth(0, b"")

    def sign(self, size: int) -> None:
        self._signed.reach(size, b"root")

    def witness(self, size: int) -> None:
        self._witnessed.reach(size, b"root")

    async def signed_beyond(self, size: int) -> SignedTree:
        await self._signed.beyond(size)
        return SignedTree(self._signed.size, b"root", b"signed %d" % self._signed.size)

    async def witnessed_beyond(self, size: int) -> SignedTree:
        await self._witnessed.beyond(size)
        return SignedTree(self._witnessed.size, b"root", b"witnessed %d" % self._witnessed.size)


class Shown(OtherMember):
    """A member that takes down what it is shown, and takes nothing that begins with a certain word."""

    def __init__(self) -> None:
        self.instance = "two"
        self.refuses = b"nothing"
        self.asked: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue()

    async def show(self, note: bytes, *, witnessed: bool) -> None:
        self.asked.put_nowait((note, witnessed))
        if note.startswith(self.refuses):
            raise NotNow("ask again")


async def test_each_newer_tree_is_shown_and_what_is_refused_is_shown_again() -> None:
    trees, other = Trees(), Shown()
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        showing = tasks.create_task(keep_showing(trees, other, 0.001))
        trees.sign(3)
        assert await other.asked.get() == (b"signed 3", False)
        other.refuses = b"witnessed"
        trees.witness(3)
        assert [await other.asked.get() for _ in range(2)] == 2 * [(b"witnessed 3", True)]
        trees.sign(5)
        while (shown := await other.asked.get()) != (b"signed 5", False):
            assert shown == (b"witnessed 3", True)
        other.refuses = b"nothing"
        trees.witness(6)
        while await other.asked.get() != (b"witnessed 6", True):
            pass
        trees.sign(7)
        assert await other.asked.get() == (b"signed 7", False)
        showing.cancel()
