"""It is responsible for becoming another program that the kernel kills when the parent ends, with bounded memory where
that is asked for. Run by `tethered` alone.

It needs nothing of this project, so that it can run without any search path.
"""

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, memory_bytes, oom_score_adj = map(int, sys.argv[1:4])
    argv = sys.argv[4:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL)) != 0:
        sys.exit(f"tether: cannot be tied to the parent: {os.strerror(ctypes.get_errno())}")
    # The parent may have ended before the tie was made; nobody would send the signal any more.
    if os.getppid() != parent:
        sys.exit("tether: the parent is gone")
    try:
        if memory_bytes:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    except (OSError, ValueError) as error:
        sys.exit(f"tether: memory cannot be bounded: {error}")
    if oom_score_adj:
        # A preference: where it cannot be written, the kernel chooses as it always does.
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write(str(oom_score_adj))
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - becoming the given program is the point
    except OSError as error:
        sys.exit(f"tether: cannot run {argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
