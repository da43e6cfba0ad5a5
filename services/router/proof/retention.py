"""It is responsible for letting receipts go: after a stated time, or before it when there is no more room.

In small steps, each a transaction of its own, so that a receipt that is to be kept waits for none of them for long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn

import structlog

from libs.errors import MeshError
from services.router.proof.kept_receipts import KeptReceipts
from services.router.proof.settings import ReceiptSettings

AGED, CROWDED = "age", "space"
_EVERY_SECONDS = 10.0

log = structlog.get_logger()


class Retention:
    """Keeps receipts within their bounds. `let_go` is told why how many receipts went."""

    def __init__(
        self,
        receipts: KeptReceipts,
        settings: ReceiptSettings,
        let_go: Callable[[str, int], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` is in Unix seconds."""
        self._receipts = receipts
        self._settings = settings
        self._let_go = let_go
        self._clock = clock

    async def keep(self) -> NoReturn:
        """Let go of what is due, for ever."""
        while True:
            try:
                await self.trim()
            except MeshError as error:
                log.error("receipts are not let go", reason=error.reason, detail=str(error))
            await asyncio.sleep(_EVERY_SECONDS)

    async def trim(self) -> None:
        """Let go of everything that is due now. Raises `ReceiptStoreFailed`."""
        crowded = 0
        while True:
            step = await self._receipts.let_go(
                int(self._clock()) - self._settings.retain_seconds, self._settings.retain_bytes
            )
            for why, number in ((AGED, step.aged), (CROWDED, step.crowded)):
                if number:
                    self._let_go(why, number)
            crowded += step.crowded
            if not step.is_some:
                break
        if crowded:
            log.warning("receipts go before their time: there is no more room", number=crowded)
