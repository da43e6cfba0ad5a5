"""It is responsible for handing out this node's receipts again for a while: by their ids, from memory, so many at most.

They hold digests and no prompt. An id is random, and known to whoever holds the receipt or is told of it by who does.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from libs.errors import Code, MeshError

MOST_KEPT = 4096
KEPT_SECONDS = 3600.0


class ReceiptNotKept(MeshError):
    """This process made no receipt of that id, or longer ago than it keeps any, or too many since."""

    code = Code.NOT_FOUND
    reason = "NOT_FOUND"


class KeptReceipts:
    """The newest ones."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        """In the order in which they were made."""

    def keep(self, receipt_id: str, document: bytes) -> None:
        self._drop_old()
        self._kept[receipt_id] = self._clock(), document
        if len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)

    def find(self, receipt_id: str) -> bytes:
        """Return the signed document. Raises `ReceiptNotKept`."""
        self._drop_old()
        _, document = self._kept.get(receipt_id, (0.0, None))
        if document is None:
            raise ReceiptNotKept("no such receipt; it may have expired")
        return document

    def _drop_old(self) -> None:
        oldest_kept = self._clock() - KEPT_SECONDS
        while self._kept and next(iter(self._kept.values()))[0] < oldest_kept:
            self._kept.popitem(last=False)
