"""A disk that takes writes and cannot make them durable: `/dev/null` under a descriptor that is open already."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writes_without_sync(path: Path) -> Iterator[None]:
    """Every descriptor this process has open on `path` leads to `/dev/null` inside: writes succeed, syncs are EINVAL.

    The kernel itself refuses `fsync` there, so whoever promises durability without asking for it is found out.
    """
    descriptors = [number for number in map(int, os.listdir("/proc/self/fd")) if _leads_to(number, path)]
    if not descriptors:
        raise LookupError(f"nothing in this process has {path} open")
    kept = [os.dup(number) for number in descriptors]
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        for number in descriptors:
            os.dup2(nowhere, number, inheritable=False)
        yield
    finally:
        os.close(nowhere)
        for number, original in zip(descriptors, kept, strict=True):
            # What the failure closed stays closed.
            if _leads_to(number, Path(os.devnull)):
                os.dup2(original, number, inheritable=False)
            os.close(original)


def _leads_to(number: int, path: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{number}") == str(path.resolve())
    except FileNotFoundError:
        return False
