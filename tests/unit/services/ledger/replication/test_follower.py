"""What a member answers the others: one vote an epoch, frames that verify, and nothing that contradicts a majority."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from libs.transparency.checkpoint import Checkpoint
from services.ledger.replication.allegiance import MAX_RISE, EpochTooFar, PromiseUnknown, WriterDeposed
from services.ledger.replication.cutting import LogDiverged
from services.ledger.replication.frame_files import LOG_START, FrameName
from services.ledger.replication.keyring_copy import NO_KEYRING, KeyringCopy
from services.ledger.replication.promise import (
    FOLDER,
    NAME,
    Extent,
    MembersMissing,
    Promise,
    PromiseFile,
    require_no_promise,
)
from services.ledger.replication.replica import AppendMalformed
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.frames import FrameDamaged
from services.ledger.storage.records_log import CHECKPOINTS, RecordsLog
from services.ledger.storage.recovery import CHECKPOINTS_LOG
from tests.unit.services.ledger.conftest import ORIGIN, sign_tree

from .members import Member, Writer, ballot, heading, member_at, writer_at


@pytest.fixture
async def member(tmp_path: Path) -> AsyncIterator[Member]:
    with member_at(tmp_path / "one") as made:
        made.wait()
        made.follower.allegiance.inform()
        yield made


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    with writer_at(tmp_path / "writer") as made:
        made.write([1], [2, 3, 4], [], [5])
        yield made


async def test_only_one_candidate_gets_the_vote_of_an_epoch(member: Member) -> None:
    assert (await member.follower.vote("two", ballot(1), trial=False)).granted
    assert (await member.follower.vote("two", ballot(1), trial=False)).granted
    assert not (await member.follower.vote("three", ballot(1), trial=False)).granted
    assert not (await member.follower.vote("three", ballot(0), trial=False)).granted
    assert (await member.follower.vote("three", ballot(2), trial=False)).granted


async def test_a_vote_outlives_the_process(tmp_path: Path) -> None:
    with member_at(tmp_path / "one") as first:
        first.wait()
        first.follower.allegiance.inform()
        assert (await first.follower.vote("two", ballot(3), trial=False)).granted
    with member_at(tmp_path / "one") as second:
        second.wait()
        second.follower.allegiance.inform()
        assert not (await second.follower.vote("three", ballot(3), trial=False)).granted
        assert not (await second.follower.vote("three", ballot(2), trial=False)).granted
        assert (await second.follower.vote("two", ballot(3), trial=False)).granted


async def test_a_trial_promises_nothing(member: Member) -> None:
    assert (await member.follower.vote("two", ballot(1), trial=True)).granted
    assert (await member.follower.vote("three", ballot(1), trial=False)).granted


async def test_many_who_ask_at_once_get_one_vote(member: Member) -> None:
    asked = (member.follower.vote(f"candidate-{number}", ballot(1), trial=False) for number in range(20))
    assert sum(vote.granted for vote in await asyncio.gather(*asked)) == 1


async def test_a_vote_that_nobody_waits_for_any_more_is_still_the_only_one(member: Member) -> None:
    asking = asyncio.create_task(member.follower.vote("two", ballot(1), trial=False))
    await asyncio.sleep(0)
    asking.cancel()
    assert not (await member.follower.vote("three", ballot(1), trial=False)).granted


@pytest.mark.parametrize("changed", range(30))
async def test_a_promise_that_cannot_be_read_keeps_the_member_down(tmp_path: Path, changed: int) -> None:
    with member_at(tmp_path / "one") as first:
        first.wait()
        first.follower.allegiance.inform()
        await first.follower.allegiance.recall(Extent(2, 5))
        await first.follower.vote("two", ballot(3), trial=False)
    path = tmp_path / "one" / FOLDER / NAME
    data = bytearray(path.read_bytes())
    data[len(data) * changed // 30] ^= 1
    path.write_bytes(data)
    with pytest.raises(LogDamaged), member_at(tmp_path / "one"):
        pass


async def test_a_promise_that_is_older_than_the_log_does_not_count_below_the_logs_epoch(tmp_path: Path) -> None:
    with writer_at(tmp_path / "one", epoch=4) as writer:
        writer.write([1])
        last = writer.end.name
        PromiseFile(writer.store.directory).store(Promise(2, "two", settled=True))
    with member_at(tmp_path / "one") as member:
        member.wait()
        member.follower.allegiance.inform()
        assert member.follower.epoch == 4
        assert not (await member.follower.vote("two", ballot(3, last_epoch=4, size=9), trial=False)).granted
        assert (await member.follower.take("two", heading(3, last), b"")).held is None


@pytest.mark.parametrize("epoch", [2**64 - 1, 2**53 - 1, MAX_RISE + 1])
async def test_no_member_brings_another_to_where_epochs_end(member: Member, writer: Writer, epoch: int) -> None:
    """A promise is never taken back: at the last epoch there is, nobody could be elected any more."""
    follower = member.follower
    for trial in (True, False):
        with pytest.raises(EpochTooFar):
            await follower.vote("two", ballot(epoch, last_epoch=epoch), trial=trial)
    assert follower.epoch == 0
    await follower.hear_of(epoch)
    assert follower.epoch == MAX_RISE
    with pytest.raises(EpochTooFar):
        await follower.take("two", heading(2**63), writer.after())
    with pytest.raises(EpochTooFar):
        await follower.keep_keyring("two", KeyringCopy(2**63, 1, b"content"))
    assert (follower.epoch, follower.size, follower.keyring) == (3 * MAX_RISE, 0, NO_KEYRING)
    assert (await follower.vote("three", ballot(follower.epoch + 1), trial=False)).granted


async def test_who_was_away_for_many_elections_follows_after_some_steps(member: Member, writer: Writer) -> None:
    epoch = 2 * MAX_RISE + 1
    for _ in range(2):
        with pytest.raises(EpochTooFar):
            await member.follower.take("two", heading(epoch), writer.after())
    assert (await member.follower.take("two", heading(epoch), writer.after())).held == writer.end.name


async def test_a_log_that_had_other_members_is_not_kept_alone(tmp_path: Path) -> None:
    with member_at(tmp_path / "one") as first:
        require_no_promise(tmp_path / "one")
        first.wait()
        first.follower.allegiance.inform()
        await first.follower.vote("two", ballot(1), trial=False)
    with pytest.raises(MembersMissing):
        require_no_promise(tmp_path / "one")


async def test_a_candidate_whose_log_is_behind_is_refused(member: Member, writer: Writer) -> None:
    await member.follower.take("two", heading(1), writer.after())
    member.wait()
    assert not (await member.follower.vote("three", ballot(5, last_epoch=1, size=4), trial=False)).granted
    assert not (await member.follower.vote("three", ballot(5, last_epoch=0, size=9), trial=False)).granted
    assert (await member.follower.vote("three", ballot(5, last_epoch=1, size=5), trial=False)).granted
    assert (await member.follower.vote("three", ballot(6, last_epoch=2, size=1), trial=False)).granted


async def test_a_writer_that_was_heard_lately_keeps_the_allegiance(member: Member, writer: Writer) -> None:
    await member.follower.take("two", heading(1), writer.after())
    assert not (await member.follower.vote("three", ballot(9, last_epoch=9, size=9), trial=False)).granted
    assert not (await member.follower.vote("three", ballot(9, last_epoch=9, size=9), trial=True)).granted


async def test_a_member_hears_of_growth_as_long_as_a_writer_is_there(member: Member, writer: Writer) -> None:
    assert not member.follower.allegiance.hears()
    await member.follower.take("two", heading(1), writer.after())
    assert member.follower.allegiance.hears()
    member.wait()
    assert not member.follower.allegiance.hears()


async def test_a_member_that_just_started_gives_no_vote_yet(tmp_path: Path) -> None:
    with member_at(tmp_path / "one") as fresh:
        assert not (await fresh.follower.vote("two", ballot(1), trial=False)).granted


async def test_frames_are_verified_durable_and_named_in_the_answer(
    tmp_path: Path, member: Member, writer: Writer
) -> None:
    taken = await member.follower.take("two", heading(1), writer.after())
    assert taken.held == writer.end.name == member.end
    assert member.store.index.size == 5
    assert member.store.head.root() == writer.store.head.root()


async def test_what_is_sent_twice_is_taken_once(member: Member, writer: Writer) -> None:
    for _ in range(2):
        assert (await member.follower.take("two", heading(1), writer.after())).held == writer.end.name
    assert member.follower.size == 5


async def test_any_changed_byte_of_a_frame_is_refused(member: Member, writer: Writer) -> None:
    data = writer.after()
    for at in range(0, len(data), 7):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises((FrameDamaged, AppendMalformed)):
            await member.follower.take("two", heading(1), changed)
    held = (await member.follower.take("two", heading(1), data)).held
    assert held == writer.end.name


async def test_frames_that_are_left_out_are_refused(member: Member, writer: Writer) -> None:
    later = writer.after(writer.first.name)
    with pytest.raises(FrameDamaged):
        await member.follower.take("two", heading(1), later)
    taken = await member.follower.take("two", heading(1, writer.first.name), later)
    assert (taken.held, taken.recent) == (None, (LOG_START,))


async def test_a_frame_of_a_later_epoch_than_its_senders_is_refused(member: Member, tmp_path: Path) -> None:
    with writer_at(tmp_path / "ahead", epoch=4) as ahead:
        ahead.write([1])
        with pytest.raises(FrameDamaged):
            await member.follower.take("two", heading(3), ahead.after())


async def test_a_stale_writer_is_refused_and_hears_why(member: Member, writer: Writer) -> None:
    await member.follower.vote("three", ballot(2), trial=False)
    taken = await member.follower.take("two", heading(1), writer.after())
    assert (taken.epoch, taken.held, member.follower.size) == (2, None, 0)


async def test_two_writers_of_one_epoch_are_not_both_followed(member: Member, writer: Writer) -> None:
    await member.follower.take("two", heading(1), b"")
    assert (await member.follower.take("three", heading(1), writer.after())).held is None


async def test_the_winner_of_an_epoch_is_followed_also_by_who_voted_otherwise(member: Member, writer: Writer) -> None:
    await member.follower.vote("three", ballot(1), trial=False)
    assert (await member.follower.take("two", heading(1), writer.after())).held == writer.end.name
    member.wait()
    assert not (await member.follower.vote("two", ballot(1, last_epoch=9), trial=False)).granted


async def test_what_a_majority_holds_is_told_no_further_than_this_member_has_it(member: Member, writer: Writer) -> None:
    one = writer.first
    data, _ = writer.files.read(writer.at(LOG_START), one, 1)
    await member.follower.take("two", heading(1, committed=5, begun=True), data)
    assert (member.growth.size, member.follower.settled) == (1, False)
    await member.follower.take("two", heading(1, one.name, committed=5, begun=True), writer.after(one.name))
    assert (member.growth.size, member.growth.root) == (5, writer.store.head.root())
    assert member.follower.settled


async def test_what_a_majority_holds_is_not_taken_to_be_what_this_member_has_beyond_the_writers_frames(
    member: Member, writer: Writer
) -> None:
    """Its own last frames may be of an earlier writer, whom no majority followed."""
    await member.follower.take("two", heading(1), writer.after())
    await member.follower.take("three", heading(2, writer.first.name, committed=5), b"")
    assert (member.growth.size, member.follower.size) == (1, 5)


async def test_a_log_that_contradicts_a_majority_ends_the_member_and_changes_nothing(
    member: Member, writer: Writer, tmp_path: Path
) -> None:
    await member.follower.take("two", heading(1, committed=5), writer.after())
    with writer_at(tmp_path / "other", epoch=2) as other:
        other.write([1], [9])
        with pytest.raises(LogDiverged):
            await member.follower.take("three", heading(2), other.after())
    with pytest.raises(LogDiverged):
        await member.follower.allegiance.until_ended()
    assert member.end == writer.end.name


async def test_what_a_member_has_signed_is_never_taken_back_whoever_writes(tmp_path: Path, writer: Writer) -> None:
    """Also after a start, before anybody has told it what counts."""
    with member_at(tmp_path / "one") as first:
        first.follower.allegiance.inform()
        await first.follower.take("two", heading(1), writer.after())
        signed = [Checkpoint(ORIGIN, size, first.store.index.tree.root(size)) for size in (1, 4)]
        notes = RecordsLog(first.store.directory / CHECKPOINTS_LOG, CHECKPOINTS, 0)
        notes.append([sign_tree(tree) for tree in signed])
        notes.close()
    with member_at(tmp_path / "one") as again, writer_at(tmp_path / "other", epoch=2) as other:
        again.follower.allegiance.inform()
        assert (again.growth.size, again.growth.root) == (4, signed[-1].root)
        other.write([1], [9])
        with pytest.raises(LogDiverged):
            await again.follower.take("three", heading(2), other.after())
        assert again.end == writer.end.name


async def test_a_member_names_its_last_frames_where_it_has_not_the_one_before(member: Member, writer: Writer) -> None:
    await member.follower.take("two", heading(1), writer.after())
    taken = await member.follower.take("two", heading(1, FrameName(5, b"\x09" * 32)), b"")
    assert taken.held is None
    assert (taken.recent[0], taken.recent[-1]) == (writer.end.name, LOG_START)
    assert [name.size for name in taken.recent] == [5, 4, 4, 1, 0]


async def test_a_writer_is_deposed_by_a_later_epoch_and_takes_no_frames(member: Member, writer: Writer) -> None:
    assert await member.follower.stand(member.follower.ballot())
    assert await member.follower.become_writer(1, NO_KEYRING)
    assert (await member.follower.take("two", heading(1), writer.after())).held is None
    assert (await member.follower.take("two", heading(2), writer.after())).held is None
    with pytest.raises(WriterDeposed):
        await member.follower.allegiance.until_ended()
    assert member.follower.size == 0


async def test_a_writer_gives_no_other_its_vote_before_it_has_ended(member: Member) -> None:
    """What it writes meanwhile counts as held by it, and a candidate was measured by less."""
    assert await member.follower.stand(member.follower.ballot())
    assert await member.follower.become_writer(1, NO_KEYRING)
    member.wait()
    for trial in (True, False):
        assert not (await member.follower.vote("two", ballot(9, last_epoch=9, size=9), trial=trial)).granted
    assert member.follower.epoch == 1


async def test_a_member_that_may_have_forgotten_its_promise_follows_nobody_before_it_has_asked(
    tmp_path: Path, writer: Writer
) -> None:
    with member_at(tmp_path / "new") as new:
        with pytest.raises(PromiseUnknown):
            await new.follower.take("two", heading(1), writer.after())
        with pytest.raises(PromiseUnknown):
            await new.follower.keep_keyring("two", KeyringCopy(1, 1, b"content"))
        new.wait()
        assert not (await new.follower.vote("two", ballot(1), trial=False)).granted
        assert (new.follower.size, new.follower.keyring.version) == (0, (0, 0))
        new.follower.allegiance.inform()
        await new.follower.take("two", heading(1, committed=5, begun=True), writer.after())
        assert new.follower.settled
    with member_at(tmp_path / "new") as again:
        with pytest.raises(PromiseUnknown):
            await again.follower.take("two", heading(1, writer.end.name), b"")
        again.follower.allegiance.inform()
        assert (await again.follower.take("two", heading(1, writer.end.name), b"")).held == writer.end.name


async def test_what_a_member_may_have_forgotten_is_past_once_it_holds_what_a_begun_writer_does(
    member: Member, writer: Writer
) -> None:
    """Nobody else had the rest, so it never counted."""
    await member.follower.take("two", heading(1, committed=5, begun=True), writer.after())
    await member.follower.recall(Extent(2, 99))
    assert not member.follower.settled
    assert not (await member.follower.vote("two", ballot(2, last_epoch=2, size=98), trial=True)).settled
    assert (await member.follower.vote("two", ballot(2, last_epoch=2, size=99), trial=True)).settled
    await member.follower.take("two", heading(1, writer.end.name, committed=5, begun=False), b"")
    assert not member.follower.settled
    await member.follower.take("two", heading(1, writer.end.name, committed=5, begun=True), b"")
    assert member.follower.settled


async def test_who_has_voted_for_another_meanwhile_does_not_become_the_writer(member: Member) -> None:
    standing = member.follower.ballot()
    assert await member.follower.stand(standing)
    assert (await member.follower.vote("two", ballot(2), trial=False)).granted
    assert not await member.follower.become_writer(standing.epoch, NO_KEYRING)
    assert not await member.follower.stand(standing)


async def test_a_later_writers_keyring_replaces_an_earlier_ones_of_any_generation(
    tmp_path: Path, member: Member
) -> None:
    mine = member.store.directory / "keyring"
    mine.write_bytes(b"shares of an earlier time")
    await member.follower.keep_keyring("two", KeyringCopy(1, 9, b"nine"))
    await member.follower.keep_keyring("two", KeyringCopy(1, 8, b"eight"))
    assert (member.follower.keyring.content, mine.exists()) == (b"nine", False)
    await member.follower.keep_keyring("three", KeyringCopy(2, 3, b"three"))
    assert member.keyring_file.load() == KeyringCopy(2, 3, b"three")
    assert await member.follower.keep_keyring("two", KeyringCopy(1, 10, b"ten")) == 2
    assert member.keyring_file.load() == KeyringCopy(2, 3, b"three")


async def test_a_start_leaves_no_older_shares_beside_the_copy(tmp_path: Path) -> None:
    """The member died when it had the new copy, and before the older file was gone."""
    with member_at(tmp_path / "one") as first:
        first.follower.allegiance.inform()
        await first.follower.keep_keyring("two", KeyringCopy(1, 1, b"content"))
    (tmp_path / "one" / "keyring").write_bytes(b"shares that are erased since")
    with member_at(tmp_path / "one") as again:
        assert again.follower.keyring == KeyringCopy(1, 1, b"content")
        assert not (tmp_path / "one" / "keyring").exists()


async def test_a_writer_that_begins_without_a_keyring_has_no_older_one(member: Member) -> None:
    (member.store.directory / "keyring").write_bytes(b"shares of an earlier time")
    assert await member.follower.stand(member.follower.ballot())
    assert await member.follower.become_writer(1, NO_KEYRING)
    assert member.keyring_file.writers_own() == b""


async def test_a_damaged_copy_of_the_keyring_keeps_the_member_down(tmp_path: Path) -> None:
    with member_at(tmp_path / "one") as first:
        first.follower.allegiance.inform()
        await first.follower.keep_keyring("two", KeyringCopy(1, 1, b"content"))
    path = tmp_path / "one" / FOLDER / "keyring"
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(LogDamaged), member_at(tmp_path / "one"):
            pass
