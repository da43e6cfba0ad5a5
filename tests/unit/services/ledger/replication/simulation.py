"""Lets everything befall simulated members: one seed after another, `python -m` this module for many."""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import structlog

from .broken import Broken
from .virtual import run_virtually
from .world import World

_MEMORY = "/dev/shm"


def simulate(seed: int, count: int, seconds: float, *, lost: int = 0) -> Counter[str]:
    """Let everything befall `count` members for that many virtual seconds; return how often what happened.

    At the end, so many of them are lost.
    """
    random.seed(seed)  # What elections wait by.
    with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
        world = World(Path(folder), seed, count)
        run_virtually(world.befall(seconds, lost))
        return world.seen


def simulate_slow_disks(seed: int, count: int, slow_seconds: tuple[float, float], election_seconds: float) -> None:
    """Let members whose disks take so long begin, one of which writes within ten times the longest that each waits."""
    random.seed(seed)
    with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
        world = World(Path(folder), seed, count, election_seconds=election_seconds)
        run_virtually(world.begin_slowly(slow_seconds, 20 * election_seconds))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.unit.services.ledger.replication.simulation")
    parser.add_argument("--rounds", type=int, default=100, help="how many seeds (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="the first (default: 1)")
    parser.add_argument("--members", type=int, default=3, help="how many members (default: 3)")
    parser.add_argument("--seconds", type=float, default=150, help="virtual seconds of each (default: 150)")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    total: Counter[str] = Counter()
    for seed in range(arguments.seed, arguments.seed + arguments.rounds):
        try:
            total += simulate(seed, arguments.members, arguments.seconds)
        except (Broken, TimeoutError) as error:
            sys.stdout.write(f"seed {seed}: {error!r} {error.__cause__!r}\n")
            return 1
    sys.stdout.write("\n".join(f"{name:<14}{times:>8}" for name, times in total.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
