"""It is responsible for ending the process the moment a write or a sync has failed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from services.ledger.storage.damage import LogBroken


@contextmanager
def ending_when_broken() -> Iterator[None]:
    """Run what writes. On `LogBroken` the process is gone before anyone is told anything more, its buffers included.

    A second sync would succeed without having written: Linux marks pages clean after the first failure.
    """
    try:
        yield
    except LogBroken as error:
        # A full disk takes no last words either.
        with suppress(OSError):
            os.write(sys.stderr.fileno(), f"ledger: {error.reason}: {error}\n".encode())
        os._exit(LogBroken.exit_status)
