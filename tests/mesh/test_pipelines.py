"""From an answer to the data behind the weights that gave it, in a mesh as its user has it; and a federated average."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from libs import jcs
from libs.weights import packaged_weights
from tests.mesh.jobs import EXAMPLE, ROUNDS, WORKERS, Jobs, average, digest
from tests.mesh.running import running_mesh, short_folder

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(300)]

STAGES = Path("docs/examples/stages")


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    with short_folder() as folder, running_mesh(folder, "--jobs", "4") as mesh:
        yield Jobs(mesh, folder)


def test_an_answer_is_led_to_the_data_behind_its_weights_by_one_command(jobs: Jobs) -> None:
    """The tuner only copies: a model that answers cannot be trained in a test, and is read to make no other one."""
    kept, lineage = jobs.folder / "answer.json", jobs.folder / "lineage.json"
    claims, base, cleaned, made = (jobs.folder / name for name in ("claims", "base", "cleaned", "tuned"))
    claims.mkdir()
    (claims / "2026.txt").write_text("What it is TUNED on\n")
    base.mkdir()
    shutil.copy(packaged_weights(), base)
    clean, tune = (sys.executable, STAGES / "clean.py"), (sys.executable, STAGES / "tune.py")
    first = jobs.record(1, "data_preprocessing", {"claims": claims}, cleaned, *clean, claims, cleaned)
    assert (cleaned / "2026.txt").read_text() == "what it is tuned on\n"
    inputs = {"base": base, "cleaned": (cleaned, first["entry"])}
    jobs.record(2, "fine_tuning", inputs, made, *tune, base, cleaned, made)
    asked = jobs.mesh.run("chat", "Say hello.", "--save", str(kept))
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert "1. fine_tuning 'fine_tuning'" in jobs.show("--answer", kept, "--save", lineage)
    status, said = jobs.verify(lineage, "--answer", kept, "--data", digest(claims))
    assert (status, "VERIFIED: 11 of 11 checks passed" in said) == (0, True), said
    assert f"'claims' {digest(claims)}" in said

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
    averaged = average(jobs, "plain")
    lineage = jobs.folder / "federated.json"
    shown = jobs.show("--weights", averaged.weights, "--save", lineage)
    assert "spent" not in shown
    named = [part for path in (*averaged.data, averaged.start) for part in ("--data", digest(path))]
    status, said = jobs.verify(lineage, "--weights", digest(averaged.model), *named)
    stages = ROUNDS * (WORKERS + 1)
    assert (status, f"VERIFIED: {5 + 3 * stages} of {5 + 3 * stages} checks passed" in said) == (0, True), said
    assert {f"mesh.local/job/job-{guest}, compose" in said for guest in range(1, 5)} == {True}
    training = _example("training")
    model = json.loads(averaged.model.read_text())
    rows = [row for own in averaged.rows for row in own]
    right = sum((training.probability(model, [x, y, 1.0]) > 0.5) == bool(label) for x, y, label in rows)
    assert right > 0.9 * len(rows)


def test_no_worker_moves_the_sum_beyond_the_bound() -> None:
    training = _example("training")
    assert training.clipped([3.0, 4.0], 10.0) == [3.0, 4.0]
    assert training.clipped([30.0, 40.0], 10.0) == [6.0, 8.0]
    assert training.clipped([0.0, 0.0], 10.0) == [0.0, 0.0]
    assert training.summed([[30.0, 40.0], [-6.0, -8.0]], 10.0) == [0.0, 0.0]
    assert training.averaged([1.0, 1.0], [4.0, 2.0], 2) == [3.0, 2.0]
    for hostile in ([float("nan"), 0.0], [float("inf"), 0.0]):
        with pytest.raises(ValueError, match="no numbers"):
            training.summed([[1.0, 1.0], hostile], 10.0)


def _example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"federated_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
