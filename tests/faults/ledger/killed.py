"""1: the ledger killed at random under load, or at a write of its own. 3 and 4, of the process: its disk fails or is
full. 9: nats-server killed. 15: a second ledger on the same folder.
"""

from __future__ import annotations

import asyncio
import resource
import shutil
import signal

from tests.faults.ledger.ground import Ground
from tests.faults.ledger.outcome import Batch, Outcome
from tests.unit.services.ledger.live import LedgerProcess

_LONGEST_LIFE_SECONDS = 0.6
_STEPS = 60
_DYING = ("-m", "tests.faults.dying", "ledger")


async def ledger_killed(ground: Ground, batch: Batch) -> Outcome:
    """Kill it whenever, or have it die at one of its own writes, torn or not, while it is written to."""
    outcome, live = Outcome(), ground.live
    async with ground.busy():
        for number in batch.rounds:
            chance = batch.chance(number)
            at_a_write = chance.random() < 0.5
            if at_a_write:
                await live.kill()
                torn = ["--torn"] if chance.random() < 0.5 else []
                step = ["--step", str(chance.randint(1, _STEPS)), "--every"]
                await live.process.start(ready=False, command=_DYING, options=[*step, *torn])
                status, said = await live.ended()
            else:
                await asyncio.sleep(chance.uniform(0, _LONGEST_LIFE_SECONDS))
                status, said = await live.kill(), ""
            outcome.require(status == -signal.SIGKILL, f"round {number}: it ended with status {status}: {said[-1500:]}")
            outcome.counts["kills at a write of its own" if at_a_write else "kills at any time"] += 1
            await ground.start()
    return outcome


async def disk_failed(ground: Ground, batch: Batch) -> Outcome:
    """Answer one of its writes or syncs with EIO: it ends at once, and the next start goes on."""
    outcome, live = Outcome(), ground.live
    async with ground.busy():
        for number in batch.rounds:
            chance = batch.chance(number)
            await live.kill()
            serving = number % 2 == 1
            step = ["--step", str(chance.randint(1, _STEPS)), "--every", "--error", "EIO"]
            await live.process.start(
                ready=serving, command=_DYING, options=[*step, *(["--serving"] if serving else [])]
            )
            if serving:
                live.arm()
            status, said = await live.ended()
            outcome.require(status > 0, f"round {number}: it ended with status {status}: {said[-1500:]}")
            outcome.counts[f"errors that ended it with status {status}"] += 1
            await ground.start()
    return outcome


async def disk_filled(ground: Ground, batch: Batch) -> Outcome:
    """Give it no room for another frame: it ends at once, and goes on by itself when it is started with room."""
    outcome, live = Outcome(), ground.live
    async with ground.busy():
        for number in batch.rounds:
            await asyncio.sleep(batch.chance(number).uniform(0, _LONGEST_LIFE_SECONDS))
            _, hard = resource.prlimit(live.process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(live.process.pid, resource.RLIMIT_FSIZE, (0, hard))
            status, said = await live.ended()
            outcome.require(status > 0, f"round {number}: it ended with status {status}: {said[-1500:]}")
            outcome.counts[f"times full, ended with status {status}"] += 1
            await ground.start()
    return outcome


async def broker_killed(ground: Ground, batch: Batch) -> Outcome:
    """Kill nats-server while everybody uses it."""
    outcome = Outcome()
    async with ground.busy():
        for number in batch.rounds:
            await asyncio.sleep(batch.chance(number).uniform(0, _LONGEST_LIFE_SECONDS))
            await ground.live.kill_broker()
            await ground.commit()
            outcome.counts["kills of nats-server"] += 1
    return outcome


async def second_ledger(ground: Ground, batch: Batch) -> Outcome:
    """Start another one over the same files while the first one writes, also while that stands still."""
    outcome, live = Outcome(), ground.live
    async with ground.busy():
        for number in batch.rounds:
            stands_still = number % 2
            if stands_still:
                live.process.send(signal.SIGSTOP)
            folder = live.mesh.folder / "second"
            folder.mkdir(exist_ok=True)
            shutil.copy(live.mesh.folder / "ledger.toml", folder)
            second = LedgerProcess(folder)
            await second.start(ready=False)
            status, said = await second.ended()
            if stands_still:
                live.process.send(signal.SIGCONT)
            refused = status == 1 and "LOG_LOCKED" in said
            outcome.require(refused, f"round {number}: it ended with status {status}: {said[-1500:]}")
            outcome.counts["second ledgers refused"] += 1
            await ground.commit()
    return outcome
