"""It is responsible for child processes that end with their parent, even when that is killed with SIGKILL.

The kernel sends the signal when the *thread* that started the child ends, so start tethered children from the main
thread (asyncio does), never from a worker thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

_SHIM = Path(__file__).with_name("tether_shim.py")


def tethered(argv: Sequence[str], *, memory_bytes: int = 0, oom_score_adj: int = 0) -> list[str]:
    """Return the command that runs `argv` tied to this process. MUST be started by this process itself.

    `memory_bytes` bounds the private memory of each of its processes (RLIMIT_DATA, setrlimit(2)); 0 leaves it as it is.
    `oom_score_adj`, 0 to 1000, is how much sooner than others the kernel ends it where memory has run out (proc(5)).
    """
    # -I -S: no site packages, no environment, no user folder; the shim starts in a few milliseconds.
    own = [str(number) for number in (os.getpid(), memory_bytes, oom_score_adj)]
    return [sys.executable, "-I", "-S", str(_SHIM), *own, *argv]
