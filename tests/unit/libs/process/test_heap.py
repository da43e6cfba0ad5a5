"""What is built at the start is not gone through again, and what comes later is collected as ever."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from libs.process import freeze_heap


class Node:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_lives_is_left_out() -> None:
    kept = Node()
    freeze_heap()
    assert all(each is not kept for each in gc.get_objects())


def test_a_cycle_that_was_let_go_before_is_gone_and_one_that_is_made_later_is_collected() -> None:
    before = weakref.ref(Node())
    freeze_heap()
    assert before() is None
    later = weakref.ref(Node())
    gc.collect()
    assert later() is None
