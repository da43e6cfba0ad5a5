"""Processes as the kernel has them: who started whom, and whether they have ended."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """The processes below a process."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (parent := _parent(int(entry))) is not None:
            parents.setdefault(parent, []).append(int(entry))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found.update(children)
        waiting.extend(children)
    return found


def _parent(pid: int) -> int | None:
    try:
        # The name in parentheses may hold anything; what follows the last of them does not.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


@contextmanager
def watched(pids: Iterable[int]) -> Iterator[Mapping[int, int]]:
    """Give a pidfd for each process, so that a number that is used again is not mistaken for it."""
    with ExitStack() as opened:
        processes = {}
        for pid in pids:
            descriptor = os.pidfd_open(pid)
            opened.callback(os.close, descriptor)
            processes[descriptor] = pid
        yield processes


def still_alive(processes: Mapping[int, int], within_seconds: float) -> set[int]:
    """Wait until all have ended, at most so long; return the process ids of those that have not."""
    alive = dict(processes)
    deadline = time.monotonic() + within_seconds
    while alive:
        ended, _, _ = select.select(list(alive), [], [], max(0.0, deadline - time.monotonic()))
        if not ended:
            break
        for descriptor in ended:
            del alive[descriptor]
    return set(alive.values())
