"""It is responsible for carrying erasures out: ordered in the log, then done, whatever dies in between.

What is to be done follows from the log alone: whatever is ordered there and not done is carried out, by this process or
the next. The shares go only when a signed tree covers every entry of the vault: without its tag share nobody could make
those leaves again from the stream.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import NoReturn, Protocol

import structlog

from libs.errors import MeshError
from libs.events.erasure import KEY_KEPT, KEY_RETIRED, ErasureDone, ErasureEntry, parse_erasure
from libs.events.outbox import OutboxFull
from libs.events.records import SALT_SIZE, parse_entry
from libs.policy.vault_orders import VaultPart
from services.ledger.checkpoints.auditing import SignedTree
from services.ledger.growth import Growth
from services.ledger.keys import KeySource, while_away
from services.ledger.storage.store import LogStore
from services.ledger.vaults.erasures import Erasure, Erasures
from services.ledger.vaults.vaults import Vaults

log = structlog.get_logger()


class SignedTrees(Protocol):
    """Whose word it takes that leaves are lost no more: signed by the auditor and, where there are any, witnessed."""

    async def covering(self, size: int) -> SignedTree: ...


class Sayings(Protocol):
    """Where the ledger says what becomes of a vault."""

    async def erasure(self, said: ErasureEntry) -> None:
        """Return when it is durable here. Raises `OutboxFull`."""
        ...

    async def erasure_logged(self, said: ErasureEntry) -> None:
        """Return when the log has it. Raises `LedgerUnavailable`, `OutboxFull`."""
        ...


@dataclass(frozen=True, slots=True)
class Erased:
    """What was erased, and which entries say so."""

    part: VaultPart
    ordered_index: int
    done_index: int
    said: ErasureDone


class Erasing:
    """The task that destroys shares."""

    def __init__(
        self,
        store: LogStore,
        growth: Growth,
        erasures: Erasures,
        vaults: Vaults,
        keys: KeySource,
        trees: SignedTrees,
        own: Sayings,
    ) -> None:
        self._store = store
        self._growth = growth
        self._erasures = erasures
        self._vaults = vaults
        self._keys = keys
        self._trees = trees
        self._own = own

    async def keep(self) -> NoReturn:
        """Carry out whatever is ordered, for ever. One that waits for the KMS holds up no other."""
        for erasure in self._erasures.all():
            if erasure.done is not None:
                # An older keyring may have been put back since.
                await self._vaults.destroy(erasure.part)
        begun: set[bytes] = set()
        async with asyncio.TaskGroup() as tasks:
            while True:
                size = self._growth.size
                for erasure in self._erasures.outstanding():
                    if erasure.ordered not in begun and self._store.index.find(erasure.ordered) is not None:
                        begun.add(erasure.ordered)
                        tasks.create_task(self._carry_out(erasure))
                await self._growth.beyond(size)

    async def until_done(self, part: VaultPart) -> Erased:
        """Wait until the log says that what was ordered of a part is done, by entries that count."""
        while True:
            size = self._growth.size
            erasure = self._erasures.of(part)
            if erasure is not None and erasure.done is not None:
                ordered, done = (self._store.index.find(entry) for entry in (erasure.ordered, erasure.done))
                if ordered is not None and done is not None and max(ordered, done) < size:
                    return Erased(erasure.part, ordered, done, self._said_at(done))
            await self._growth.beyond(size)

    def _said_at(self, index: int) -> ErasureDone:
        said = parse_erasure(parse_entry(self._store.reader.entry(index).row.body[SALT_SIZE:]).body)
        if not isinstance(said, ErasureDone):
            raise ValueError("another entry has that id")
        return said

    async def _carry_out(self, erasure: Erasure) -> None:
        part = erasure.part
        index = self._store.index.find(erasure.ordered)
        if index is None:
            raise ValueError("an order is carried out once it is in the log")
        tree = await self._trees.covering(index + 1)
        generation = await self._vaults.destroy(part)
        key = await self._end_key(erasure)
        await self._vaults.forgotten()
        done = ErasureDone(
            part=part,
            ordered=erasure.ordered,
            last_seq=self._store.index.next_vault_seq(part.vault_id) - 1,
            checkpoint_size=tree.size,
            checkpoint_root=tree.root,
            keyring_generation=generation,
            key=key,
        )
        await self._say(done)
        log.info("erased", vault=part.subject, ordered=index, key=done.key)

    async def _end_key(self, erasure: Erasure) -> str:
        """Have the KMS refuse its half for ever, and return what became of that. By itself it opens nothing."""
        order = erasure.order
        if erasure.part.epoch is not None or order is None:
            return KEY_KEPT

        async def ask() -> None:
            await self._keys.retire(order.document)

        try:
            await while_away(ask, erasure.part.key_name)
        except MeshError as error:
            log.error("the KMS goes on releasing its half", name=erasure.part.key_name, reason=error.reason)
            return error.reason
        return KEY_RETIRED

    async def _say(self, done: ErasureDone) -> None:
        """Say it as soon as the outbox has room, which it has once the log has grown."""
        while True:
            size = self._growth.size
            try:
                await self._own.erasure(done)
            except OutboxFull:
                log.warning("an erasure is done and waits for room in the outbox to say so")
                await self._growth.beyond(size)
            else:
                return
