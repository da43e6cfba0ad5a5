"""It is responsible for what the stream brings before it is judged: read as a batch, with the keys of the vaults that
it names, and examined.

Nothing is refused here: what could not be read, or does not open, is for admission to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from libs.errors import MeshError
from libs.events.batches import Batch, parse_batch
from libs.events.consume import StreamGap, StreamMessage
from libs.events.vault import PUBLIC_EPOCH, PUBLIC_VAULT_ID, VaultKey
from services.ledger.intake.examination import VaultKeys
from services.ledger.intake.rejections import Reason, Refusal
from services.ledger.keys import while_away

_LITTLE_BYTES = 16 * 1024
"""So much is opened in less time than it takes to ask another process and hear its answer."""


class VaultKeySource(Protocol):
    """Who has the keys of vaults."""

    def holds(self, vault_id: bytes, epoch: int) -> bool: ...

    async def key(self, vault_id: bytes, epoch: int) -> VaultKey: ...


class Examiner(Protocol):
    """Who opens sealed records."""

    async def opening(
        self, read: Sequence[tuple[StreamMessage, Batch]], vaults: VaultKeys
    ) -> Sequence[frozenset[int]]: ...


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message as far as it can be read without the log."""

    message: StreamMessage
    batch: Batch | Refusal
    vaults: VaultKeys
    """Keys of the vaults that the batch names, perhaps of others besides."""
    opens: frozenset[int] = frozenset()
    """Numbers of its sealed records of which it is known that they open and say what they should: admission opens the
    others."""

    @property
    def sequence(self) -> int:
        return self.message.sequence


Event = Arrival | StreamGap


class Arrivals:
    """Reads what the stream brings."""

    def __init__(self, vaults: VaultKeySource, examiner: Examiner) -> None:
        self._vaults = vaults
        self._examiner = examiner

    async def read(self, events: Sequence[StreamMessage | StreamGap], *, on_the_way: int = 0) -> list[Event]:
        """Return everything that came, in order. `on_the_way` is how many bytes came before and are not judged yet."""
        batches = {event.sequence: _parse(event) for event in events if isinstance(event, StreamMessage)}
        vaults = await self._keys([batch for batch in batches.values() if isinstance(batch, Batch)])
        size = on_the_way + sum(len(event.data) for event in events if isinstance(event, StreamMessage))
        # Admission opens what nobody did.
        opens = await self._opens(events, batches, vaults) if vaults and size > _LITTLE_BYTES else {}
        return [
            event
            if isinstance(event, StreamGap)
            else Arrival(event, batches[event.sequence], vaults, opens.get(event.sequence, frozenset()))
            for event in events
        ]

    async def _opens(
        self, events: Sequence[StreamMessage | StreamGap], batches: dict[int, Batch | Refusal], vaults: VaultKeys
    ) -> dict[int, frozenset[int]]:
        read = [
            (event, batch)
            for event in events
            if isinstance(event, StreamMessage) and isinstance(batch := batches[event.sequence], Batch)
        ]
        opening = await self._examiner.opening(read, vaults)
        return {event.sequence: opens for (event, _), opens in zip(read, opening, strict=True)}

    async def _keys(self, batches: Sequence[Batch]) -> VaultKeys:
        """Return the keys of the vaults that batches name. The KMS being away is waited for: nothing is refused."""
        named = {(record.header.vault_id, record.header.vault_epoch) for batch in batches for record in batch.records}
        keys = {}
        for vault_id, epoch in named - {(PUBLIC_VAULT_ID, PUBLIC_EPOCH)}:
            if self._vaults.holds(vault_id, epoch):
                try:
                    keys[vault_id, epoch] = await self._key(vault_id, epoch)
                except MeshError:
                    # What is being committed meanwhile may order its erasure; admission refuses its records then.
                    if self._vaults.holds(vault_id, epoch):
                        raise
        return keys

    async def _key(self, vault_id: bytes, epoch: int) -> VaultKey:
        async def ask() -> VaultKey:
            return await self._vaults.key(vault_id, epoch)

        return await while_away(ask, f"ledger-vault/{vault_id.hex()}")


def _parse(message: StreamMessage) -> Batch | Refusal:
    try:
        return parse_batch(message.data)
    except MeshError as error:
        detail = f"{error.reason}: {error}"
        return Refusal(message.sequence, Reason.MESSAGE_MALFORMED, detail, message.data)
