"""Responsible for matching the ledger's answers to what was sent; only what is verified and durable counts."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from libs.errors import Code, MeshError
from libs.events.acknowledgements import AckSource, Received, Refused, verify_received
from libs.events.outbox import Outbox
from libs.events.outbox_items import Acknowledged, Rejected
from libs.transparency.acknowledgement import Acknowledgement, AcknowledgementInvalid, LastSignature, Statement

_REMEMBERED = 4096

log = structlog.get_logger()


class EntryRejected(MeshError):
    """The ledger refused the entry and will not take it later either."""

    code = Code.FAILED_PRECONDITION
    reason = "ENTRY_REJECTED"


class PublisherClosed(MeshError):
    """The publisher was closed before the ledger answered. The entry stays in the outbox."""

    code = Code.UNAVAILABLE
    reason = "PUBLISHER_CLOSED"


@dataclass(frozen=True, slots=True)
class Verified:
    """An acknowledgement that is verified, and whether it is durable here yet: it does not count before."""

    acknowledgement: Acknowledgement
    durable: asyncio.Future[None]


class Awaiting:
    """Someone who waits for the answer to one entry."""

    def __init__(self, issuer_seq: int) -> None:
        self.issuer_seq = issuer_seq
        self.answer: asyncio.Future[Verified] = asyncio.get_running_loop().create_future()


class KeysetRefused(MeshError):
    """The ledger will take nothing from this start: its evidence is not allowed by the policy that the log holds.

    It says so once and for ever to this issuer. Right after an upgrade the log may lack the newest policy for a moment,
    so the process ends, and the next start is judged anew.
    """

    code = Code.PERMISSION_DENIED
    reason = "KEYSET_REFUSED"


class Answers:
    """The answers to one outbox's issuers. Only this start's own issuer has anyone waiting."""

    def __init__(self, outbox: Outbox, issuer: bytes) -> None:
        self._outbox = outbox
        self._issuer = issuer
        self._awaiting: dict[int, Awaiting] = {}
        self._refused = False
        """Whether the ledger takes nothing of this start."""
        self._highest_epoch = outbox.state.highest_epoch
        self._last_signature = LastSignature()
        self._answered: OrderedDict[tuple[bytes, int], tuple[int, bytes]] = OrderedDict()

    def expect(self, awaiting: Awaiting) -> None:
        self._awaiting[awaiting.issuer_seq] = awaiting
        if self._refused:
            _refuse(awaiting, _with_its_keyset())

    def forget(self, awaiting: Awaiting) -> None:
        self._awaiting.pop(awaiting.issuer_seq, None)

    def abandon(self) -> None:
        """Nobody will answer any more."""
        for awaiting in self._awaiting.values():
            _refuse(awaiting, PublisherClosed("the publisher was closed before the ledger answered"))

    async def follow(self, source: AckSource, issuer: bytes) -> None:
        """Take in one issuer's answers: this start's for ever, an earlier one's until none is missing.

        Raises `KeysetRefused`; whoever waits has learnt by then that its entry is refused, and can see to it.
        """
        state = self._outbox.state
        earlier = issuer != self._issuer

        def from_seq() -> int:
            lowest = state.lowest_awaited(issuer)
            return state.last_seq(issuer) + 1 if lowest is None else lowest

        if earlier and state.lowest_awaited(issuer) is None:
            return
        async for answer in source.follow(issuer, from_seq):
            durable = self._take(issuer, answer)
            if not earlier and isinstance(answer, Refused) and answer.reason == KeysetRefused.reason:
                self._refused = True
                for awaiting in self._awaiting.values():
                    _refuse(awaiting, _with_its_keyset())
                raise KeysetRefused(f"the ledger does not admit this start: {answer.reason}; a new start asks again")
            if earlier and durable is not None:
                await durable
                if state.lowest_awaited(issuer) is None:
                    return

    def _take(self, issuer: bytes, answer: Received | Refused) -> asyncio.Future[None] | None:
        if isinstance(answer, Refused):
            return self._reject(issuer, answer)
        try:
            return self._accept(issuer, answer)
        except MeshError as error:
            log.error("acknowledgement refused", issuer=issuer.hex(), reason=error.reason, error=str(error))
            return None

    def _accept(self, issuer: bytes, received: Received) -> asyncio.Future[None] | None:
        claimed = Statement.parse(received.acknowledgement.statement)
        number = claimed.issuer_seq
        facts = self._outbox.state.awaited(issuer, number)
        if facts is None:
            self._compare(issuer, claimed)
            return None
        statement = verify_received(received, issuer, facts, number, self._highest_epoch, self._last_signature)
        self._highest_epoch = max(self._highest_epoch, received.acknowledgement.signer_epoch)
        self._remember(issuer, statement)
        acknowledgement = received.acknowledgement
        durable = self._outbox.append(
            Acknowledged(issuer, number, acknowledgement.signer_epoch, acknowledgement.statement)
        )
        awaiting = self._awaiting.get(number) if issuer == self._issuer else None
        if awaiting is not None and not awaiting.answer.done():
            awaiting.answer.set_result(Verified(acknowledgement, durable))
        return durable

    def _reject(self, issuer: bytes, refused: Refused) -> asyncio.Future[None] | None:
        if self._outbox.state.awaited(issuer, refused.issuer_seq) is None:
            return None
        log.error("entry rejected", issuer=issuer.hex(), issuer_seq=refused.issuer_seq, reason=refused.reason)
        durable = self._outbox.append(Rejected(issuer, refused.issuer_seq, refused.reason))
        if issuer == self._issuer and (awaiting := self._awaiting.get(refused.issuer_seq)) is not None:
            _refuse(awaiting, EntryRejected(f"the ledger refused the entry: {refused.reason}"))
        return durable

    def _remember(self, issuer: bytes, statement: Statement) -> None:
        self._answered[issuer, statement.issuer_seq] = (statement.index, statement.leaf_hash)
        if len(self._answered) > _REMEMBERED:
            self._answered.popitem(last=False)

    def _compare(self, issuer: bytes, statement: Statement) -> None:
        """Another index or leaf for an entry that was acknowledged: the log contradicts itself."""
        known = self._answered.get((issuer, statement.issuer_seq))
        if known is not None and known != (statement.index, statement.leaf_hash):
            raise AcknowledgementInvalid(f"entry {statement.issuer_seq} was acknowledged at index {known[0]} before")


def _with_its_keyset() -> EntryRejected:
    return EntryRejected(f"the ledger refused the entry: {KeysetRefused.reason}")


def _refuse(awaiting: Awaiting, failure: MeshError) -> None:
    if not awaiting.answer.done():
        awaiting.answer.set_exception(failure)
