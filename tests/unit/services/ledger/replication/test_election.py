"""Who writes: whoever a majority of those who know what they promised gave an epoch, with the newest of everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.ledger.growth import LogBehind
from services.ledger.replication.allegiance import MAX_RISE, WriterDeposed
from services.ledger.replication.keyring_copy import KeyringCopy
from services.ledger.replication.leading import Elected, Leading
from services.ledger.storage import segments
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.segment_files import SEGMENTS

from .members import Writer
from .near import Group, group_at


class Waits(Exception):
    """Somebody is about to wait, for so many seconds."""


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[Group]:
    with group_at(tmp_path) as made:
        yield made


@asynccontextmanager
async def writing(group: Group, name: str, elected: Elected | None) -> AsyncIterator[Leading]:
    """The elected one writes while the body runs, and a majority has what it found."""
    assert elected is not None
    leading = group.leading(name, elected)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(leading.run())
        async with asyncio.timeout(20):
            await leading.until_begun()
        yield leading
        running.cancel()
    group.start_anew(name)


async def until(is_true: Callable[[], bool]) -> None:
    while True:
        if is_true():
            return
        await asyncio.sleep(0.01)


async def until_held(leading: Leading, *names: str) -> None:
    """Wait until these members hold all that the writer does."""
    async with asyncio.timeout(20):
        await until(lambda: all(leading.majority.held_by(name) >= leading.end.name.size for name in names))


async def write(group: Group, leading: Leading, name: str, epoch: int, *numbers: int) -> None:
    Writer(group.members[name].store, epoch).write(list(numbers))
    async with asyncio.timeout(20):
        await leading.held()


async def begun(group: Group, *absent: str) -> None:
    """A group that has settled, and three entries, of which those that are away have none."""
    async with writing(group, "one", await group.campaign("one")) as leading:
        await until_settled(group)
        group.away.update(absent)
        await write(group, leading, "one", 1, 1, 2, 3)
        await until_held(leading, *({"two", "three"} - group.away))


async def until_settled(group: Group) -> None:
    async with asyncio.timeout(20):
        await until(lambda: all(member.follower.settled for member in group.members.values()))


async def test_the_first_writer_is_elected_by_all_or_by_none(group: Group) -> None:
    group.away.add("three")
    assert await group.campaign("one") is None
    group.away.clear()
    assert await group.campaign("one") is not None


async def test_a_settled_majority_elects_without_the_third(group: Group) -> None:
    await begun(group)
    group.away.add("one")
    async with writing(group, "two", await group.campaign("two")) as leading:
        assert leading.end.name.size == 3


async def test_one_that_lacks_what_counts_is_not_elected(group: Group) -> None:
    await begun(group, "three")
    group.away = set()
    assert await group.campaign("three") is None
    assert await group.campaign("two") is not None


async def test_an_emptied_disk_does_not_help_a_log_that_lacks_what_counts(group: Group) -> None:
    """One and two held three acknowledged entries; two forgets them, and one is away: three must not write."""
    await begun(group, "three")
    group.forget("two")
    group.away = {"one"}
    assert await group.campaign("three") is None
    assert await group.campaign("two") is None
    group.away = set()
    assert await group.campaign("three") is None
    async with writing(group, "one", await group.campaign("one")) as leading:
        await until_held(leading, "two", "three")
        await until_settled(group)
    assert group.members["two"].store.head.root() == group.members["one"].store.head.root()


async def test_who_has_just_voted_for_another_leaves_it_the_time_to_begin(group: Group) -> None:
    async def pause(seconds: float) -> None:
        raise Waits(seconds)

    await begun(group)
    voter, candidate = group.members["two"].follower, group.members["three"].follower
    elections = group.elections("two", pause)
    for member in group.members.values():
        member.wait()
    ballot = candidate.ballot()
    assert (await voter.vote("three", ballot, trial=False)).granted
    with pytest.raises(Waits) as waits:
        await elections.until_elected()
    assert waits.value.args[0] >= group.settings.election_seconds
    assert voter.epoch == ballot.epoch


async def test_a_trial_that_fails_leaves_every_promise_as_it_was(group: Group) -> None:
    await begun(group, "three")
    group.away = set()
    before = [member.follower.epoch for member in group.members.values()]
    assert await group.campaign("three") is None
    assert [member.follower.epoch for member in group.members.values()] == before


async def test_a_new_writer_takes_the_keyring_that_a_majority_had(group: Group) -> None:
    async with writing(group, "one", await group.campaign("one")) as leading:
        await until_settled(group)
        group.away = {"two"}
        (group.members["one"].store.directory / "keyring").write_bytes(b"with a share")
        async with asyncio.timeout(20):
            await leading.share(4)
    group.away = {"one"}
    async with writing(group, "two", await group.campaign("two")):
        assert (group.members["two"].store.directory / "keyring").read_bytes() == b"with a share"
        assert group.members["three"].follower.keyring == KeyringCopy(2, 4, b"with a share")


async def test_a_keyring_does_not_count_before_a_majority_has_it(group: Group) -> None:
    async with writing(group, "one", await group.campaign("one")) as leading:
        await until_settled(group)
        group.away = {"two", "three"}
        sharing = asyncio.create_task(leading.share(4))
        await asyncio.sleep(0.05)
        assert not sharing.done()
        group.away = {"two"}
        async with asyncio.timeout(20):
            await sharing


async def test_an_emptied_member_gets_the_keyring_again(group: Group) -> None:
    """It had it, and the writer remembers that: but what a majority has must outlive the writer."""
    async with writing(group, "one", await group.campaign("one")) as leading:
        await until_settled(group)
        group.away = {"three"}
        (group.members["one"].store.directory / "keyring").write_bytes(b"with a share")
        async with asyncio.timeout(20):
            await leading.share(4)
        group.away = set()
        group.forget("two")
        group.away = {"three"}
        group.members["two"].follower.allegiance.inform()
        async with asyncio.timeout(20):
            await until(lambda: group.members["two"].follower.settled)
    assert group.members["two"].follower.keyring == KeyringCopy(1, 4, b"with a share")


async def test_a_keyring_that_members_of_a_later_epoch_refused_does_not_count(group: Group) -> None:
    async with writing(group, "one", await group.campaign("one")) as leading:
        await until_settled(group)
        group.away = {"one"}
        sharing = asyncio.create_task(leading.share(4))
        for name in ("two", "three"):
            group.members[name].wait()
            await group.members[name].follower.hear_of(9)
        async with asyncio.timeout(20):
            await until(lambda: leading.keyring.generation == 4)
        group.away = set()
        with pytest.raises(WriterDeposed):
            await group.members["one"].follower.allegiance.until_ended()
        await asyncio.sleep(0.05)
        assert not sharing.done()
        sharing.cancel()
    assert {group.members[name].follower.keyring.epoch for name in ("two", "three")} == {1}


async def test_an_emptied_member_learns_of_the_promise_that_it_forgot(group: Group) -> None:
    """One writes and does not know of it yet: two had voted for three, and follows no earlier writer."""
    await begun(group)
    for name in ("two", "three"):
        group.members[name].wait()
    standing = group.members["three"].follower.ballot()
    assert await group.members["three"].follower.stand(standing)
    assert (await group.members["two"].follower.vote("three", standing, trial=False)).granted
    group.forget("two")
    group.away = {"three"}
    asking = asyncio.create_task(group.inform("two"))
    await asyncio.sleep(0.05)
    assert not asking.done()
    group.away = set()
    await asking
    assert group.members["two"].follower.epoch == standing.epoch


async def test_an_emptied_member_follows_nobody_before_it_is_at_the_epoch_that_others_promised(group: Group) -> None:
    for name in ("two", "three"):
        for step in range(1, 4):
            await group.members[name].follower.hear_of(step * MAX_RISE)
    await group.inform("one")
    assert group.members["one"].follower.epoch == 3 * MAX_RISE


async def test_five_members_go_on_without_two_and_not_without_three(tmp_path: Path) -> None:
    with group_at(tmp_path, 5) as group:
        async with writing(group, "one", await group.campaign("one")) as leading:
            await until_settled(group)
            group.away = {"four", "five"}
            await write(group, leading, "one", 1, 1, 2, 3)
        group.away = {"one", "five"}
        assert await group.campaign("four") is None  # It lacks what the three others held.
        async with writing(group, "two", await group.campaign("two")) as leading:
            await write(group, leading, "two", group.members["two"].follower.epoch, 4)
            group.away = {"one", "four", "five"}
            Writer(group.members["two"].store, group.members["two"].follower.epoch).write([5])
            waiting = asyncio.create_task(leading.held())
            await until_held(leading, "three")
            assert not waiting.done()
            group.away = {"one", "five"}
            async with asyncio.timeout(20):
                await waiting
        assert await group.campaign("three") is not None


async def test_nobody_settles_by_what_a_writer_says_before_it_has_begun(group: Group) -> None:
    """It does not know yet how much a majority holds, and so not what they must have."""
    elected = await group.campaign("one")
    assert elected is not None
    leading = group.leading("one", elected)
    others = [group.members["two"], group.members["three"]]
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(leading.run())
        await until(lambda: all(other.store.head.epoch == elected.epoch for other in others))
        assert not any(other.follower.settled for other in others)
        await leading.until_begun()
        await until_settled(group)
        running.cancel()


async def test_a_writer_knows_all_only_as_long_as_nobody_can_have_followed_it(group: Group) -> None:
    async with writing(group, "one", await group.campaign("one")) as leading:
        assert leading.is_heard()
        group.members["one"].growth.require_all()
        group.members["one"].wait()
        assert not leading.is_heard()
        with pytest.raises(LogBehind):
            group.members["one"].growth.require_all()


@pytest.mark.parametrize("damaged", ["header", "body"])
async def test_a_writer_whose_own_frames_are_damaged_ends(group: Group, damaged: str) -> None:
    """A body is given as it is, and refused again and again: who is to blame is seen by reading it here."""

    async def write_for_all(elected: Elected | None) -> None:
        async with writing(group, "two", elected), asyncio.timeout(20):
            group.away = set()
            await asyncio.Event().wait()

    await begun(group, "three")
    path = group.members["two"].store.directory / SEGMENTS / segments.file_name(0)
    data = bytearray(path.read_bytes())
    data[segments.HEADER_SIZE if damaged == "header" else data.index(b"salt and entry 2")] ^= 1
    path.write_bytes(data)
    elected = await group.campaign("two")
    with pytest.raises(ExceptionGroup) as ended:
        await write_for_all(elected)
    assert ended.group_contains(LogDamaged)


async def test_who_calls_whole_frames_damaged_ends_no_writer(group: Group) -> None:
    async with writing(group, "one", await group.campaign("one")) as leading:
        group.refusing = {"three"}
        await write(group, leading, "one", 1, 1, 2, 3)
        await until_held(leading, "two")
        group.refusing = set()
        await until_held(leading, "three")


async def test_a_slow_answer_says_nothing_of_the_time_that_it_took(group: Group) -> None:
    async with writing(group, "one", await group.campaign("one")) as leading:
        clock = group.members["one"].clock
        group.answer_seconds, before = group.settings.election_seconds, clock.now
        async with asyncio.timeout(20):
            await until(lambda: clock.now > before)
        assert not leading.is_heard()


async def test_a_member_that_was_away_gets_every_frame_it_lacks(group: Group) -> None:
    await begun(group, "three")
    group.away = set()
    async with writing(group, "two", await group.campaign("two")) as leading:
        await write(group, leading, "two", 2, 4)
        await until_held(leading, "one", "three")
    roots = {member.store.head.root() for member in group.members.values()}
    assert len(roots) == 1
