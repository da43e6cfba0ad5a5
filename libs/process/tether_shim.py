"""It is responsible for becoming another program that the kernel kills when the parent ends. Run by `tethered` alone.

It needs nothing of this project, so that it can run without any search path.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL)) != 0:
        sys.exit(f"tether: cannot be tied to the parent: {os.strerror(ctypes.get_errno())}")
    # The parent may have ended before the tie was made; nobody would send the signal any more.
    if os.getppid() != parent:
        sys.exit("tether: the parent is gone")
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - becoming the given program is the point
    except OSError as error:
        sys.exit(f"tether: cannot run {argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
