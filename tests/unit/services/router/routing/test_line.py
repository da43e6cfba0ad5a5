"""Who is next: tenants in turn, each one's own in order, and room for whoever has fewer than another."""

from __future__ import annotations

import random

from services.router.routing.line import MAX_RETRY_SECONDS, Line


def line(*joining: str, length: int = 100) -> Line[str]:
    """Tenants are the first letters."""
    waiting: Line[str] = Line(length, began=0.0)
    for waiter in joining:
        assert waiting.join(waiter[0], waiter) is None
    return waiting


def order(waiting: Line[str], now: float = 1.0) -> list[str]:
    """Serve them all."""
    served = []
    while waiting:
        tenant, waiter = next(waiting.in_turn())
        waiting.served(tenant, waiter, now)
        served.append(waiter)
    return served


def test_each_tenants_own_come_in_order() -> None:
    assert order(line("a1", "a2", "a3")) == ["a1", "a2", "a3"]


def test_tenants_take_turns_however_many_one_has() -> None:
    assert order(line("a1", "a2", "a3", "a4", "b1", "c1", "c2")) == ["a1", "b1", "c1", "a2", "c2", "a3", "a4"]


def test_whoever_comes_back_at_once_is_not_before_those_who_wait() -> None:
    waiting = line("a1", "b1", "c1")
    waiting.served("a", "a1", 1.0)
    waiting.join("a", "a2")
    assert order(waiting) == ["b1", "c1", "a2"]


def test_those_who_left_are_passed_over() -> None:
    waiting = line("a1", "a2", "b1")
    waiting.leave("a", "a1")
    waiting.leave("a", "a1")
    waiting.leave("c", "c1")
    assert len(waiting) == 2
    assert order(waiting) == ["a2", "b1"]
    assert not waiting._tenants


def test_a_tenant_that_fills_it_keeps_nobody_else_out() -> None:
    waiting = line(*(f"a{number}" for number in range(4)), length=4)
    assert waiting.join("b", "b1") == "a3"
    assert waiting.join("a", "a9") == "a9", "who has most makes way, and is not let in again"
    assert waiting.join("b", "b2") == "a2"
    assert waiting.join("b", "b3") == "b3"
    assert waiting.join("c", "c1") in ("a1", "b2")
    assert len(waiting) == 4


def test_two_tenants_do_not_push_each_other_out() -> None:
    waiting = line("a1", "a2", "b1", length=3)
    assert waiting.join("b", "b2") == "b2"
    assert waiting.join("a", "a3") == "a3"


def test_a_line_without_room_has_none_for_anybody() -> None:
    assert Line[str](0, 0.0).join("a", "a1") == "a1"


def test_it_never_holds_more_than_it_may_and_nobody_is_starved() -> None:
    chance = random.Random(3)  # noqa: S311 - a seed makes the test repeat
    waiting = Line[str](20, 0.0)
    for number in range(5000):
        tenant = chance.choice("aaaaaaaaab")
        waiting.join(tenant, f"{tenant}{number}")
        assert len(waiting) == len(list(waiting.in_turn())) <= 20
        if chance.random() < 0.3:
            tenants = {tenant for tenant, _ in waiting.in_turn()}
            first = [tenant for tenant, _ in waiting.in_turn()][: len(tenants)]
            assert set(first) == tenants, "each tenant is among the next"
            tenant, waiter = next(waiting.in_turn())
            waiting.served(tenant, waiter, 1.0)


def test_how_long_to_stay_away_follows_from_how_fast_others_were_served() -> None:
    waiting = line(*(f"a{number}" for number in range(10)))
    assert waiting.retry_seconds(5.0, unknown=7.2) == 8
    waiting.served("a", "a0", 2.0)
    waiting.served("a", "a1", 4.0)
    assert waiting.retry_seconds(4.0, unknown=7.2) == 16, "eight wait, and one was served every two seconds"
    assert waiting.retry_seconds(1000.0, unknown=7.2) == MAX_RETRY_SECONDS
    assert line().retry_seconds(0.0, unknown=0.0) == 1


def test_the_pace_is_that_of_the_last_ones() -> None:
    waiting: Line[str] = Line(1000, began=0.0)
    for number in range(200):
        waiting.join("a", f"a{number}")
    for number in range(100):
        waiting.served("a", f"a{number}", 1000.0 + number / 10)
    assert waiting.retry_seconds(1010.0, unknown=1.0) in (10, 11)
