"""It is responsible for what witnesses saw of this log before it starts: a floor that no disk put back gets under."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from libs.transparency import checkpoint as checkpoints
from services.ledger.checkpoints.witnesses import Witness, WitnessAway
from services.ledger.storage.recovery import Floor

_FIRST_RETRY_SECONDS = 0.2
_LAST_RETRY_SECONDS = 5.0

log = structlog.get_logger()


async def witnessed_floors(
    witnesses: Sequence[Witness], quorum: int, origin: str, before_waiting: Callable[[], Awaitable[None]]
) -> list[Floor]:
    """Return the newest tree that each witness cosigned.

    Waits until so many have answered that any quorum has one among them: whatever was witnessed, one of those knows it.
    What is wrong with the log by itself is for `before_waiting` to raise, once, before anybody is waited for.
    """
    needed = _needed(witnesses, quorum)
    delay = _FIRST_RETRY_SECONDS
    while True:
        answers = await _answers(witnesses, origin)
        if len(answers) >= needed:
            return [floor for floors in answers for floor in floors]
        if delay == _FIRST_RETRY_SECONDS:
            await before_waiting()
        log.warning("waiting for witnesses", answered=len(answers), needed=needed, retry_seconds=delay)
        await asyncio.sleep(delay)
        delay = min(delay * 2, _LAST_RETRY_SECONDS)


async def enough_answer(witnesses: Sequence[Witness], quorum: int, origin: str) -> bool:
    """Say whether so many answer now that nobody would wait for more."""
    return len(await _answers(witnesses, origin)) >= _needed(witnesses, quorum)


def _needed(witnesses: Sequence[Witness], quorum: int) -> int:
    return len(witnesses) - quorum + 1 if witnesses else 0


async def _answers(witnesses: Sequence[Witness], origin: str) -> list[list[Floor]]:
    """Return what each witness knows that answers."""
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(_floors_of(witness, origin)) for witness in witnesses]
    return [floors for each in asking if (floors := each.result()) is not None]


async def _floors_of(witness: Witness, origin: str) -> list[Floor] | None:
    """Return what a witness knows, which may be nothing; None where it does not answer."""
    try:
        note = await witness.newest(origin)
    except WitnessAway as error:
        log.warning("a witness does not say what it saw", witness=witness.name, detail=str(error))
        return None
    if note is None:
        return []
    tree = checkpoints.parse(note)
    return [Floor(tree.size, tree.root, f"witness {witness.name}")]
