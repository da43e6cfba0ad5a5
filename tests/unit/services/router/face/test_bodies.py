from __future__ import annotations

import pytest

from services.router.errors import BodiesBusy
from services.router.face.bodies import BodyRoom


def test_the_room_is_for_all_together() -> None:
    room = BodyRoom(10, 6)
    with room.share() as first, room.share() as second:
        first.assign("first")
        second.assign("second")
        first.take(6)
        second.take(4)
        with pytest.raises(BodiesBusy):
            second.take(1)


def test_a_tenant_has_one_part_for_all_its_requests_and_leaves_the_others_to_others() -> None:
    room = BodyRoom(40, 1)
    with room.share() as first, room.share() as second, room.share() as other:
        first.assign("greedy")
        second.assign("greedy")
        other.assign("other")
        first.take(6)
        second.take(4)
        with pytest.raises(BodiesBusy, match="of this tenant"):
            second.take(1)
        other.take(10)
    assert room.taken == 0


def test_what_belongs_to_nobody_has_one_part_together() -> None:
    room = BodyRoom(40, 1)
    with room.share() as first, room.share() as second:
        first.take(10)
        with pytest.raises(BodiesBusy):
            second.take(1)


def test_a_part_is_never_smaller_than_one_body_may_be() -> None:
    with BodyRoom(1, 10).share() as share:
        share.assign("tenant")
        share.take(10)


def test_a_tenants_part_is_whole_again_once_its_requests_are_over() -> None:
    room = BodyRoom(40, 1)
    for _ in range(3):
        with room.share() as share:
            share.assign("tenant")
            share.take(10)
    assert room.taken == 0


def test_what_was_refused_took_nothing() -> None:
    room = BodyRoom(10, 10)
    with room.share() as share:
        with pytest.raises(BodiesBusy):
            share.take(11)
        share.take(10)


def test_a_share_comes_back_whatever_happened() -> None:
    room = BodyRoom(10, 10)
    with pytest.raises(BodiesBusy), room.share() as first, room.share() as second:  # noqa: PT012
        first.take(7)
        second.take(4)
    with room.share() as share:
        share.take(10)
    assert room.taken == 0
