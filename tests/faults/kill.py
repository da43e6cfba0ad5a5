"""Kill every process of a mesh, again and again, under load, and prove afterwards that no answer was lost.

`python -m tests.faults.kill --rounds 5` makes a mesh of its own, prints what happened, and exits 0 only if everything
held.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from libs.rpc.hardening import ssl_hardening
from libs.transparency.leaf import Kind
from tests.mesh.running import RunningMesh, running_mesh, short_folder

ssl_hardening()

from tests.faults.load import Client, Record, loading, open_client  # noqa: E402 - gRPC comes after the hardening
from tests.faults.log import LogReader, WholeLog, log_reader  # noqa: E402
from tests.faults.patience import until  # noqa: E402
from tests.faults.proof import Prover, verify_hashes  # noqa: E402
from tests.faults.recovery import until_whole  # noqa: E402
from tests.faults.targets import TARGETS, Target, kill  # noqa: E402

PER_SECOND = 5.5
_SETTLE_SECONDS = 40.0


@dataclass(slots=True)
class Outcome:
    """What a run of kills did."""

    record: Record = field(default_factory=Record)
    probes: Record = field(default_factory=Record)
    recovery: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    unproven: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    entries: Counter[str] = field(default_factory=Counter)
    overtaken: int = 0
    amended: Counter[str] = field(default_factory=Counter)

    @property
    def holds(self) -> bool:
        return bool(self.record.completions) and not self.unproven and not self.wrong

    def report(self) -> str:
        record = self.record
        completions = len(record.completions)
        cut = sum(1 for completion in record.completions if completion.response_sha256 is None)
        lines = [
            f"requests      {record.sent} in {record.ended_at - record.began_at:.0f} s, {record.rate:.2f} per second",
            f"completions   {completions} ({cut} cut after the finish), and {len(self.probes.completions)} probes",
            f"unproven      {len(self.unproven)}",
            "errors        " + (", ".join(f"{n} x {kind}" for kind, n in record.errors.most_common()) or "none"),
            "log           " + ", ".join(f"{n} {kind}" for kind, n in sorted(self.entries.items())),
            f"overtaken     {self.overtaken} entries were sent again after later ones",
            "amendments    " + (", ".join(f"{n} {effect}" for effect, n in sorted(self.amended.items())) or "none"),
            "",
            f"{'killed':<12} {'times':>5} {'back after (s): median':>24} {'longest':>8}",
        ]
        for name, seconds in self.recovery.items():
            lines.append(f"{name:<12} {len(seconds):>5} {statistics.median(seconds):>24.1f} {max(seconds):>8.1f}")
        return "\n".join([*lines, "", *self.unproven, *self.wrong])


async def kill_all(mesh: RunningMesh, folder: Path, *, rounds: int, seed: int = 1) -> Outcome:
    """Kill each process `rounds` times under load, each time once the mesh is whole again; then prove."""
    outcome = Outcome()
    async with open_client(mesh.mesh) as client:
        async with loading(client, PER_SECOND) as outcome.record:
            for target in _order(rounds, seed):
                killed = kill(mesh, target)
                seconds = await until_whole(mesh, client, target, killed, outcome.probes)
                outcome.recovery[target.name].append(seconds)
        await _prove(mesh, client, folder, outcome)
    return outcome


def _order(rounds: int, seed: int) -> Sequence[Target]:
    """Every round another order: what one kill leaves behind meets every other."""
    chance = random.Random(seed)  # noqa: S311 - an order, not a secret
    return [target for _ in range(rounds) for target in chance.sample(TARGETS, len(TARGETS))]


async def _prove(mesh: RunningMesh, client: Client, folder: Path, outcome: Outcome) -> None:
    completions = [*outcome.record.completions, *outcome.probes.completions]
    outcome.unproven = await Prover(client, mesh.mesh).prove_all(completions)
    async with log_reader(mesh, folder) as reader:
        log = await _settled(reader)
    outcome.entries = Counter(logged.leaf.kind.name.lower() for logged in log.entries)
    outcome.amended = Counter(str(one.entry.body["effect"]) for one in log.of(Kind.AMENDMENT))
    outcome.overtaken = log.overtaken
    try:
        log.verify_sequences()
        logged, amendments = log.receipts(), log.amendments()
        for completion in completions:
            assert completion.receipt_id in logged, f"{completion.receipt_id} is not in the log"
            verify_hashes(logged[completion.receipt_id].entry.body, completion)
            entry_id = logged[completion.receipt_id].entry_id.hex()
            effect = amendments[entry_id].entry.body["effect"] if entry_id in amendments else None
            assert effect != "not_released", f"{completion.receipt_id} came, and the log says that it did not go out"
    except AssertionError as error:
        outcome.wrong.append(str(error))


async def _settled(reader: LogReader) -> WholeLog:
    """Read the log once what the outboxes still held is in it."""
    log = WholeLog(())

    async def is_settled() -> bool:
        nonlocal log
        log = await reader.read()
        return not log.holes()

    with suppress(TimeoutError):
        async with asyncio.timeout(_SETTLE_SECONDS):
            await until(is_settled, poll_seconds=1)
    return log


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kill", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each process is killed (default: 5)")
    parser.add_argument("--seed", type=int, default=1, help="of the order of kills (default: 1)")
    arguments = parser.parse_args()
    with short_folder() as folder, running_mesh(folder) as mesh:
        outcome = asyncio.run(kill_all(mesh, folder / "reader", rounds=arguments.rounds, seed=arguments.seed))
    sys.stdout.write(outcome.report() + "\n")
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(main())
