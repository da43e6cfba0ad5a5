"""How busy a node is: this router's own requests at once, others' as its reports have them, and none twice."""

from __future__ import annotations

from contextlib import ExitStack

from services.router.routing.occupancy import Occupancy


def occupancy() -> Occupancy:
    known = Occupancy()
    known.know("a")
    return known


def test_own_requests_count_at_once_and_others_as_reported() -> None:
    known = occupancy()
    known.reported("a", 3)
    with known.using("a"), known.using("a"):
        assert (known.busy("a"), known.own()) == (5, {"a": 2})
    assert known.busy("a") == 3


def test_what_a_report_counts_of_this_routers_own_counts_once() -> None:
    known = occupancy()
    with known.using("a"), known.using("a"):
        known.reported("a", 5)
        assert known.busy("a") == 5
    assert known.busy("a") == 3


def test_own_requests_that_ended_around_a_report_do_not_linger_as_others() -> None:
    """A report is made before it arrives: it may count what has ended since."""
    known = occupancy()
    with ExitStack() as requests:
        for _ in range(4):
            requests.enter_context(known.using("a"))
    known.reported("a", 4)
    assert known.busy("a") == 0
    known.reported("a", 4)
    assert known.busy("a") == 4, "they are in the next one as well, so they are others'"


def test_a_node_that_left_has_no_requests_and_no_memory() -> None:
    known = occupancy()
    with known.using("a"):
        known.forget("a")
        assert known.busy("a") == 0
        known.know("a")
    assert (known.busy("a"), known.own()) == (0, {"a": 0})
    known.forget("a")
    with known.using("a"):
        known.reported("a", 7)
    assert known.own() == {}
