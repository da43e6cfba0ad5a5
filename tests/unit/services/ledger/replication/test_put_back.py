"""A member whose disk was put back to what it was does not contradict what it said since, as far as anyone knows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.ledger.replication.election import Elections
from services.ledger.replication.exchange import Ballot, Vote
from services.ledger.replication.keyring_copy import KeyringCopy
from services.ledger.replication.promise import Extent

from .near import Group, Near, group_at
from .test_election import until, until_held, until_settled, write, writing


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[Group]:
    """Three members that have settled, the first of which wrote, and a copy of what the second's disk had then."""
    with group_at(tmp_path) as made:
        async with writing(made, "one", await made.campaign("one")) as leading:
            await until_settled(made)
            await write(made, leading, "one", 1, 1)
            await until_held(leading, "two", "three")
        made.start_anew("two")
        made.keep_copy("two")
        yield made


async def restart_asking(group: Group, *names: str) -> None:
    """Let members ask the others what they have promised, and forget when they heard a writer last."""
    for name in names:
        await group.inform(name)
    for member in group.members.values():
        member.wait()


async def test_it_gives_no_vote_that_it_may_have_given_to_another(group: Group) -> None:
    """One is elected by two, and three knows of nothing."""
    group.away = {"three"}
    first = await group.campaign("one")
    assert first is not None
    group.put_back("two")
    assert group.members["two"].follower.epoch < first.epoch
    group.away = set()
    await restart_asking(group, "two", "three")
    voter = group.members["two"].follower
    candidate = replace(group.members["three"].follower.ballot(), epoch=first.epoch)
    for trial in (True, False):
        assert not (await voter.vote("three", candidate, trial=trial)).granted
    assert (await voter.vote("three", replace(candidate, epoch=first.epoch + 1), trial=False)).granted


async def test_it_helps_no_log_that_lacks_what_it_answered_for(group: Group) -> None:
    """One and two held three acknowledged entries; two's disk knows of none, and one is away: three must not write."""
    async with writing(group, "one", await group.campaign("one")) as leading:
        group.away = {"three"}
        await write(group, leading, "one", leading.heading(leading.end).epoch, 2, 3, 4)
        await until_held(leading, "two")
    group.put_back("two")
    group.away = set()
    await restart_asking(group, "one", "two", "three")
    group.away = {"one"}
    assert await group.elections("three").campaign() is None
    assert await group.elections("two").campaign() is None
    # Nor when it was started anew since, and cannot ask any more.
    group.start_anew("two")
    await restart_asking(group, "two")
    assert await group.elections("three").campaign() is None
    group.away = {"three"}
    async with writing(group, "one", await group.elections("one").campaign()) as leading:
        await until_held(leading, "two")
        async with asyncio.timeout(20):
            await until(lambda: group.members["two"].follower.settled)
    assert group.members["two"].store.head.root() == group.members["one"].store.head.root()
    group.start_anew("two")
    group.away = {"one"}
    assert await group.campaign("two") is not None


async def test_it_has_the_keyring_again_that_it_answered_for(group: Group) -> None:
    async with writing(group, "one", await group.campaign("one")) as leading:
        group.away = {"three"}
        (group.members["one"].store.directory / "keyring").write_bytes(b"with a share")
        async with asyncio.timeout(20):
            await leading.share(4)
            await until(lambda: group.members["two"].follower.keyring.generation == 4)
        epoch = leading.keyring.epoch
    group.put_back("two")
    assert group.members["two"].follower.keyring.generation < 4
    group.away = set()
    await restart_asking(group, "two")
    assert group.members["two"].follower.keyring == KeyringCopy(epoch, 4, b"with a share")


class Boaster(Near):
    """Says that its log goes so far."""

    def __init__(self, group: Group, caller: str, instance: str, extent: Extent) -> None:
        super().__init__(group, caller, instance)
        self._extent = extent

    async def vote(self, ballot: Ballot, *, trial: bool) -> Vote:
        return replace(await super().vote(ballot, trial=trial), extent=self._extent)


@pytest.mark.parametrize("extent", [Extent(2**53, 1), Extent(9, 1), Extent(1, 2**64 - 1), Extent(1, 2**48 + 1)])
async def test_a_log_that_goes_further_than_any_is_not_taken_in(group: Group, extent: Extent) -> None:
    group.start_anew("two")
    member = group.members["two"]

    async def pause(seconds: float) -> None:
        member.clock.now += seconds

    others = [Boaster(group, "two", "one", extent), Near(group, "two", "three")]
    await Elections(group.settings, member.follower, others, member.clock, pause).until_informed()
    assert member.follower.settled


async def test_three_that_start_at_once_go_on(group: Group) -> None:
    for name in group.names:
        group.start_anew(name)
    async with asyncio.TaskGroup() as tasks:
        for name in group.names:
            tasks.create_task(group.inform(name))
    assert await group.campaign("two") is not None


async def test_a_restarted_member_goes_on_while_another_is_away(group: Group) -> None:
    group.away = {"three"}
    for name in ("one", "two"):
        group.start_anew(name)
    assert await group.campaign("two") is not None


async def test_a_restarted_member_waits_for_who_does_not_answer_at_once(group: Group) -> None:
    group.away = {"three"}
    group.start_anew("two")
    member, waits = group.members["two"], 0

    async def pause(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            group.away = set()
        member.clock.now += seconds

    await group.elections("two", pause).until_informed()
    assert waits == 3
    assert member.follower.allegiance.is_informed


async def test_of_five_who_had_its_vote_is_waited_for_though_three_others_answer(tmp_path: Path) -> None:
    """One had it and is out of reach for a while; three may still vote for one, when it has told two of nothing."""
    with group_at(tmp_path, 5) as group:
        async with writing(group, "one", await group.campaign("one")):
            await until_settled(group)
        group.start_anew("two")
        group.keep_copy("two")
        await restart_asking(group, *group.names)
        stood = group.members["one"].follower.ballot()
        assert (await group.members["two"].follower.vote("one", stood, trial=False)).granted
        group.put_back("two")
        group.away = {"one"}
        member, waits = group.members["two"], 0

        async def pause(seconds: float) -> None:
            nonlocal waits
            waits += 1
            if waits == 3:
                assert await group.members["one"].follower.stand(stood)
                group.away = set()
            member.clock.now += seconds

        await group.elections("two", pause).until_informed()
        member.wait()
        assert (await group.members["three"].follower.vote("one", stood, trial=False)).granted
        assert not (await member.follower.vote("five", stood, trial=False)).granted


async def test_of_five_as_many_as_share_one_with_each_majority_suffice_after_a_while(tmp_path: Path) -> None:
    with group_at(tmp_path, 5) as group:
        group.away = {"one"}
        member, since = group.members["two"], group.members["two"].clock.now
        await group.inform("two")
        assert member.clock.now >= since + 2 * group.settings.election_seconds


async def test_alone_a_member_hears_of_nobody_and_follows_nobody(group: Group) -> None:
    group.away = {"one", "three"}
    group.start_anew("two")
    member, waits = group.members["two"], 0

    async def pause(seconds: float) -> None:
        nonlocal waits
        waits += 1
        member.clock.now += seconds
        if waits > 1000:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await group.elections("two", pause).until_informed()
    assert not member.follower.allegiance.is_informed
