"""Noise in the federated example: drawn and accounted for by one library, and said in the stage that added it."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from tests.mesh.jobs import EXAMPLE, ROUNDS, WORKERS, Jobs, average, digest
from tests.mesh.running import running_mesh, short_folder

WHERE = os.environ.get("TEEMESH_FEDERATED")
pytestmark = [
    pytest.mark.mesh,
    pytest.mark.timeout(300),
    pytest.mark.skipif(WHERE is None, reason="TEEMESH_FEDERATED names no environment with OpenDP: make federated"),
]
PYTHON = str(Path(WHERE or "").absolute() / "bin" / "python")
DELTA = "0.00001"


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    with short_folder() as folder, running_mesh(folder, "--jobs", "4") as mesh:
        yield Jobs(mesh, folder)


def test_the_stage_of_a_round_says_what_all_rounds_have_spent(jobs: Jobs) -> None:
    averaged = average(jobs, "noisy", noise=2.0, python=PYTHON)
    lineage = jobs.folder / "noisy.json"
    shown = jobs.show("--weights", averaged.weights, "--save", lineage)
    status, said = jobs.verify(lineage, "--weights", digest(averaged.model))
    stages = ROUNDS * (WORKERS + 1)
    assert (status, f"VERIFIED: {5 + 3 * stages} of {5 + 3 * stages} checks passed" in said) == (0, True), said
    spent = [_spent(2.0, rounds)["epsilon"] for rounds in (1, 2)]
    assert spent[1] == "3.1890"
    for rounds, epsilon in enumerate(spent, 1):
        whole = f"epsilon {epsilon} at delta {DELTA} for one worker over {rounds} releases, by opendp {_version()}"
        assert whole in said
        assert f"spent {whole}" in shown
    # What was said of the last round is that of all rounds until then.
    assert float(spent[0]) < float(spent[1])


@pytest.mark.parametrize("multiplier", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("rounds", [1, 2, 30])
def test_no_less_is_said_than_is_spent_and_hardly_more(multiplier: float, rounds: int) -> None:
    said, exact = float(_spent(multiplier, rounds)["epsilon"]), _exact(multiplier, rounds)
    assert exact <= said <= 1.125 * exact + 0.001


def test_noise_has_the_length_that_is_accounted_for() -> None:
    code = "noise = GaussianNoise(10.0, 2.0); print(json.dumps(noise.added_to([5.0] * 20_000)))"
    drawn = _run(code)
    assert statistics.mean(drawn) == pytest.approx(5.0, abs=1.0)
    assert statistics.stdev(drawn) == pytest.approx(20.0, rel=0.05)
    assert _run(code) != drawn


def _spent(multiplier: float, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = _run(f"print(json.dumps(GaussianNoise(10.0, {multiplier}).spent({rounds}, {DELTA!r})))")
    return found


def _run(code: str) -> Any:
    program = f"import json; from accounting import GaussianNoise; {code}"
    done = subprocess.run([PYTHON, "-c", program], cwd=EXAMPLE, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _exact(multiplier: float, rounds: int) -> float:
    """The least epsilon of so many Gaussian mechanisms (Balle and Wang, 2018, theorem 8): together they are one."""
    shift = math.sqrt(rounds) / multiplier

    def delta(epsilon: float) -> float:
        near, far = -epsilon / shift + shift / 2, -epsilon / shift - shift / 2
        return _normal(near) - math.exp(epsilon) * _normal(far)

    low, high = 0.0, 500.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle) > float(DELTA) else (low, middle)
    return high


def _normal(value: float) -> float:
    return math.erfc(-value / math.sqrt(2)) / 2


def _version() -> str:
    (found,) = [each.version for each in distributions(path=[str(_packages())]) if each.metadata["Name"] == "opendp"]
    return found


def _packages() -> Path:
    (found,) = Path(WHERE or "").glob("lib/python3*/site-packages")
    return found
