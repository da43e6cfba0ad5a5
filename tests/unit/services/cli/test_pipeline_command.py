"""`teemesh pipeline`: what is judged and what cannot be, and what `record` refuses before anything is run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from libs import jcs
from libs.client import exchange_file, lineage_file
from services.cli.__main__ import main
from services.cli.pipelines.show import described
from tests.fakes.attested_mesh import WEIGHTS, AttestedMesh
from tests.fakes.gathered import describe, gathered
from tests.fakes.lineages import CORPUS, tuned

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def mesh() -> AttestedMesh:
    return AttestedMesh.create(int(time.time()))


@pytest.fixture
def kept(mesh: AttestedMesh, tmp_path: Path) -> Path:
    """A folder with a lineage, an answer that the same weights gave, and a mesh.json."""
    (tmp_path / "lineage.json").write_bytes(lineage_file.encode(tuned(mesh)))
    (tmp_path / "answer.json").write_bytes(exchange_file.encode(gathered(mesh, b"{}", b"{}")))
    describe(mesh, tmp_path, "https://127.0.0.1:1", "key")
    return tmp_path


@pytest.fixture
def verify(kept: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*more: object) -> tuple[int, str]:
        arguments = (kept / "lineage.json", "--mesh", kept / "mesh.json", *more)
        code = main(["pipeline", "verify", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_an_answer_is_led_to_its_data(verify: Run, kept: Path) -> None:
    code, said = verify("--answer", kept / "answer.json", "--data", CORPUS.hex())
    assert (code, f"PASS  1 weights are known: {WEIGHTS}" in said) == (0, True), said
    assert "nothing here is proven to run on hardware" in said
    assert said.splitlines()[-1] == "VERIFIED: 11 of 11 checks passed"


def test_machines_are_told_every_check(verify: Run, kept: Path) -> None:
    code, said = verify("--answer", kept / "answer.json", "--json")
    value = json.loads(said)
    assert (code, value["verified"], [check["number"] for check in value["checks"]]) == (0, True, [*range(1, 12)])
    code, said = verify("--weights", "78" * 32, "--json")
    value = json.loads(said)
    assert (code, value["verified"]) == (1, False)
    assert [check["reason"] for check in value["checks"] if not check["passed"]] == ["WEIGHTS_NOT_MADE"]


def test_an_answer_without_its_own_proofs_leads_nowhere(verify: Run, kept: Path) -> None:
    path = kept / "answer.json"
    value = json.loads(path.read_bytes())
    value["exchange"]["response"] = b"other words".hex()
    path.write_bytes(jcs.dumps(value))
    code, said = verify("--answer", path)
    assert (code, "FAIL  1 weights are known: ANSWER_NOT_PROVEN: teemesh verify finds it misfit" in said) == (1, True)


def test_an_answer_by_other_weights_is_not_what_was_made(verify: Run, kept: Path, mesh: AttestedMesh) -> None:
    other = AttestedMesh.create(mesh.now)
    path = kept / "other.json"
    path.write_bytes(exchange_file.encode(gathered(other, b"{}", b"{}")))
    code, said = verify("--answer", path)
    # Another mesh's answer: its CA is not the reader's, so nothing can be judged by this policy.
    assert (code, "MESH_CA_UNEXPECTED" in said or "ANSWER_NOT_PROVEN" in said) in ((1, True), (2, True))


@pytest.mark.parametrize("lacking", ["lineage.json", "answer.json", "policy.json", "ca.pem"])
def test_what_cannot_be_read_is_not_judged(verify: Run, kept: Path, lacking: str) -> None:
    (kept / lacking).write_bytes(b"{}")
    assert verify("--answer", kept / "answer.json")[0] == 2
    (kept / lacking).unlink()
    assert verify("--answer", kept / "answer.json")[0] == 2


def test_what_stages_say_of_themselves_does_not_steer_a_terminal(mesh: AttestedMesh) -> None:
    lines = list(described(tuned(mesh)))
    assert [line[0] for line in lines] == ["1", " ", " ", " ", "2", " ", " ", "n"]
    assert f"     made {WEIGHTS} 'weights'" in lines
    assert all(line.isprintable() for line in lines)


REFUSED = {
    "an input twice": ["--input", "a=x", "--input", "a=y"],
    "a maker of nothing": ["--input", "a=x", "--made-by", "b=" + "00" * 32],
    "a maker that is no entry": ["--input", "a=x", "--made-by", "a=1"],
}


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_what_is_said_unclearly_is_not_run(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, ran = Path("deploy/config/job.toml"), tmp_path / "ran"
    fixed = ["--config", str(config), "--stage", "training", "--name", "x", "--output", f"made={ran}"]
    assert main(["pipeline", "record", *fixed, *options, "--", "touch", str(ran)]) == 1
    assert "INPUT_UNREADABLE" in capsys.readouterr().err
    assert not ran.exists()


def test_a_job_without_its_file_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = ["--config", str(tmp_path / "job.toml"), "--stage", "training", "--name", "x", "--output", "made=x"]
    assert main(["pipeline", "record", *fixed, "--", "true"]) == 1
    assert "CONFIG_INVALID" in capsys.readouterr().err


def test_a_file_that_is_there_is_not_written_over(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--weights", WEIGHTS, "--mesh", str(kept / "mesh.json"), "--save", str(kept / "lineage.json")]
    assert main(["pipeline", "show", *arguments]) == 1
    assert "OUTPUT_EXISTS" in capsys.readouterr().err
