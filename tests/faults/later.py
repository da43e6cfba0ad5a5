"""Run a service whose clock jumps when it is told to: `python -m tests.faults.later <service> <config> --seconds 301`.

SIGUSR1 is the word. It is the wall clock that jumps, by which statements, leases and certificates are judged; how long
something takes is measured by another.
"""

from __future__ import annotations

import argparse
import runpy
import signal
import sys
import time
from types import FrameType


class JumpingClock:
    """The wall's clock, and later that one with so many seconds more."""

    def __init__(self, seconds: float) -> None:
        self._real = time.time
        self._jump = seconds
        self._ahead = 0.0

    def __call__(self) -> float:
        return self._real() + self._ahead

    def jump(self, number: int, frame: FrameType | None) -> None:
        self._ahead = self._jump


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.later", description=__doc__)
    parser.add_argument("service")
    parser.add_argument("config")
    parser.add_argument("--seconds", type=float, required=True, help="how far the clock jumps")
    arguments = parser.parse_args()
    clock = JumpingClock(arguments.seconds)
    signal.signal(signal.SIGUSR1, clock.jump)
    # Before the service is imported, which takes this clock by default.
    time.time = clock
    sys.argv = [arguments.service, arguments.config]
    runpy.run_module(f"services.{arguments.service}", run_name="__main__")


if __name__ == "__main__":
    main()
