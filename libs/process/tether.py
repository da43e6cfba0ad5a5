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


def tethered(argv: Sequence[str]) -> list[str]:
    """Return the command that runs `argv` tied to this process. MUST be started by this process itself."""
    # -I -S: no site packages, no environment, no user folder; the shim starts in a few milliseconds.
    return [sys.executable, "-I", "-S", str(_SHIM), str(os.getpid()), *argv]
