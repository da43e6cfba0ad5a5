"""A mesh with guests for jobs, and rounds of the federated example in it."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mesh.running import RunningMesh, teemesh

EXAMPLE = Path("docs/examples/federated")
ROUNDS, WORKERS = 2, 3


@dataclass(frozen=True, slots=True)
class Jobs:
    """A mesh with guests for jobs, and a folder for what they read and make."""

    mesh: RunningMesh
    folder: Path

    def record(
        self, guest: int, stage: str, inputs: dict[str, Any], output: Path, *work: object, privacy: Path | None = None
    ) -> dict[str, Any]:
        """Run a command as a stage; `inputs` are paths, or paths with the entry that made them."""
        named: list[str] = []
        for name, given in inputs.items():
            path, made_by = given if isinstance(given, tuple) else (given, None)
            named += ["--input", f"{name}={path}", *(["--made-by", f"{name}={made_by}"] if made_by else [])]
        stated = () if privacy is None else ("--privacy", str(privacy))
        config = self.mesh.state / "config" / f"job-{guest}.toml"
        done = teemesh(
            *("pipeline", "record", "--config", str(config), "--stage", stage, "--name", stage, *named, *stated),
            *("--output", f"made={output}", "--json", "--", *map(str, work)),
            timeout=110,
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.mesh.logs()
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def show(self, *more: object) -> str:
        done = teemesh("pipeline", "show", "--mesh", str(self.mesh.state / "mesh.json"), *map(str, more))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def verify(self, lineage: Path, *more: object) -> tuple[int, str]:
        """Judge offline: by files alone."""
        by = ("--policy", self.mesh.mesh["policy"], "--ca", self.mesh.mesh["mesh_ca"])
        done = teemesh("pipeline", "verify", str(lineage), *by, *map(str, more))
        return done.returncode, done.stdout + done.stderr


@dataclass(frozen=True, slots=True)
class Averaged:
    """What some rounds of three workers came to."""

    rows: Sequence[Sequence[tuple[float, float, int]]]
    data: Sequence[Path]
    start: Path
    model: Path
    weights: str


def average(jobs: Jobs, name: str, noise: float | None = None, python: str = sys.executable) -> Averaged:
    """Run all rounds, with `python` for the aggregator."""
    rows = [_rows(worker, 40) for worker in range(WORKERS)]
    folder = jobs.folder / name
    folder.mkdir()
    data = [folder / f"hospital-{worker}.csv" for worker in range(WORKERS)]
    for path, own in zip(data, rows, strict=True):
        path.write_text("".join(f"{x},{y},{label}\n" for x, y, label in own))
    model, made_by, weights = folder / "model-0.json", None, ""
    model.write_text("[0.0, 0.0, 0.0]")
    start = model
    for number in range(1, ROUNDS + 1):
        given: Any = model if made_by is None else (model, made_by)
        updates = [folder / f"update-{number}-{worker}.json" for worker in range(WORKERS)]

        def work(worker: int, given: Any = given, model: Path = model, updates: list[Path] = updates) -> dict[str, Any]:
            program = (sys.executable, EXAMPLE / "worker.py", data[worker], model, updates[worker])
            inputs = {"data": data[worker], "model": given}
            return jobs.record(worker + 1, "federated_round", inputs, updates[worker], *program)

        with ThreadPoolExecutor(WORKERS) as threads:
            done = list(threads.map(work, range(WORKERS)))
        following = folder / f"model-{number}.json"
        inputs = {f"update-{worker}": (updates[worker], done[worker]["entry"]) for worker in range(WORKERS)}
        stated = None if noise is None else folder / f"privacy-{number}.json"
        noisy = () if noise is None else ("--noise", noise, "--round", number, "--privacy", stated)
        averaged = jobs.record(
            *(4, "federated_round", {"model": given, **inputs}, following),
            *(python, EXAMPLE / "aggregator.py", model, following, *updates, *noisy),
            privacy=stated,
        )
        model, made_by, weights = following, averaged["entry"], averaged["outputs"]["made"]
    return Averaged(rows, data, start, model, weights)


def digest(path: Path) -> str:
    return teemesh("weights", "manifest", str(path)).stdout.split()[0]


def _rows(worker: int, number: int) -> list[tuple[float, float, int]]:
    """Points of the square, labelled by the side of its diagonal on which they lie; each worker has a part of it."""
    source = random.Random(worker)  # noqa: S311 - the same points each time
    points = [(source.uniform(-1, 1) + worker - 1, source.uniform(-1, 1)) for _ in range(number)]
    return [(x, y, int(x + y > 0)) for x, y in points]
