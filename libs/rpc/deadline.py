"""It is responsible for the time that a running call has left, and how much of it outgoing calls may spend.

The deadline travels in the call's context. A background task that a call starts inherits it too: give such a task a
context of its own (`create_task(..., context=Context())`).
"""

from __future__ import annotations

import time
from contextvars import ContextVar

from libs.errors import Code, MeshError

# What a service keeps back to answer in after an outgoing call timed out: this share, at most this long.
_MARGIN_SHARE = 0.1
_MARGIN_SECONDS = 0.25


class DeadlineRequired(MeshError):
    """A call came without a deadline, and its method is not a long-lived stream."""

    code = Code.INVALID_ARGUMENT
    reason = "DEADLINE_REQUIRED"


class DeadlineSpent(MeshError):
    """Too little of the caller's time is left to ask anyone else."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_SPENT"


_ends_at: ContextVar[float | None] = ContextVar("teemesh_deadline", default=None)


def adopt(remaining: float | None) -> None:
    """Make the caller's deadline the running call's. None: a long-lived stream without one."""
    _ends_at.set(None if remaining is None else time.monotonic() + remaining)


def remaining_seconds() -> float | None:
    """Return what is left of the running call's deadline, at least 0; None outside of a call or without a deadline."""
    ends_at = _ends_at.get()
    return None if ends_at is None else max(0.0, ends_at - time.monotonic())


def outgoing_timeout(limit: float) -> float:
    """Return the timeout for an outgoing call: what is left less a margin, at most `limit`. Raises `DeadlineSpent`."""
    remaining = remaining_seconds()
    if remaining is None:
        return limit
    usable = remaining - min(_MARGIN_SECONDS, remaining * _MARGIN_SHARE)
    if usable <= 0:
        raise DeadlineSpent("the caller's deadline has passed")
    return min(limit, usable)
