"""It is responsible for what this KMS learns from the log: changes of keys, policies, revocations.

The ledger is an appraised peer, and it admits key decisions from a KMS alone; what operators signed is verified here.
What the log has and this state lacks is taken over: it comes from another instance, or from this one before its disk
was put back, which is said aloud.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import NoReturn, Protocol

import grpc.aio
import structlog
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs import jcs
from libs.errors import MeshError
from libs.events.records import SALT_SIZE, parse_entry
from libs.identity.freshness import PolicyKeeper
from libs.policy.signatures import parse_signed
from libs.rpc.errors import remote_errors
from libs.transparency import leaf
from libs.transparency.leaf import Kind
from services.kms.book import KeyBook
from services.kms.changes import Change, logged_change
from services.kms.currency import Currency
from services.kms.decisions import Decisions

_KINDS = (Kind.KEY_DECISION, Kind.POLICY, Kind.REVOCATION)
_BATCH = 256
_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 25.0
"""The ledger sends a heartbeat every 10 s; this long without a message means that the stream is dead."""
_RETRY_SECONDS = 1.0
_KEEP_PLACE_EVERY = 64
"""Messages of a stream, heartbeats included, after which the place in the log is written down."""

log = structlog.get_logger()


class LedgerPeer(Protocol):
    """The ledger as an appraised peer."""

    async def channel(self, timeout: float) -> grpc.aio.Channel: ...


class LogReading:
    """Reads the log to its end, and on."""

    def __init__(
        self,
        kms: str,
        ledger: LedgerPeer,
        book: KeyBook,
        policy: PolicyKeeper,
        decisions: Decisions,
        currency: Currency,
    ) -> None:
        """`kms` is this instance's SPIFFE ID."""
        self._kms = kms
        self._ledger = ledger
        self._book = book
        self._policy = policy
        self._decisions = decisions
        self._currency = currency
        self._unlogged = book.pages.unlogged

    async def keep(self) -> NoReturn:
        """Follow the log for ever."""
        while True:
            try:
                await self._read(follow=False)
                self._book.keep_place()
                await self._say_again()
                self._currency.heard()
                await self._read(follow=True)
            except MeshError as error:
                log.warning("the log is not read", reason=error.reason, detail=str(error))
            except TimeoutError:
                log.warning("the log fell silent")
            await asyncio.sleep(_RETRY_SECONDS)

    async def _read(self, *, follow: bool) -> None:
        heard = 0
        async for message in self._stream(follow=follow):
            self._take(message)
            if follow:
                self._currency.heard()
            heard += 1
            if heard % _KEEP_PLACE_EVERY == 0:
                self._book.keep_place()

    async def _stream(self, *, follow: bool) -> AsyncIterator[ledger_pb2.TailResponse]:
        stub = ledger_pb2_grpc.LedgerServiceStub(await self._ledger.channel(_CONNECT_SECONDS))
        request = ledger_pb2.TailRequest(follow=follow, max_batch=_BATCH, kinds=[int(kind) for kind in _KINDS])
        if token := self._book.pages.token:
            request.token = token
        else:
            request.from_index = 0
        call = stub.Tail(request, wait_for_ready=False)
        try:
            while True:
                with remote_errors():
                    async with asyncio.timeout(_SILENCE_SECONDS):
                        message = await call.read()
                if not isinstance(message, ledger_pb2.TailResponse):
                    return
                yield message
        finally:
            call.cancel()

    def _take(self, message: ledger_pb2.TailResponse) -> None:
        changes: list[Change] = []
        for logged in message.entries:
            entry = parse_entry(logged.body[SALT_SIZE:])
            match leaf.parse(logged.leaf_data).kind:
                case Kind.POLICY:
                    self._take_policy(jcs.dumps(entry.body))
                case Kind.REVOCATION:
                    self._policy.accept_revocations([jcs.dumps(entry.body)])
                case Kind.KEY_DECISION if (change := logged_change(entry.body)) is not None:
                    changes.append(change)
        new = self._book.hear(changes, message.token)
        self._report(new)

    def _take_policy(self, signed: bytes) -> None:
        """Go forward to a policy that this KMS lacks; the keeper verifies it, whoever logged it."""
        version = parse_signed(signed).policy.version
        if version == self._policy.current.version + 1:
            log.warning("the log has a newer policy than this KMS", version=version)
            self._policy.accept(signed)

    def _report(self, new: Sequence[Change]) -> None:
        for change in new:
            if change.kms == self._kms:
                log.error(
                    "the state on disk had gone back: the log has a change of this KMS that it lacked",
                    name=change.name,
                    epoch=change.epoch,
                )
            else:
                log.info("key changed by another KMS", name=change.name, epoch=change.epoch, kms=change.kms)

    async def _say_again(self) -> None:
        """Record what an earlier start changed and the log does not have."""
        unlogged, self._unlogged = self._unlogged, ()
        for change in unlogged:
            if change in self._book.pages.unlogged:
                await self._decisions.record_later(change.to_body())
