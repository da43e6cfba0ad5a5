"""It is responsible for cancellations that are lost on their way.

Up to Python 3.11 `asyncio.wait_for` drops one that comes in the moment in which what it waits for is there, and a task
group drops one that comes while it ends with an error; nats-py takes some for that of a task of its own. A task that is
cancelled once and goes on holds up its group for ever: the process neither works nor ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


def heed_cancellation() -> None:
    """End this task's cleaning up with its cancellation, whatever else it failed with."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


@contextmanager
def heeding_cancellation() -> Iterator[None]:
    """End the block with the cancellation that came while it ran, whatever became of it inside.

    One that came before does not count: what cleans up after it runs to its end.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        yield
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
