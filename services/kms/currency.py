"""It is responsible for whether this KMS knows everything that the log says of keys and policies.

A disk can be put back to an older state by whoever owns it, so a start proves nothing. Until the log was read to its
end the KMS serves what the mesh needs to have a log at all, and no other key; so too when it hears no more of the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from libs.errors import Code, MeshError

_MAX_SILENCE_SECONDS = 60.0


class KeyStateBehind(MeshError):
    """This KMS does not know that it has read the log to its end: ask again soon."""

    code = Code.UNAVAILABLE
    reason = "KEY_STATE_BEHIND"


class Currency:
    """Not current at first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is in seconds and never goes back."""
        self._clock = clock
        self._until = clock()

    @property
    def is_current(self) -> bool:
        return self._clock() < self._until

    def heard(self) -> None:
        """The log was read to its end just now."""
        self._until = self._clock() + _MAX_SILENCE_SECONDS

    def require(self) -> None:
        """Raise `KeyStateBehind` unless the end of the log was seen within the last minute."""
        if not self.is_current:
            raise KeyStateBehind("the KMS has not read the log to its end yet, or has lost it")
