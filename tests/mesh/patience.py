"""Waiting for what another process does, which nothing tells this one."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.1


class PatienceEnded(Exception):
    """It did not come to be. No assertion: a check that is expected to fail must not hide it."""


def until(holds: Callable[[], bool], otherwise: Callable[[], str] = str, *, seconds: float = PATIENCE_SECONDS) -> None:
    """Ask again and again. Raises `PatienceEnded` with what `otherwise` says by then."""
    ends_at = time.monotonic() + seconds
    while not holds():
        if time.monotonic() >= ends_at:
            raise PatienceEnded(otherwise())
        time.sleep(_POLL_SECONDS)
