from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from libs.process import beside

PATIENCE_SECONDS = 20.0


@asynccontextmanager
async def ends_once_the_other_does(ends: asyncio.Event, other: asyncio.Event, name: str) -> AsyncIterator[str]:
    try:
        yield name
    finally:
        ends.set()
        await other.wait()


@pytest.mark.parametrize("error", [None, ValueError("the body's own")])
async def test_neither_end_waits_for_the_others(error: ValueError | None) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    both = beside(ends_once_the_other_does(first, second, "a"), ends_once_the_other_does(second, first, "b"))
    raised: list[BaseException] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        try:
            async with both as given:
                assert given == ("a", "b")
                assert not first.is_set()
                assert not second.is_set()
                if error is not None:
                    raise error
        except* ValueError as group:
            raised.extend(group.exceptions)
    assert raised == ([] if error is None else [error])


class CannotBegin(Exception):
    pass


@asynccontextmanager
async def failing(*, begins: bool = False) -> AsyncIterator[str]:
    if not begins:
        raise CannotBegin
    yield ""


async def test_one_that_cannot_be_entered_ends_the_other_and_is_told() -> None:
    ended: list[str] = []

    @asynccontextmanager
    async def other() -> AsyncIterator[str]:
        try:
            yield "a"
        finally:
            ended.append("a")

    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(ExceptionGroup) as caught:
            async with beside(other(), failing()):
                pass
    assert caught.group_contains(CannotBegin)
    assert ended == ["a"]
