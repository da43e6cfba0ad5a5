"""Who keeps a log together: one member, or three and more and odd, each once."""

from __future__ import annotations

import pytest

from services.ledger.replication.settings import MemberAddress, Replication


def members(*instances: str) -> tuple[MemberAddress, ...]:
    return tuple(MemberAddress(name, f"{name}:1") for name in instances)


@pytest.mark.parametrize(("count", "majority"), [(3, 2), (5, 3), (7, 4)])
def test_a_majority_is_more_than_half(count: int, majority: int) -> None:
    group = Replication(members(*map(str, range(count))))
    assert (group.is_group, group.majority) == (True, majority)
    assert [each.instance for each in group.others("0")] == [str(number) for number in range(1, count)]


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one_are_no_group(count: int) -> None:
    assert not Replication(members(*map(str, range(count)))).is_group


@pytest.mark.parametrize("count", [2, 4])
def test_an_even_number_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="odd"):
        Replication(members(*map(str, range(count))))


def test_nobody_is_a_member_twice() -> None:
    with pytest.raises(ValueError, match="each"):
        Replication(members("a", "b", "a"))
    with pytest.raises(ValueError, match="each"):
        Replication((MemberAddress("a", "x:1"), MemberAddress("b", "x:1"), MemberAddress("c", "y:1")))


def test_a_writer_has_time_for_more_than_two_heartbeats() -> None:
    with pytest.raises(ValueError, match="heartbeats"):
        Replication(heartbeat_seconds=1.0, election_seconds=2.0)
