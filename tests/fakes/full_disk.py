"""A disk that takes no more, as a process meets it: its own limit on the size of files (RLIMIT_FSIZE, EFBIG)."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Bound what this process writes. What it has begun to write beyond is an error."""
    with full_for([0], size):
        yield


@contextmanager
def full_for(pids: Iterable[int], size: int = 0) -> Iterator[None]:
    """Bound what running processes write, and those that they start meanwhile. One that ends is forgotten."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            try:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
            except ProcessLookupError:
                continue
