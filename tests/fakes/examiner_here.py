"""An examiner in the test's own process: the same examination."""

from __future__ import annotations

from collections.abc import Sequence

from libs.events.batches import Batch
from libs.events.consume import StreamMessage
from services.ledger.intake.examination import VaultKeys, opening


class ExaminerHere:
    async def opening(self, read: Sequence[tuple[StreamMessage, Batch]], vaults: VaultKeys) -> Sequence[frozenset[int]]:
        return [opening(batch, vaults) for _, batch in read]
