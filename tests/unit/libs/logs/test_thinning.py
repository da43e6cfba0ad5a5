"""Lines that anybody may cause are one a period of each kind, and their number."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import structlog
from structlog.testing import capture_logs
from structlog.types import EventDict

from libs.logs.thinning import MOST_KINDS, Thinning

PERIOD_SECONDS = 60.0

log = structlog.get_logger()


class Bench:
    def __init__(self) -> None:
        self.now = 1000.0
        self.lines: list[EventDict] = []


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    with capture_logs([Thinning(lambda: bench.now, PERIOD_SECONDS)]) as lines:
        bench.lines = lines
        yield bench


def refuse(times: int, reason: str | None = "KEY_WRONG") -> None:
    for number in range(times):
        log.info("refused", reason=reason, detail=f"number {number}", thinned=True)


def test_of_each_kind_one_is_written_and_what_is_not_thinned_always_is(bench: Bench) -> None:
    refuse(1000)
    refuse(1000, "TOO_LATE")
    for _ in range(3):
        log.info("refused", reason="KEY_WRONG", thinned=False)
    assert [(line["reason"], line.get("detail")) for line in bench.lines] == [
        ("KEY_WRONG", "number 0"),
        ("TOO_LATE", "number 0"),
        *[("KEY_WRONG", None)] * 3,
    ]
    assert not any("thinned" in line for line in bench.lines)


def test_the_next_one_says_how_many_there_were(bench: Bench) -> None:
    refuse(1000)
    bench.now += PERIOD_SECONDS
    refuse(2)
    bench.now += 2 * PERIOD_SECONDS
    refuse(1)
    bench.now += PERIOD_SECONDS
    refuse(1)
    assert [line.get("more") for line in bench.lines] == [None, 999, 1, None]


async def test_the_number_is_said_when_the_time_is_over_though_nothing_comes_any_more() -> None:
    with capture_logs([Thinning(period_seconds=0.05)]) as lines:
        structlog.contextvars.bind_contextvars(method="/somebody's")
        log.warning("refused", reason="KEY_WRONG", thinned=True)
        for _ in range(5):
            log.warning("refused", reason="KEY_WRONG", thinned=True)
        async with asyncio.timeout(20):
            while len(lines) < 2:  # noqa: ASYNC110 - a line tells nobody that it was written
                await asyncio.sleep(0.01)
    assert lines[1] == {"event": "refused", "log_level": "warning", "reason": "KEY_WRONG", "more": 5}


def test_reasons_that_others_make_up_are_told_apart_up_to_a_number(bench: Bench) -> None:
    for number in range(3 * MOST_KINDS):
        refuse(1, f"MADE_UP_{number}")
    assert len(bench.lines) == MOST_KINDS + 1
