"""Fuzzes the parsers of foreign evidence for a bounded time: `python -m tests.fuzz`. Needs `make fuzz`'s atheris.

Ends with 1 when anything was found; the inputs stay in the folder that it names.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.driver import CORPUS, FINDINGS
from tests.fuzz.targets import TARGETS

# No input may keep a parser busy for longer.
_SECONDS_FOR_ONE = 5
# Beside the time that a target is given: imports, keys, the corpus.
_SECONDS_TO_START = 120
_DONE = re.compile(r"^Done (\d+) runs in (\d+) second", re.M)
_STATE = re.compile(r"^#\d+\s+\S+\s+cov: (\d+) ft: (\d+) corp: (\d+)/", re.M)
_PEAK = re.compile(r"^peak: (\d+) bytes for (\d+) bytes", re.M)


@dataclass(frozen=True, slots=True)
class Outcome:
    executions: int
    seconds: int
    edges: int
    features: int
    corpus: int
    peak: int
    findings: tuple[Path, ...]

    @classmethod
    def of(cls, log: str, folder: Path) -> Outcome:
        """Read libFuzzer's own words. What did not end by itself counts for nothing."""
        done, states, peaks = _DONE.search(log), _STATE.findall(log), _PEAK.findall(log)
        edges, features, corpus = map(int, states[-1]) if states else (0, 0, 0)
        executions, seconds = map(int, done.groups()) if done else (0, 0)
        findings = tuple(sorted((folder / FINDINGS).iterdir()))
        return cls(executions, seconds, edges, features, corpus, int(peaks[-1][0]) if peaks else 0, findings)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description="Fuzz the parsers of foreign evidence.")
    parser.add_argument("--target", choices=TARGETS, action="append", help="one target; may be given again")
    parser.add_argument("--runs", type=int, default=-1, help="at most so many executions of each (default: any)")
    parser.add_argument("--seconds", type=int, default=20, help="at most so long for each (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations; keys are new in every run (default: 1)")
    parser.add_argument("--folder", type=Path, help="where corpus, findings and logs stay; else they are temporary")
    arguments = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: `make fuzz` does that, with CPython 3.11 to 3.13 on x86-64 Linux")  # noqa: T201
        return 2
    print(f"{'target':24}{'executions':>12}{'s':>7}{'per s':>8}{'edges':>7}{'features':>9}{'corpus':>8}{'peak KiB':>9}")  # noqa: T201
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="fuzz-"))
    failed = False
    for name in arguments.target or TARGETS:
        outcome = _run(name, folder / name, arguments.runs, arguments.seconds, arguments.seed)
        failed |= bool(outcome.findings) or not outcome.executions
        _show(name, outcome)
    if failed:
        print(f"what was found, and the logs, are in {folder}")  # noqa: T201
    elif arguments.folder is None:
        shutil.rmtree(folder)
    return int(failed)


def _run(name: str, folder: Path, runs: int, seconds: int, seed: int) -> Outcome:
    for part in (CORPUS, FINDINGS):
        (folder / part).mkdir(parents=True, exist_ok=True)
    options = [
        f"-runs={runs}",
        f"-max_total_time={seconds}",
        f"-timeout={_SECONDS_FOR_ONE}",
        "-reload=0",
        "-reduce_inputs=0",
        "-keep_seed=1",
    ]
    command = [sys.executable, "-m", "tests.fuzz.driver", name, str(folder), str(seed), *options]
    with (folder / f"{seed}.log").open("w") as log, contextlib.suppress(subprocess.TimeoutExpired):
        # Its end: a finding, the executions, or the time; the last limit is for a process that hangs.
        subprocess.run(command, stdout=log, stderr=log, timeout=seconds + _SECONDS_TO_START, check=False)
    return Outcome.of((folder / f"{seed}.log").read_text(errors="replace"), folder)


def _show(name: str, outcome: Outcome) -> None:
    rate = outcome.executions / max(outcome.seconds, 1)
    print(  # noqa: T201
        f"{name:24}{outcome.executions:12}{outcome.seconds:7}{rate:8.0f}{outcome.edges:7}{outcome.features:9}"
        f"{outcome.corpus:8}{outcome.peak / 1024:9.0f}",
        *(f"FOUND {path}" for path in outcome.findings),
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
