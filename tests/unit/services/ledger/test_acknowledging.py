"""Acknowledgements: verifiable, resumable, issued again from the log, never queued without a bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.events.acknowledgements import Received, Refused
from libs.transparency.acknowledgement import Acknowledgement, Statement, verify_acknowledgement
from services.ledger.intake.acknowledging import Acknowledgements, Answer, FollowerTooSlow, OwnAcknowledgements
from services.ledger.intake.rejections import Reason, Refusal, Rejections
from services.ledger.intake.sequencer import Sequencer
from services.ledger.storage.store import LogStore

from .conftest import KEY, SOURCE, candidate, open_store, sequencer

ISSUER = b"\x11" * 32


class Hub:
    """A log with its acknowledgements, and a writer that commits as intake does."""

    def __init__(self, store: LogStore, rejections: Rejections, key: Ed25519PrivateKey = KEY) -> None:
        self.store = store
        self.writer: Sequencer = sequencer(store)
        self.rejections = rejections
        self.uncommitted = 0
        self.acknowledgements = Acknowledgements(
            store, rejections, key, self.writer.epoch, lambda: store.head.size - self.uncommitted
        )

    def commit(self, *numbers: int) -> None:
        position = self.store.head.source_high + 1
        for commit in self.writer.append([candidate(number) for number in numbers], SOURCE, position, position):
            self.acknowledgements.deliver(self.acknowledgements.sign(commit))

    def refuse(self, number: int) -> None:
        refusal = Refusal(1, Reason.KIND_NOT_ALLOWED, "why", b"record", ISSUER, number)
        self.rejections.keep([refusal])
        self.acknowledgements.refuse([refusal])

    def verify(self, answer: Answer) -> Statement:
        assert isinstance(answer, Acknowledgement)
        return verify_acknowledgement(answer, self.acknowledgements.public_key, self.store.log_id)


@pytest.fixture
def hub(empty_log: Path) -> Iterator[Hub]:
    with open_store(empty_log) as store:
        yield Hub(store, Rejections(empty_log))


async def take(told: AsyncIterator[Sequence[Answer]], count: int) -> list[Answer]:
    answers: list[Answer] = []
    async with asyncio.timeout(20):
        while len(answers) < count:
            answers.extend(await anext(told))
    return answers


async def test_entries_are_acknowledged_as_they_become_durable(hub: Hub) -> None:
    async with aclosing(hub.acknowledgements.answers(ISSUER, 1)) as answers:
        first = asyncio.ensure_future(take(answers, 3))
        await asyncio.sleep(0)  # The follower is there before the entries are.
        hub.commit(1, 2, 3)
        statements = [hub.verify(answer) for answer in await first]
    assert [(statement.index, statement.issuer_seq) for statement in statements] == [(0, 1), (1, 2), (2, 3)]


async def test_answers_that_are_there_come_together_and_never_in_one_heap(hub: Hub) -> None:
    async with aclosing(hub.acknowledgements.answers(ISSUER, 1)) as told:
        first = asyncio.ensure_future(anext(told))
        await asyncio.sleep(0)
        hub.commit(*range(1, 101))
        hub.refuse(101)
        hub.commit(102)
        counts = [len(await first), len(await anext(told))]
    assert counts == [64, 38]


async def test_what_no_majority_holds_yet_is_not_issued_again(hub: Hub) -> None:
    hub.commit(1, 2)
    hub.commit(3)
    hub.uncommitted = 1
    async with aclosing(hub.acknowledgements.answers(ISSUER, 1)) as answers:
        assert [hub.verify(answer).issuer_seq for answer in await take(answers, 2)] == [1, 2]
        third = asyncio.ensure_future(take(answers, 1))
        await asyncio.sleep(0.05)
        assert not third.done()
        hub.uncommitted = 0
        hub.acknowledgements.deliver([hub.acknowledgements.issue_again(2)])
        assert hub.verify((await third)[0]).issuer_seq == 3


async def test_what_was_missed_is_issued_again_with_the_same_statement(hub: Hub, empty_log: Path) -> None:
    async with aclosing(hub.acknowledgements.answers(ISSUER, 1)) as answers:
        taking = asyncio.ensure_future(take(answers, 4))
        await asyncio.sleep(0)
        hub.commit(1, 2, 3)
        hub.commit(4)
        before = [hub.verify(answer) for answer in await taking]
    restarted = Hub(hub.store, hub.rejections, Ed25519PrivateKey.generate())
    async with aclosing(restarted.acknowledgements.answers(ISSUER, 2)) as answers:
        after = [restarted.verify(answer) for answer in await take(answers, 3)]
    assert after == before[1:]


async def test_numbers_below_the_one_asked_for_are_left_out(hub: Hub) -> None:
    hub.commit(1, 2)
    async with aclosing(hub.acknowledgements.answers(ISSUER, 3)) as answers:
        taking = asyncio.ensure_future(take(answers, 1))
        await asyncio.sleep(0)
        hub.acknowledgements.deliver([hub.acknowledgements.issue_again(0)])
        hub.commit(3)
        assert hub.verify((await taking)[0]).issuer_seq == 3


async def test_refusals_are_told_now_and_to_who_asks_later(hub: Hub) -> None:
    async with aclosing(hub.acknowledgements.answers(ISSUER, 1)) as answers:
        taking = asyncio.ensure_future(take(answers, 1))
        await asyncio.sleep(0)
        hub.refuse(7)
        assert await taking == [Refused(7, "KIND_NOT_ALLOWED")]
    async with aclosing(hub.acknowledgements.answers(ISSUER, 7)) as answers:
        assert await take(answers, 1) == [Refused(7, "KIND_NOT_ALLOWED")]


async def test_what_nobody_proved_is_not_told(hub: Hub) -> None:
    async with aclosing(hub.acknowledgements.answers(ISSUER, 1)) as answers:
        taking = asyncio.ensure_future(take(answers, 1))
        await asyncio.sleep(0)
        hub.acknowledgements.refuse([Refusal(1, Reason.SIGNATURE_INVALID, "why", b"", ISSUER, 1)])
        hub.commit(1)
        assert hub.verify((await taking)[0]).issuer_seq == 1


async def test_a_follower_that_does_not_read_is_cut_off_and_may_resume(hub: Hub) -> None:
    async with aclosing(hub.acknowledgements.answers(ISSUER, 1)) as answers:
        hub.commit(1)
        await take(answers, 1)
        again = hub.acknowledgements.issue_again(0)
        hub.acknowledgements.deliver([again] * 5000)
        with pytest.raises(FollowerTooSlow):
            await take(answers, 5000)
    assert not hub.acknowledgements.follows(ISSUER)
    async with aclosing(hub.acknowledgements.answers(ISSUER, 1)) as answers:
        assert hub.verify((await take(answers, 1))[0]).issuer_seq == 1


async def test_nothing_is_kept_for_followers_that_left(hub: Hub) -> None:
    hub.commit(1)
    async with aclosing(hub.acknowledgements.answers(ISSUER, 1)) as answers:
        await take(answers, 1)
        assert hub.acknowledgements.follows(ISSUER)
    assert not hub.acknowledgements.follows(ISSUER)


async def test_the_ledgers_own_entries_are_answered_without_a_connection(hub: Hub) -> None:
    hub.commit(1)
    own = OwnAcknowledgements(hub.acknowledgements, hub.store.log_id)
    async with asyncio.timeout(20):
        received = await anext(own.follow(ISSUER, lambda: 1))
    assert isinstance(received, Received)
    assert verify_acknowledgement(received.acknowledgement, received.ack_key, received.log_id).issuer_seq == 1
