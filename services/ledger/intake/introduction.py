"""It is responsible for this ledger's own way into the log, whether it writes or another member does.

It is introduced like everybody who writes: by a keyset with the whole of its evidence, which the writer admits or
refuses. So the log says of each member whose keys its heads and seals are under. What it still owes the log of the
faults that it found as a writer it says by the same way, whoever writes now.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.events.acknowledgements import AckSource, LedgerAcknowledgements, Received, Refused
from libs.events.publish import Publisher, open_publisher
from libs.identity.member import Member
from services.ledger.config import Config
from services.ledger.growth import Growth
from services.ledger.intake.owed import Owed, Paying
from services.ledger.intake.own import RESERVED_FRACTION


class Places(Protocol):
    """Where entries are in the log on this disk."""

    def index_of(self, issuer: bytes, issuer_seq: int) -> int | None: ...


class Answering:
    """Who answers this ledger's own entries: the member that writes, and from some time on perhaps this one itself."""

    def __init__(self, others: AckSource | None) -> None:
        """`others` answers while another member writes; None where there is no other."""
        self._others = others
        self._own: AckSource | None = None
        self._begun = asyncio.Event()

    def begin(self, own: AckSource) -> None:
        """Answer by oneself from now on."""
        self._own = own
        self._begun.set()

    async def follow(self, issuer: bytes, from_seq: Callable[[], int]) -> AsyncIterator[Received | Refused]:
        if self._others is not None:
            async for answer in self._until_begun(self._others.follow(issuer, from_seq)):
                yield answer
        await self._begun.wait()
        if self._own is not None:
            async for answer in self._own.follow(issuer, from_seq):
                yield answer

    async def _until_begun(self, others: AsyncIterator[Received | Refused]) -> AsyncIterator[Received | Refused]:
        begun = asyncio.ensure_future(self._begun.wait())
        try:
            while not begun.done():
                coming = asyncio.ensure_future(anext(others))
                try:
                    await asyncio.wait((coming, begun), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not coming.done():
                        coming.cancel()
                        await asyncio.wait((coming,))
                if not coming.cancelled():
                    yield coming.result()
        finally:
            begun.cancel()


@dataclass(frozen=True, slots=True)
class Introduction:
    """This process as an issuer of the log."""

    publisher: Publisher
    answering: Answering
    owed: Owed
    """What it has to say besides, as there is room."""


async def until_introduced(issuer: bytes, places: Places, growth: Growth) -> None:
    """Wait until the log on this disk holds an issuer's keyset, as far as it counts."""
    while True:
        size, index = growth.size, places.index_of(issuer, 1)
        if index is not None and index < size:
            return
        await growth.beyond(size)


@asynccontextmanager
async def introducing(
    member: Member, config: Config, origin: str, log_key: Ed25519PrivateKey
) -> AsyncIterator[Introduction]:
    """Be an issuer of the log of that name while the body runs. The keyset IS durable here when it begins.

    Raises what `open_publisher` does, `LogDamaged` or `LogBroken` where what is owed cannot be read; inside a group
    `KeysetRefused` where the writer does not admit this process.
    """
    others = [each.address for each in config.replication.others(config.member.instance)]
    # A ledger alone is never called by itself: it answers itself as soon as it runs.
    writer = member.ledger(others or [config.member.listen])
    answering = Answering(LedgerAcknowledgements(writer, origin) if others else None)
    with closing(await asyncio.to_thread(Owed, config.data_dir)) as owed:
        async with (
            open_publisher(
                member,
                config.events,
                writer,
                log_key=log_key,
                acknowledgements=answering,
                reserve_bytes=config.events.outbox_max_bytes // RESERVED_FRACTION,
            ) as publisher,
            asyncio.TaskGroup() as tasks,
        ):
            paying = tasks.create_task(Paying(owed, publisher).keep())
            yield Introduction(publisher, answering, owed)
            paying.cancel()
