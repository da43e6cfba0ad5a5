"""From an answer to the data behind the weights that gave it, in a mesh as its user has it; and a federated average."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from libs import jcs
from libs.weights import packaged_weights
from tests.mesh.running import RunningMesh, running_mesh, short_folder, teemesh

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(300)]

EXAMPLE = Path("docs/examples/federated")
COPY = "import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])"
ROUNDS, WORKERS = 2, 3


@dataclass(frozen=True, slots=True)
class Jobs:
    """A mesh with guests for jobs, and a folder for what they read and make."""

    mesh: RunningMesh
    folder: Path

    def record(self, guest: int, stage: str, inputs: dict[str, Any], output: Path, *work: object) -> dict[str, Any]:
        """Run a command as a stage; `inputs` are paths, or paths with the entry that made them."""
        named: list[str] = []
        for name, given in inputs.items():
            path, made_by = given if isinstance(given, tuple) else (given, None)
            named += ["--input", f"{name}={path}", *(["--made-by", f"{name}={made_by}"] if made_by else [])]
        config = self.mesh.state / "config" / f"job-{guest}.toml"
        done = teemesh(
            *("pipeline", "record", "--config", str(config), "--stage", stage, "--name", stage, *named),
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


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    with short_folder() as folder, running_mesh(folder, "--jobs", "4") as mesh:
        yield Jobs(mesh, folder)


def digest(path: Path) -> str:
    return teemesh("weights", "manifest", str(path)).stdout.split()[0]


def test_an_answer_is_led_to_the_data_behind_its_weights_by_one_command(jobs: Jobs) -> None:
    """The stages only copy: a model that answers cannot be trained in a test, and is read to make no other one."""
    served = packaged_weights()
    corpus, kept, lineage = jobs.folder / "corpus.txt", jobs.folder / "answer.json", jobs.folder / "lineage.json"
    cleaned, made = jobs.folder / "cleaned.txt", jobs.folder / "tuned" / served.name
    corpus.write_text("what it is tuned on\n")
    made.parent.mkdir()
    work = (sys.executable, "-c", COPY)
    first = jobs.record(1, "data_preprocessing", {"corpus": corpus}, cleaned, *work, corpus, cleaned)
    inputs = {"base": served, "cleaned": (cleaned, first["entry"])}
    jobs.record(2, "fine_tuning", inputs, made, *work, served, made)
    asked = jobs.mesh.run("chat", "Say hello.", "--save", str(kept))
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert "1. fine_tuning 'fine_tuning'" in jobs.show("--answer", kept, "--save", lineage)
    status, said = jobs.verify(lineage, "--answer", kept, "--data", digest(corpus))
    assert (status, "VERIFIED: 11 of 11 checks passed" in said) == (0, True), said
    assert f"'corpus' {digest(corpus)}" in said

    value = jcs.loads_object(lineage.read_bytes())
    entry = jcs.loads_object(bytes.fromhex(value["stages"][1]["entry"]))
    entry["body"]["inputs"][0]["sha256"] = "00" * 32
    value["stages"][1]["entry"] = jcs.dumps(entry).hex()
    edited = jobs.folder / "edited.json"
    edited.write_bytes(jcs.dumps(value))
    status, said = jobs.verify(edited, "--answer", kept)
    assert (status, "ENTRY_NOT_COMMITTED" in said) == (1, True), said

    altered = jobs.folder / "altered.json"
    exchange = json.loads(kept.read_bytes())
    exchange["exchange"]["response"] = b"other words".hex()
    altered.write_bytes(jcs.dumps(exchange))
    status, said = jobs.verify(lineage, "--answer", altered)
    assert (status, "ANSWER_NOT_PROVEN: teemesh verify finds it misfit" in said) == (1, True), said


def test_a_federated_average_leads_to_every_workers_data(jobs: Jobs) -> None:
    rows = [_rows(worker, 40) for worker in range(WORKERS)]
    data = [jobs.folder / f"hospital-{worker}.csv" for worker in range(WORKERS)]
    for path, own in zip(data, rows, strict=True):
        path.write_text("".join(f"{x},{y},{label}\n" for x, y, label in own))
    model, made_by = jobs.folder / "model-0.json", None
    model.write_text("[0.0, 0.0, 0.0]")
    start = model
    weights = ""
    for number in range(1, ROUNDS + 1):
        given: Any = model if made_by is None else (model, made_by)
        updates = [jobs.folder / f"update-{number}-{worker}.json" for worker in range(WORKERS)]

        def work(worker: int, given: Any = given, model: Path = model, updates: list[Path] = updates) -> dict[str, Any]:
            program = (sys.executable, EXAMPLE / "worker.py", data[worker], model, updates[worker])
            inputs = {"data": data[worker], "model": given}
            return jobs.record(worker + 1, "federated_round", inputs, updates[worker], *program)

        with ThreadPoolExecutor(WORKERS) as threads:
            done = list(threads.map(work, range(WORKERS)))
        following = jobs.folder / f"model-{number}.json"
        inputs = {f"update-{worker}": (updates[worker], done[worker]["entry"]) for worker in range(WORKERS)}
        averaged = jobs.record(
            *(4, "federated_round", {"model": given, **inputs}, following),
            *(sys.executable, EXAMPLE / "aggregator.py", model, following, 0, *updates),
        )
        model, made_by, weights = following, averaged["entry"], averaged["outputs"]["made"]
    lineage = jobs.folder / "federated.json"
    jobs.show("--weights", weights, "--save", lineage)
    named = [part for path in (*data, start) for part in ("--data", digest(path))]
    status, said = jobs.verify(lineage, "--weights", digest(model), *named)
    stages = ROUNDS * (WORKERS + 1)
    assert (status, f"VERIFIED: {5 + 3 * stages} of {5 + 3 * stages} checks passed" in said) == (0, True), said
    assert {f"mesh.local/job/job-{guest}, compose" in said for guest in range(1, 5)} == {True}
    training = _example("training")
    found = [training.probability(json.loads(model.read_text()), [x, y, 1.0]) for own in rows for x, y, _ in own]
    right = sum((chance > 0.5) == bool(label) for chance, label in zip(found, _labels(rows), strict=True))
    assert right > 0.9 * len(found)


def test_noise_is_added_to_the_sum_and_no_worker_moves_it_beyond_the_bound() -> None:
    training = _example("training")
    assert training.clipped([3.0, 4.0], 10.0) == [3.0, 4.0]
    assert training.clipped([30.0, 40.0], 10.0) == [6.0, 8.0]
    assert training.clipped([0.0, 0.0], 10.0) == [0.0, 0.0]
    assert training.averaged([1.0, 1.0], [[30.0, 40.0], [-6.0, -8.0]], 10.0, [0.0, 0.0]) == [1.0, 1.0]
    assert training.averaged([1.0, 1.0], [[0.0, 2.0], [0.0, 2.0]], 10.0, [4.0, -2.0]) == [3.0, 2.0]


def _example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"federated_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rows(worker: int, number: int) -> list[tuple[float, float, int]]:
    """Points of the square, labelled by the side of its diagonal on which they lie; each worker has a part of it."""
    source = random.Random(worker)  # noqa: S311 - the same points each time
    points = [(source.uniform(-1, 1) + worker - 1, source.uniform(-1, 1)) for _ in range(number)]
    return [(x, y, int(x + y > 0)) for x, y in points]


def _labels(rows: list[list[tuple[float, float, int]]]) -> list[int]:
    return [label for own in rows for _, _, label in own]
