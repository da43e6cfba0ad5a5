"""It is responsible for what the ledger itself says in the log, by the same way as everybody: published, then read.

So every leaf is a function of the stream, and reading the stream again gives the same log.
"""

from __future__ import annotations

import structlog

from libs.events.consume import StreamGap
from libs.events.erasure import ErasureEntry
from libs.events.outbox import OutboxFull
from libs.events.pruning import PruneOrdered
from libs.events.publish import Publisher
from libs.transparency.leaf import Kind
from services.ledger.checkpoints.announcing import SigningKeys
from services.ledger.intake.rejections import Refusal
from services.ledger.intake.sequencer import Verdict
from services.ledger.storage.sealed import Sealed

_LOGGED_SECONDS = 10.0

log = structlog.get_logger()


class OwnEntries:
    """Each entry IS durable in the outbox when the method returns."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    @property
    def issuer(self) -> bytes:
        return self._publisher.issuer

    async def start(self, epoch: int, build: bytes, recovered_size: int) -> None:
        """Say that a writer began: under which epoch, running what, and how much of the log it found."""
        await self._record(Kind.START, {"epoch": epoch, "build": build.hex(), "recovered_size": recovered_size})

    async def gap(self, source: bytes, gap: StreamGap) -> None:
        """Say that the stream lost messages."""
        await self._record(Kind.GAP, {"source": source.hex(), "from": gap.first, "to": gap.last})

    async def conflict(self, verdict: Verdict) -> None:
        """Say that an issuer gave one number to two entries."""
        refused = verdict.candidate
        await self._record(
            Kind.CONFLICT,
            {
                "issuer": refused.issuer.hex(),
                "issuer_seq": refused.issuer_seq,
                "logged": verdict.logged_commitment.hex(),
                "refused": refused.commitment.hex(),
            },
        )

    async def quarantine(self, refusal: Refusal, digest: bytes) -> None:
        """Say that a number of an admitted issuer will never be filled, and why."""
        await self._record(
            Kind.QUARANTINE,
            {
                "issuer": refusal.issuer.hex(),
                "issuer_seq": refusal.issuer_seq,
                "record_sha256": digest.hex(),
                "reason": refusal.reason.name,
            },
        )

    async def erasure(self, said: ErasureEntry) -> None:
        """Say what becomes of a vault. Raises `OutboxFull`: what is left out here would be done and nobody told."""
        await self._publisher.enqueue(Kind.ERASURE, said.body(), vault=None)

    async def erasure_logged(self, said: ErasureEntry) -> None:
        """Say what becomes of a vault, and wait until the log has it.

        Raises `LedgerUnavailable`, after which it may still be logged, and `OutboxFull`.
        """
        await self._publisher.commit(Kind.ERASURE, said.body(), vault=None, timeout=_LOGGED_SECONDS)

    async def prune_logged(self, said: PruneOrdered) -> None:
        """Say that the log may be pruned, and wait until the log has it. Raises what `erasure_logged` does."""
        await self._publisher.commit(Kind.PRUNE, said.body(), vault=None, timeout=_LOGGED_SECONDS)

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
            await self._publisher.enqueue(kind, body, vault=None)
        except OutboxFull:
            # Only reading the stream empties the outbox, so reading must go on; the operator's log has the facts.
            log.error("an entry of the ledger itself is left out", kind=kind.name, **body)
