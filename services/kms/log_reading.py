"""It is responsible for what this KMS learns from the log: changes of keys, policies, revocations.

The ledger is an appraised peer, and it admits key decisions from a KMS alone; what operators signed is verified here.
What the log has and this state lacks is taken over: it comes from another instance, or from this one before its disk
was put back, which is said aloud.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import NoReturn

import structlog
from teemesh.ledger.v1 import ledger_pb2

from libs import jcs
from libs.errors import MeshError
from libs.events.records import SALT_SIZE, parse_entry
from libs.events.tailing import LedgerChannels, tail
from libs.identity.freshness import PolicyKeeper
from libs.policy.revocation import SignedRevocation, parse_revocation
from libs.policy.signatures import parse_signed
from libs.transparency import leaf
from libs.transparency.leaf import Kind
from services.kms.book import KeyBook
from services.kms.changes import Change, logged_change
from services.kms.currency import Currency
from services.kms.justification import verify_logged
from services.kms.logged import Logged
from services.kms.unlogged import Unlogged

_KINDS = (Kind.KEY_DECISION, Kind.POLICY, Kind.REVOCATION)
_BATCH = 256
_RETRY_SECONDS = 1.0
_KEEP_PLACE_EVERY = 64
"""Messages of a stream, heartbeats included, after which the place in the log is written down."""

log = structlog.get_logger()


class LogReading:
    """Reads the log to its end, and on."""

    def __init__(
        self,
        kms: str,
        ledger: LedgerChannels,
        book: KeyBook,
        policy: PolicyKeeper,
        unlogged: Unlogged,
        logged: Logged,
        currency: Currency,
    ) -> None:
        """`kms` is this instance's SPIFFE ID."""
        self._kms = kms
        self._ledger = ledger
        self._book = book
        self._policy = policy
        self._unlogged = unlogged
        self._logged = logged
        self._currency = currency
        if book.pages.place.token and not logged.matches:
            log.error("policy or revocations on disk are not those of the log: it is read from its start")
            book.forget_place()

    async def keep(self) -> NoReturn:
        """Follow the log for ever."""
        while True:
            try:
                await self._read(follow=False)
                await self._book.keep_place()
                await self._unlogged.say_again()
                await self._logged.record()
                self._currency.heard()
                await self._read(follow=True)
            except MeshError as error:
                log.warning("the log is not read", reason=error.reason, detail=str(error))
            except TimeoutError:  # Which is an OSError too.
                log.warning("the log fell silent")
            except OSError as error:
                # The boot class goes on without the disk.
                log.error("what the log says cannot be kept", detail=str(error))
            await asyncio.sleep(_RETRY_SECONDS)

    async def _read(self, *, follow: bool) -> None:
        heard = 0
        token = self._book.pages.place.token
        stream = tail(self._ledger, token, _KINDS, follow=follow, max_batch=_BATCH)
        async with aclosing(stream) as messages:
            async for message in messages:
                await self._take(message)
                if follow:
                    await self._unlogged.say_again()
                    self._currency.heard()
                heard += 1
                if heard % _KEEP_PLACE_EVERY == 0:
                    await self._book.keep_place()

    async def _take(self, message: ledger_pb2.TailResponse) -> None:
        changes: list[Change] = []
        revocations: dict[int, SignedRevocation] = {}
        for logged in message.entries:
            try:
                self._take_entry(logged, changes, revocations)
            except MeshError as error:
                _report_uncounted(logged.index, error)
        # After the policies among them: whom those name may have signed them.
        self._take_revocations(revocations)
        self._report(await self._book.hear(changes, self._logged.place(message.token)))

    def _take_entry(
        self, logged: ledger_pb2.LoggedEntry, changes: list[Change], revocations: dict[int, SignedRevocation]
    ) -> None:
        entry = parse_entry(logged.body[SALT_SIZE:])
        match leaf.parse(logged.leaf_data).kind:
            case Kind.POLICY:
                self._take_policy(jcs.dumps(entry.body))
            case Kind.REVOCATION:
                revocations[logged.index] = parse_revocation(jcs.dumps(entry.body))
            case Kind.KEY_DECISION if (change := logged_change(entry.body)) is not None:
                verify_logged(change, self._book.pages.newest(change.name, changes), self._policy)
                changes.append(change)

    def _take_policy(self, signed: bytes) -> None:
        """Go forward to a policy that this KMS lacks; the keeper verifies it, whoever logged it."""
        policy = parse_signed(signed).policy
        if policy.version == self._policy.current.version + 1:
            log.warning("the log has a newer policy than this KMS", version=policy.version)
            self._policy.accept(signed)
        if self._policy.oldest <= policy.version <= self._policy.current.version:
            self._logged.hear_policy(policy.version, policy.digest)

    def _take_revocations(self, found: Mapping[int, SignedRevocation]) -> None:
        """Learn all of a message at once: each time that one is learned, everything is judged again."""
        try:
            self._policy.accept_revocations([signed.document for signed in found.values()])
        except MeshError:
            for index, signed in found.items():  # What is valid is known by now; the others are named one by one.
                try:
                    self._policy.accept_revocations([signed.document])
                except MeshError as error:
                    _report_uncounted(index, error)
        self._logged.hear_revocations(signed.revocation.id for signed in found.values())

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


def _report_uncounted(index: int, error: MeshError) -> None:
    """The log forgets nothing: an entry that does not count must not keep the later ones from counting."""
    log.error("a logged entry does not count", index=index, reason=error.reason, detail=str(error))
