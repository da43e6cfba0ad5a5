"""It is responsible for what the ledger says in the log of its own work and of vaults, by the same way as everybody:
published, then read. What it says of others' faults is `owed`.

So every leaf is a function of the stream, and reading the stream again gives the same log. A part of its outbox is for
this alone: nobody who makes the ledger say much of faults keeps it out of the log.
"""

from __future__ import annotations

import structlog

from libs.events.erasure import ErasureEntry
from libs.events.outbox import OutboxFull
from libs.events.pruning import PruneOrdered
from libs.events.publish import Publisher
from libs.transparency.leaf import Kind
from services.ledger.checkpoints.announcing import SigningKeys
from services.ledger.storage.sealed import Sealed

_LOGGED_SECONDS = 10.0

RESERVED_FRACTION = 8
"""One in so many bytes of the outbox is for what is said here."""

log = structlog.get_logger()


class OwnEntries:
    """Each entry IS durable in the outbox when the method returns."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def start(self, epoch: int, build: bytes, recovered_size: int) -> None:
        """Say that a writer began: under which epoch, running what, and how much of the log it found."""
        await self._record(Kind.START, {"epoch": epoch, "build": build.hex(), "recovered_size": recovered_size})

    async def erasure(self, said: ErasureEntry) -> None:
        """Say what becomes of a vault. Raises `OutboxFull`: what is left out here would be done and nobody told."""
        await self._publisher.enqueue(Kind.ERASURE, said.body(), vault=None, essential=True)

    async def erasure_logged(self, said: ErasureEntry) -> None:
        """Say what becomes of a vault, and wait until the log has it.

        Raises `LedgerUnavailable`, after which it may still be logged, and `OutboxFull`.
        """
        await self._publisher.commit(Kind.ERASURE, said.body(), vault=None, timeout=_LOGGED_SECONDS, essential=True)

    async def prune_logged(self, said: PruneOrdered) -> None:
        """Say that the log may be pruned, and wait until the log has it. Raises what `erasure_logged` does."""
        await self._publisher.commit(Kind.PRUNE, said.body(), vault=None, timeout=_LOGGED_SECONDS, essential=True)

    async def keys(self, epoch: int, keys: SigningKeys) -> None:
        """Say under which keys this writer signs."""
        said = {"ack_key": keys.acknowledgement.hex(), "checkpoint_key": keys.checkpoint.hex()}
        await self._record(Kind.LOGKEY, {"epoch": epoch, **said})

    async def seal(self, segment: Sealed) -> None:
        """Say that a segment is sealed, and what it holds."""
        footer = segment.footer
        place: dict[str, str | int] = {"number": footer.number, "first": footer.first, "count": footer.count}
        said = {"chain": footer.chain.hex(), "root": footer.root.hex(), "footer_sha256": segment.footer_hash.hex()}
        await self._record(Kind.SEAL, {**place, **said})

    async def witnessed(self, note: bytes) -> None:
        """Say which tree a quorum of witnesses has cosigned, by its note and all their lines."""
        await self._record(Kind.WITNESS, {"checkpoint": note.decode()})

    async def _record(self, kind: Kind, body: dict[str, str | int]) -> None:
        try:
            await self._publisher.enqueue(kind, body, vault=None, essential=True)
        except OutboxFull:
            # It repeats what files, keysets and tree show, and only reading the stream empties the outbox: go on.
            log.error("an entry of the ledger itself is left out", kind=kind.name, **body)
