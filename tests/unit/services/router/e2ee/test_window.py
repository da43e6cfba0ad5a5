"""A request is taken once, whatever the clock does."""

from __future__ import annotations

import pytest

from services.router.e2ee.errors import Replayed, TimestampRefused, TooManyRemembered
from services.router.e2ee.window import WINDOW_SECONDS, AcceptanceWindow

TENANT, OTHER = "ab" * 16, "cd" * 16
NAMES = (b"client", b"service", b"nonce")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("offset", [-WINDOW_SECONDS, 0, WINDOW_SECONDS])
def test_a_time_that_is_near_is_accepted(clock: Clock, offset: int) -> None:
    AcceptanceWindow(clock).judge(1_000_000 + offset)


@pytest.mark.parametrize("offset", [-WINDOW_SECONDS - 1, WINDOW_SECONDS + 1, -1_000_000])
def test_a_time_that_is_far_is_refused(clock: Clock, offset: int) -> None:
    with pytest.raises(TimestampRefused):
        AcceptanceWindow(clock).judge(1_000_000 + offset)


def test_a_request_dated_ahead_is_remembered_until_it_is_too_old(clock: Clock) -> None:
    window, ahead = AcceptanceWindow(clock), 1_000_000 + WINDOW_SECONDS
    window.take(TENANT, ahead, *NAMES)
    for _ in range(6):
        clock.now += WINDOW_SECONDS / 3
        window.judge(ahead)
        with pytest.raises(Replayed):
            window.take(TENANT, ahead, *NAMES)
    clock.now += 1
    with pytest.raises(TimestampRefused):
        window.judge(ahead)


def test_a_clock_that_is_put_back_brings_nothing_back(clock: Clock) -> None:
    window = AcceptanceWindow(clock)
    window.take(TENANT, 1_000_000, *NAMES)
    clock.now += 2 * WINDOW_SECONDS
    window.take(TENANT, 1_000_000 + 2 * WINDOW_SECONDS, b"other")
    clock.now -= 2 * WINDOW_SECONDS
    with pytest.raises(TimestampRefused):
        window.judge(1_000_000)


def test_every_name_counts(clock: Clock) -> None:
    window = AcceptanceWindow(clock)
    window.take(TENANT, 1_000_000, *NAMES)
    for names in ((b"client", b"service", b"other"), (b"clients", b"ervice", b"nonce"), (b"client", b"servicenonce")):
        window.take(TENANT, 1_000_000, *names)
    with pytest.raises(Replayed):
        window.take(TENANT, 1_000_000, *NAMES)


def test_a_full_memory_refuses_and_forgets_nothing_early(clock: Clock) -> None:
    window = AcceptanceWindow(clock, most=2)
    window.take(TENANT, 1_000_000, b"first")
    window.take(TENANT, 1_000_010, b"second")
    with pytest.raises(TooManyRemembered):
        window.take(TENANT, 1_000_000, b"third")
    with pytest.raises(Replayed):
        window.take(TENANT, 1_000_000, b"first")
    clock.now += WINDOW_SECONDS + 1
    window.take(TENANT, 1_000_100, b"third")
    with pytest.raises(TooManyRemembered):
        window.take(TENANT, 1_000_100, b"fourth")


def test_one_tenant_fills_its_share_and_nobody_elses(clock: Clock) -> None:
    window = AcceptanceWindow(clock, most=4, most_of_one_tenant=2)
    for name in (b"first", b"second"):
        window.take(TENANT, 1_000_000, name)
    with pytest.raises(TooManyRemembered):
        window.take(TENANT, 1_000_000, b"third")
    window.take(OTHER, 1_000_000, b"third")
    with pytest.raises(Replayed):
        window.take(OTHER, 1_000_000, b"first")
    clock.now += WINDOW_SECONDS + 1
    window.take(TENANT, 1_000_100, b"third")
    window.take(TENANT, 1_000_100, b"fourth")
    with pytest.raises(TooManyRemembered):
        window.take(TENANT, 1_000_100, b"fifth")
