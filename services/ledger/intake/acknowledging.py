"""It is responsible for acknowledgements: signed once per commit, delivered to whoever follows an issuer, issued again
from the log for whoever missed them.

Nothing is queued without a bound: a follower that does not read is cut off, and asks again from where it stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.errors import Code, MeshError
from libs.events.acknowledgements import Received, Refused
from libs.transparency.acknowledgement import Acknowledgement, acknowledge
from libs.transparency.leaf import key_of
from services.ledger.intake.rejections import Refusal, Rejections
from services.ledger.intake.sequencer import Commit
from services.ledger.storage.store import LogStore

HEARTBEAT_SECONDS = 10.0
_QUEUE = 4096
_CHUNK = 64


class FollowerTooSlow(MeshError):
    """The follower does not read fast enough: ask again from the lowest number without an answer."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "FOLLOWER_TOO_SLOW"


Answer = Acknowledgement | Refused


class _Follower:
    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[int, Answer] | None] = asyncio.Queue(_QUEUE)

    def tell(self, issuer_seq: int, answer: Answer) -> bool:
        """Whether the follower keeps up."""
        if self._queue.full():
            self._queue.get_nowait()
            self._queue.put_nowait(None)
            return False
        self._queue.put_nowait((issuer_seq, answer))
        return True

    async def take(self, from_seq: int) -> list[Answer]:
        """Wait for an answer and return it with those that are there besides. Raises `FollowerTooSlow`."""
        told = [await self._queue.get()]
        while len(told) < _CHUNK and not self._queue.empty():
            told.append(self._queue.get_nowait())
        answers = []
        for each in told:
            if each is None:
                raise FollowerTooSlow("ask again from the lowest number without an answer")
            if each[0] >= from_seq:
                answers.append(each[1])
        return answers


class Acknowledgements:
    """What the ledger tells issuers. `sign` and `issue_again` may run in any thread, the rest on the event loop."""

    def __init__(
        self, store: LogStore, rejections: Rejections, key: Ed25519PrivateKey, epoch: int, committed: Callable[[], int]
    ) -> None:
        """`committed` says how many leaves count: no other entry is acknowledged again."""
        self._store = store
        self._committed = committed
        self._rejections = rejections
        self._key = key
        self._epoch = epoch
        self._followers: dict[bytes, set[_Follower]] = {}

    @property
    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def sign(self, commit: Commit) -> list[Acknowledgement]:
        """Acknowledge a commit, which IS durable, with one signature."""
        if not commit.entries:
            return []
        return acknowledge(commit.entries, log_id=self._store.log_id, signer_epoch=self._epoch, key=self._key)

    def issue_again(self, index: int) -> Acknowledgement:
        """Acknowledge one logged entry again: the same statement, signed now. Raises `LogDamaged`."""
        entry = self._store.reader.statement(index)
        return acknowledge([entry], log_id=self._store.log_id, signer_epoch=self._epoch, key=self._key)[0]

    def follows(self, issuer: bytes) -> bool:
        """Whether anybody waits for this issuer's answers."""
        return issuer in self._followers

    def deliver(self, acknowledgements: Iterable[Acknowledgement]) -> None:
        for acknowledgement in acknowledgements:
            _, issuer, issuer_seq = key_of(acknowledgement.leaf_data)
            self._tell(issuer, issuer_seq, acknowledgement)

    def refuse(self, refusals: Iterable[Refusal]) -> None:
        """Tell issuers what was refused, as far as it is proven to be theirs."""
        for refusal in refusals:
            if refusal.reason.is_proven:
                self._tell(refusal.issuer, refusal.issuer_seq, Refused(refusal.issuer_seq, refusal.reason.name))

    async def answers(self, issuer: bytes, from_seq: int) -> AsyncGenerator[Sequence[Answer], None]:
        """Yield the answers to an issuer's entries from a number on, first what is known already, then for ever.

        They come together as they are there: what is made for each message is most of the cost of an answer. None at
        all says that nothing happened for a while. An answer may come twice. Raises `FollowerTooSlow`.
        """
        follower = _Follower()
        # Before the log is read, so that nothing falls between.
        self._followers.setdefault(issuer, set()).add(follower)
        try:
            refused = self._rejections.of(issuer, from_seq)
            for start in range(0, len(refused), _CHUNK):
                yield [Refused(number, reason.name) for number, reason in refused[start : start + _CHUNK]]
            async for acknowledgements in self._logged(issuer, from_seq):
                yield acknowledgements
            while True:
                told: Sequence[Answer] = ()
                with suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        told = await follower.take(from_seq)
                yield told
        finally:
            followers = self._followers.get(issuer, set())
            followers.discard(follower)
            if not followers:
                self._followers.pop(issuer, None)

    async def _logged(self, issuer: bytes, from_seq: int) -> AsyncIterator[Sequence[Acknowledgement]]:
        progress = self._store.index.progress(issuer)
        highest = 0 if progress is None else progress.highest
        for start in range(from_seq, highest + 1, _CHUNK):
            numbers = range(start, min(start + _CHUNK, highest + 1))
            yield await asyncio.to_thread(self._issue_known, issuer, numbers)

    def _issue_known(self, issuer: bytes, numbers: range) -> list[Acknowledgement]:
        found = (self._store.index.index_of(issuer, number) for number in numbers)
        committed = self._committed()
        return [self.issue_again(index) for index in found if index is not None and index < committed]

    def _tell(self, issuer: bytes, issuer_seq: int, answer: Answer) -> None:
        for follower in list(self._followers.get(issuer, ())):
            if not follower.tell(issuer_seq, answer):
                self._followers[issuer].discard(follower)


class OwnAcknowledgements:
    """The answers to the ledger's own entries, without a connection to itself."""

    def __init__(self, source: Acknowledgements, log_id: bytes) -> None:
        self._source = source
        self._log_id = log_id

    async def follow(self, issuer: bytes, from_seq: Callable[[], int]) -> AsyncIterator[Received | Refused]:
        while True:
            try:
                async with aclosing(self._source.answers(issuer, from_seq())) as told:
                    async for answers in told:
                        for answer in answers:
                            yield (
                                answer
                                if isinstance(answer, Refused)
                                else Received(answer, self._source.public_key, self._log_id)
                            )
            except FollowerTooSlow:
                continue
