"""A start that the ledger does not admit: whoever waits for one of its entries learns that it will not be logged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from libs.events.acknowledgements import Received, Refused
from libs.events.answers import Answers, Awaiting, EntryRejected, KeysetRefused
from libs.events.outbox import open_outbox

ISSUER = b"\x01" * 32


class RefusingSource:
    """The ledger's word about a keyset."""

    async def follow(self, issuer: bytes, from_seq: Callable[[], int]) -> AsyncIterator[Received | Refused]:
        yield Refused(1, KeysetRefused.reason)


async def test_whoever_waits_when_its_start_is_refused_learns_of_it_before_that_ends(tmp_path: Path) -> None:
    refused: list[str] = []

    async def wait(awaiting: Awaiting) -> None:
        try:
            await awaiting.answer
        except EntryRejected as error:
            refused.append(str(error))

    async with open_outbox(tmp_path, ISSUER) as outbox:
        answers = Answers(outbox, ISSUER)
        early, late = Awaiting(2), Awaiting(3)

        async def start() -> None:
            answers.expect(early)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(wait(early))
                tasks.create_task(answers.follow(RefusingSource(), ISSUER))

        with pytest.raises(ExceptionGroup) as ended:
            await start()
        assert ended.value.subgroup(KeysetRefused) is not None
        answers.expect(late)
        assert late.answer.done()
        await wait(late)
    assert refused == ["the ledger refused the entry: KEYSET_REFUSED"] * 2
