"""Runs two checkouts beside each other: `python -m tests.bench.gateways.checkouts FOLDER`. Some three minutes.

FOLDER is another checkout of this repository, after `make setup`. Both meshes run at once and are asked in turn, so
what the machine does meanwhile falls on both: it tells a few per cent, which one run after another does not.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from tests.bench import machine
from tests.bench.gateways.load import asking, prompt
from tests.bench.gateways.mesh import mesh_before, router_of
from tests.bench.report import Row, Section, console_for_tables, show
from tests.bench.samples import in_pairs
from tests.mesh.running import RunningMesh, short_folder

_PAIRS = 16
_IN_A_ROW = {1: 60, 16: 30}
"""How many requests each connection makes in its turn, by how many connections there are."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tests.bench.gateways.checkouts", description="The routers of two checkouts beside each other."
    )
    parser.add_argument("folder", type=Path, help="the other checkout, after `make setup`")
    other = parser.parse_args().folder.resolve()
    if not (other / ".venv" / "bin" / "python").exists():
        parser.error(f"{other} has no .venv: run `make setup` there")
    console = console_for_tables()
    with short_folder() as folder:
        console.print(machine.description(folder), highlight=False, soft_wrap=True)
        with mesh_before(folder / "b", checkout=other) as base, mesh_before(folder / "o") as ours:
            show(asyncio.run(_beside(base, ours)), console)


async def _beside(base: RunningMesh, ours: RunningMesh) -> Section:
    rows = []
    for stream in (False, True):
        for at_once, in_a_row in _IN_A_ROW.items():
            body = prompt(stream=stream)
            async with asking(router_of(base), body) as ask_base, asking(router_of(ours), body) as ask_ours:
                pairs = await in_pairs(ask_base, ask_ours, pairs=_PAIRS, in_a_row=in_a_row, concurrency=at_once)
            name = f"{'streamed' if stream else 'buffered'}, {at_once} at once"
            rows.append(Row(f"{name} (median ratio of /s {pairs.median_ratio:.3f}x)", pairs.base, pairs.ours))
    return Section("two checkouts", "the other checkout", "this one", rows, [])


if __name__ == "__main__":
    main()
