from __future__ import annotations

import pytest

from services.router.errors import BodiesBusy
from services.router.face.bodies import BodyRoom


def test_the_room_is_for_all_together() -> None:
    room = BodyRoom(10)
    with room.share() as first, room.share() as second:
        first.take(6)
        second.take(4)
        with pytest.raises(BodiesBusy):
            first.take(1)


def test_what_was_refused_took_nothing() -> None:
    room = BodyRoom(10)
    with room.share() as share:
        with pytest.raises(BodiesBusy):
            share.take(11)
        share.take(10)


def test_a_share_comes_back_whatever_happened() -> None:
    room = BodyRoom(10)
    with pytest.raises(BodiesBusy), room.share() as share:
        share.take(11)
    with room.share() as share:
        share.take(7)
    assert room.taken == 0
