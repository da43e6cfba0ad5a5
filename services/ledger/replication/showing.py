"""It is responsible for showing another member the trees that this writer signs, and those that witnesses cosigned."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol

import structlog

from libs.errors import MeshError
from services.ledger.checkpoints.auditing import SignedTree
from services.ledger.replication.others import OtherMember

log = structlog.get_logger()


class Trees(Protocol):
    """What is signed and witnessed of the log."""

    async def signed_beyond(self, size: int) -> SignedTree: ...

    async def witnessed_beyond(self, size: int) -> SignedTree: ...


async def keep_showing(trees: Trees, other: OtherMember, pause_seconds: float) -> None:
    """Show another member each tree that is newer than the last one it took, for ever."""
    async with asyncio.TaskGroup() as tasks:
        for beyond, witnessed in ((trees.signed_beyond, False), (trees.witnessed_beyond, True)):
            tasks.create_task(_keep(beyond, other, pause_seconds, witnessed=witnessed))


async def _keep(
    beyond: Callable[[int], Awaitable[SignedTree]], other: OtherMember, pause_seconds: float, *, witnessed: bool
) -> NoReturn:
    size, trouble = 0, ""
    while True:
        tree = await beyond(size)
        try:
            await other.show(tree.note, witnessed=witnessed)
        except MeshError as error:
            if error.reason != trouble:
                log.info("a tree is not taken", member=other.instance, reason=error.reason, why=str(error))
            trouble = error.reason
            await asyncio.sleep(pause_seconds)
        else:
            size, trouble = tree.size, ""
