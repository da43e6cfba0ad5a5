"""Try the ledger's twenty faults at length: `python -m tests.faults.ledger --only 1,9 --shard 0/4 --state DIR`.

It prints what each was found to do and exits 0 only if everything held. With a state folder a run that was interrupted,
or whose rounds were raised, goes on where it was, unless the code has changed since; shards split the work among
machines, each with its own folder.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from libs.rpc.hardening import ssl_hardening

ssl_hardening()

import structlog  # noqa: E402 - gRPC comes after the hardening

from services.devtee.machine import Machine  # noqa: E402
from tests.fakes.joined_mesh import JoinedMesh  # noqa: E402
from tests.faults.ledger.apart import quick_folder, trying_apart  # noqa: E402
from tests.faults.ledger.elsewhere import run_tests  # noqa: E402
from tests.faults.ledger.ground import Ground, ground  # noqa: E402
from tests.faults.ledger.outcome import Batch, Outcome  # noqa: E402
from tests.faults.ledger.progress import Progress, Unit, units_of  # noqa: E402
from tests.faults.ledger.sources import digest_of  # noqa: E402
from tests.faults.ledger.stage import Stage  # noqa: E402
from tests.faults.ledger.table import FAULTS  # noqa: E402
from tests.mesh.running import short_folder  # noqa: E402

_NUMBERS = frozenset(fault.number for fault in FAULTS)


@asynccontextmanager
async def _new_ground() -> AsyncIterator[Ground]:
    with short_folder() as folder:
        async with ground(JoinedMesh(folder, Machine.create(int(time.time())))) as opened:
            yield opened


async def try_all(units: Sequence[Unit], progress: Progress, seed: int) -> None:
    """Run what is not done yet, in the order of the table."""
    with trying_apart() as apart:
        stage = Stage(apart, _new_ground)
        for unit in units:
            if unit.name in progress.done:
                continue
            began = time.monotonic()
            outcome = await _try(unit, stage, seed)
            progress.add(unit, outcome)
            held = "held" if outcome.holds else "DID NOT HOLD"
            sys.stdout.write(f"{unit.name}: {held} in {time.monotonic() - began:.0f} s: {outcome.report()}\n")
            sys.stdout.flush()


async def _try(unit: Unit, stage: Stage, seed: int) -> Outcome:
    if unit.part is None:
        return await run_tests(unit.fault.tests)
    with quick_folder() as folder:
        return await unit.part.run(stage, Batch(unit.rounds, seed, folder))


def summary(units: Sequence[Unit], progress: Progress) -> tuple[str, bool]:
    """One line for each fault, and whether all of them hold."""
    lines, all_hold = [""], True
    for fault in FAULTS:
        total = Outcome()
        for unit in units:
            if unit.fault is fault:
                total.add(progress.done[unit.name])
        if any(unit.fault is fault for unit in units):
            lines.append(f"{'PASS' if total.holds else 'FAIL'} {fault.number:>2} {fault.what}: {total.report()}")
            all_hold &= total.holds
    return "\n".join(lines) + "\n", all_hold


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.ledger", description=__doc__)
    parser.add_argument("--only", type=_numbers, default=_NUMBERS, metavar="N,..", help="these faults (default: all)")
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="I/K", help="part I, from 0, of K")
    parser.add_argument("--rounds", type=int, help="how many of each part (default: what the table has)")
    parser.add_argument("--seed", type=int, default=1, help="of everything left to chance (default: %(default)s)")
    parser.add_argument("--state", type=Path, metavar="DIR", help="remembers what is done; the same folder goes on")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    part, parts = arguments.shard
    units = units_of(arguments.only, arguments.rounds)[part::parts]
    with tempfile.TemporaryDirectory() as elsewhere:
        state = arguments.state or Path(elsewhere)
        state.mkdir(parents=True, exist_ok=True)
        code = digest_of()
        progress = Progress(state / f"shard-{part}-of-{parts}.jsonl", arguments.seed, code)
        sys.stdout.write(f"the code is {code[:16]}\n")
        if progress.begun_again:
            sys.stdout.write(f"{progress.begun_again} units were done by other code, and are begun again\n")
        sys.stdout.flush()
        asyncio.run(try_all(units, progress, arguments.seed))
    told, all_hold = summary(units, progress)
    sys.stdout.write(told)
    return 0 if all_hold else 1


def _numbers(text: str) -> frozenset[int]:
    numbers = frozenset(int(each) for each in text.split(","))
    if not numbers <= _NUMBERS:
        raise argparse.ArgumentTypeError(f"there are {sorted(_NUMBERS)}")
    return numbers


def _shard(text: str) -> tuple[int, int]:
    part, parts = map(int, text.split("/"))
    if not 0 <= part < parts:
        raise argparse.ArgumentTypeError("parts are numbered from 0")
    return part, parts


if __name__ == "__main__":
    sys.exit(main())
