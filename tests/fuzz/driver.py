"""Fuzzes one target with atheris in this process: `python -m tests.fuzz.driver TARGET FOLDER SEED [libFuzzer options]`.

It is responsible for the order of things: the parsers are imported under instrumentation, the corpus is made from
fresh evidence, the process's memory is capped, and libFuzzer takes over and ends the process.
"""

from __future__ import annotations

import importlib
import itertools
import resource
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

# One execution in so many is measured; the others are only capped.
_MEASURED = 64
# What the process may grow by, native code and libFuzzer's own corpus included: no input makes anything allocate more.
GROWTH_BYTES = 128 * 1024 * 1024
_INSTRUMENTED = ["libs.tee", "libs.jcs"]
# Where libFuzzer puts what it found.
CORPUS, FINDINGS = "corpus", "findings"


def main() -> None:
    name, folder, seed, *options = sys.argv[1:]
    atheris: Any = importlib.import_module("atheris")
    # A warning of the X.509 library changes nothing in production; the tests run with warnings as errors.
    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=_INSTRUMENTED):
        targets = importlib.import_module("tests.fuzz.targets")
    _fuzz(atheris, targets, name, Path(folder), [f"-seed={seed}", *options])


def _fuzz(atheris: Any, targets: ModuleType, name: str, folder: Path, options: list[str]) -> None:
    mutation = importlib.import_module("tests.fuzz.mutation")
    target = targets.TARGETS[name]
    for number, genuine in enumerate(target.seeds()):
        # What is imported or compiled on first use is none of the input's doing.
        target.survive(genuine)
        (folder / CORPUS / f"seed-{number}").write_bytes(genuine)
    executions = itertools.count()
    largest = 0

    def run(data: bytes) -> None:
        nonlocal largest
        if next(executions) % _MEASURED:
            target.survive(data)
        elif (peak := target.survive_measured(data)) > largest:
            largest = peak
            sys.stderr.write(f"peak: {peak} bytes for {len(data)} bytes of input\n")

    def mutate(data: bytes, max_bytes: int, seed: int) -> bytes:
        chance = mutation.Chance.of(seed)
        if chance.random.random() < 0.25:
            return bytes(atheris.Mutate(data, max_bytes))
        chance = mutation.Chance(chance.random, lambda content: _scrambled(atheris, mutation, content, chance))
        changed: bytes = mutation.mutate(data, chance)
        return changed[:max_bytes]

    _cap_memory()
    options += [f"-max_len={target.max_bytes}", f"-artifact_prefix={folder / FINDINGS}/"]
    atheris.Setup([name, *options, str(folder / CORPUS)], run, custom_mutator=mutate)
    atheris.Fuzz()


def _scrambled(atheris: Any, mutation: ModuleType, content: bytes, chance: Any) -> bytes:
    if chance.random.random() < 0.5:
        # libFuzzer puts in what the parser compared its input with.
        return bytes(atheris.Mutate(content, len(content) + 64))
    scrambled: bytes = mutation.scramble(content, chance.random)
    return scrambled


def _cap_memory() -> None:
    with Path("/proc/self/statm").open() as file:
        data_pages = int(file.read().split()[5])
    most = data_pages * resource.getpagesize() + GROWTH_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


if __name__ == "__main__":
    main()
