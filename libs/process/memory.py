"""It is responsible for keeping what this process has in memory out of core dumps and from other processes of its user.

A limit of zero keeps the kernel from writing a dump to a file. One that is piped to a program heeds no limit, so the
process is made not dumpable besides: the kernel then dumps nothing of it, and lets no process of the same user trace it
or read its memory. Children inherit the limit; becoming another program makes a process dumpable again.
"""

from __future__ import annotations

import ctypes
import os
import resource

from libs.errors import MeshError

_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4


class MemoryNotProtected(MeshError):
    """The kernel would still dump this process, or let others read it: nothing secret may come into it."""

    reason = "MEMORY_NOT_PROTECTED"


def protect_memory() -> None:
    """Forbid core dumps and tracing for the life of this process. MUST come before its first secret.

    Raises `MemoryNotProtected`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except OSError as error:
        raise MemoryNotProtected(f"core dumps cannot be limited: {error.strerror}") from error
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise MemoryNotProtected(f"core dumps cannot be forbidden: {os.strerror(ctypes.get_errno())}")
    if libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise MemoryNotProtected("the kernel would still dump this process")
