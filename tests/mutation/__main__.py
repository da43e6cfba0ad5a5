"""Runs the whole mutation run: `python -m tests.mutation`. A quarter of an hour; `--reaching` takes two minutes.

Beside whole checks it takes away single words of their conditions, and puts weaker comparisons in their place. Fails
when a check has no row that rests on it, when a row does not notice that its check is gone, when one notices that never
reached it, and when a check that is excused from having rows is no longer there.

`--relays` does the same for the checks of identity and keys, with the table of relays; some minutes.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.mutation.changes import entry_mutants, weakened_mutants
from tests.mutation.exempt import EQUIVALENT, EXEMPT
from tests.mutation.operands import operand_mutants
from tests.mutation.relays import run_relays
from tests.mutation.run import Mutant, Result, run, site_mutants
from tests.mutation.sites import sites, sources
from tests.mutation.trial import Baseline, baselines, edge_rows
from tests.unit.libs.tee.bad_evidence.row import Benches
from tests.unit.libs.tee.bad_evidence.table import TABLE

_EXCUSED = {**EXEMPT, **EQUIVALENT}


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.mutation", description=__doc__)
    parser.add_argument("--reaching", action="store_true", help="try only the rows that reach the check")
    parser.add_argument("--relays", action="store_true", help="instead, take away the checks of identity and keys")
    arguments = parser.parse_args()
    # One row is a certificate with the serial number 0, of which the library still only warns.
    warnings.filterwarnings("ignore", "Parsed a serial number")
    console = Console(width=None if Console().is_terminal else 200)
    if arguments.relays:
        sys.exit(not run_relays(console))
    every = sources()
    found = sites(list(every.values()))
    rows = baselines([*TABLE, *edge_rows()], Benches(), every, found)
    astray = [row.row.name for row in rows if row.outcome != row.row.reason]
    mutants = [
        *site_mutants(found, every, rows),
        *entry_mutants(rows),
        *weakened_mutants(every, rows),
        *operand_mutants(every, rows),
    ]
    results = [_run(mutant, rows, arguments.reaching, console) for mutant in mutants]
    _show(results, console)
    failed = [result for result in results if not result.is_killed and result.name not in _EXCUSED]
    unneeded = sorted(_EXCUSED.keys() - {result.name for result in results if not result.is_killed})
    for result in failed:
        console.print(f"not killed: {result.name}: {_fate(result)}", markup=False, soft_wrap=True)
    for name in unneeded:
        console.print(f"excused, and need not be: {name}", markup=False, soft_wrap=True)
    for name in astray:
        console.print(f"not refused as the table says: {name}", markup=False, soft_wrap=True)
    killed = sum(result.is_killed for result in results)
    console.print(f"{len(rows)} rows, {len(results)} mutants, {killed} killed, {len(_EXCUSED)} excused")
    sys.exit(bool(failed or unneeded or astray))


def _run(mutant: Mutant, rows: Sequence[Baseline], reaching: bool, console: Console) -> Result:
    with console.status(mutant.name):
        return run(mutant, mutant.reaching if reaching else rows)


def _show(results: Sequence[Result], console: Console) -> None:
    table = Table("check", "group", "reason", "rows", "accepted without it", "fate")
    for result in results:
        reasons = ", ".join(result.reasons[:3]) + (", ..." if len(result.reasons) > 3 else "")
        fate = "excused" if result.name in _EXCUSED else _fate(result)
        table.add_row(result.name, result.group, reasons, str(len(result.rows)), str(result.accepted), fate)
    console.print(table, markup=False)


def _fate(result: Result) -> str:
    if result.is_killed:
        return "killed"
    if not result.rows:
        return "no row"
    return f"survived by {', '.join(result.survived or result.strayed)}"


if __name__ == "__main__":
    main()
