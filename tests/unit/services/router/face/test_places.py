from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.face.places import CallsBusy, Places


def held(places: Places, stack: ExitStack, holder: str) -> int:
    """Take as many places as there are for somebody; return how many."""
    count = 0
    while True:
        try:
            stack.enter_context(places.taken(holder))
        except CallsBusy:
            return count
        count += 1


def test_whoever_is_alone_has_half_and_the_next_half_of_what_is_left() -> None:
    places = Places(512)
    with ExitStack() as first, ExitStack() as second:
        assert held(places, first, "a") == 256
        assert held(places, second, "b") == 128
        assert held(places, first, "a") == 0


@pytest.mark.parametrize("count", [1, 2])
def test_there_is_always_one_for_whoever_comes_first(count: int) -> None:
    places = Places(count)
    with ExitStack() as stack:
        assert held(places, stack, "a") == 1
    with places.taken("b"):
        pass


def test_a_place_is_free_again_and_nothing_is_kept_of_who_had_it() -> None:
    places = Places(4)
    with ExitStack() as stack:
        assert held(places, stack, "a") == 2
        with pytest.raises(CallsBusy), places.taken("a"):
            pass
    assert not places._held
    with ExitStack() as stack:
        assert held(places, stack, "a") == 2


@given(st.integers(1, 200), st.lists(st.integers(0, 9), max_size=300))
def test_however_much_some_ask_for_there_is_one_for_each_until_there_are_as_many_as_places(
    count: int, asked: list[int]
) -> None:
    places = Places(count)
    with ExitStack() as stack:
        has: dict[int, int] = {}
        for holder in asked:
            try:
                stack.enter_context(places.taken(str(holder)))
            except CallsBusy:
                assert has.get(holder, 0) >= count - sum(has.values())
                assert holder in has or sum(has.values()) == count
            else:
                has[holder] = has.get(holder, 0) + 1
            assert sum(has.values()) <= count
        if len(has) < count.bit_length():
            assert sum(has.values()) < count, "somebody who comes now finds none"
