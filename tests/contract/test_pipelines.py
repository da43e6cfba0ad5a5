"""Pipelines as their people use them: jobs as processes, a real ledger and broker, one command to verify it all."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from libs.client import lineage_file
from libs.events.records import parse_entry
from libs.policy.releases import KeyAlgorithm
from tests.fakes.joined_mesh import JoinedMesh, measurement_of
from tests.fakes.running_jobs import Done, describe, job_config, teemesh
from tests.unit.services.ledger.live import LiveMesh

pytestmark = pytest.mark.timeout(300)

CLEAN = "import sys; open(sys.argv[2], 'w').write(open(sys.argv[1]).read().lower())"
TRAIN = "import sys; open(sys.argv[2], 'w').write(str(len(open(sys.argv[1]).read())))"


@pytest.fixture
async def live(mesh: JoinedMesh) -> AsyncIterator[LiveMesh]:
    async with LiveMesh(mesh).running() as running:
        await running.start()
        yield running


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Two stages by two jobs, and what an outsider is given of them."""

    folder: Path
    mesh_file: Path
    weights: str
    data: str
    tuned: str

    async def show(self, *more: object) -> Done:
        return await teemesh("pipeline", "show", "--weights", self.weights, "--mesh", self.mesh_file, *more)

    async def verify(self, lineage: Path, *more: object) -> Done:
        policy = ("--policy", self.mesh_file.parent / "seed.json", "--ca", self.mesh_file.parent / "ca.pem")
        return await teemesh("pipeline", "verify", lineage, "--weights", self.weights, *policy, *more)


def record(config: Path, stage: str, read: Path, make: Path, code: str, *more: object) -> tuple[object, ...]:
    work = ("--", sys.executable, "-c", code, read, make)
    named = ("--input", f"read={read}", "--output", f"made={make}")
    return ("pipeline", "record", "--config", config, "--stage", stage, "--name", stage, *named, "--json", *more, *work)


async def pipeline(live: LiveMesh) -> Pipeline:
    folder = live.mesh.folder
    corpus, cleaned, weights = (folder / name for name in ("corpus", "cleaned", "weights"))
    corpus.write_text("Some TEXT\n")
    async with job_config(live, "cleaner") as cleaner, job_config(live, "tuner") as tuner:
        first = await teemesh(*record(cleaner, "data_preprocessing", corpus, cleaned, CLEAN))
        made_by = f"read={first.members['entry']}"
        second = await teemesh(*record(tuner, "fine_tuning", cleaned, weights, TRAIN, "--made-by", made_by))
    digest = (await teemesh("weights", "manifest", corpus)).out.split()[0]
    return Pipeline(folder, describe(live), second.members["outputs"]["made"], digest, second.members["entry"])


async def test_weights_are_led_to_their_data_by_one_command_offline(live: LiveMesh) -> None:
    made = await pipeline(live)
    kept = made.folder / "lineage.json"
    shown = await made.show("--save", kept)
    assert shown.status == 0, shown.out + shown.err
    assert "1. fine_tuning 'fine_tuning', leaf " in shown.out
    assert f"made {made.weights} 'made'" in shown.out
    await live.kill()
    verified = await made.verify(kept, "--data", made.data)
    assert verified.status == 0, verified.out + verified.err
    assert [line.split()[:2] for line in verified.out.splitlines() if line.startswith("PASS")] == [
        ["PASS", str(number)] for number in range(1, 12)
    ]
    tuner = f"spiffe://{live.mesh.anchors('job').trust_domain}/job/tuner"
    assert f"stage 1 is signed by an allowed job: {tuner}" in verified.out
    assert "VERIFIED: 11 of 11 checks passed" in verified.out
    assert f"the weights lead to their data: 'read' {made.data}" in verified.out
    missing = await made.verify(kept, "--data", "00" * 32)
    assert (missing.status, "FAIL 11" in missing.out, "DATA_NOT_USED" in missing.out) == (1, True, True)
    await _another_policy_refuses_it(live, made, kept)
    unusable = await made.verify(made.mesh_file)
    assert (unusable.status, "LINEAGE_FILE_MALFORMED" in unusable.err) == (2, True)


async def _another_policy_refuses_it(live: LiveMesh, made: Pipeline, kept: Path) -> None:
    mesh = live.mesh
    (made.folder / "seed.json").write_bytes(mesh.sign({**mesh.draft, "roles": mesh.without("job")}))
    refused = await made.verify(kept)
    assert (refused.status, "NOT VERIFIED: 9 of 11 checks passed" in refused.out) == (1, True), refused.out


async def test_a_command_that_fails_is_not_recorded(live: LiveMesh) -> None:
    corpus = live.mesh.folder / "corpus"
    corpus.write_text("text")
    async with job_config(live, "1") as config:
        arguments = record(config, "training", corpus, live.mesh.folder / "out", "import sys; sys.exit(3)")
        done = await teemesh(*arguments)
    assert (done.status, done.out) == (1, "")
    assert "teemesh: STAGE_FAILED: " in done.err
    shown = await teemesh("pipeline", "show", "--weights", "00" * 32, "--mesh", describe(live))
    assert (shown.status, "WEIGHTS_UNKNOWN" in shown.err) == (1, True)


async def test_a_job_that_policy_does_not_list_records_nothing(live: LiveMesh) -> None:
    corpus, out = live.mesh.folder / "corpus", live.mesh.folder / "out"
    corpus.write_text("text")
    async with job_config(live, "1", live.mesh.boot("job", "another image")) as config:
        done = await teemesh(*record(config, "training", corpus, out, TRAIN))
    assert (done.status, out.exists()) == (1, False)
    assert "MEASUREMENT_NOT_ALLOWED" in done.err


async def test_a_job_reads_what_was_sealed_for_its_measurement_alone(mesh: JoinedMesh) -> None:
    """Two jobs whose stages policy takes, with the same files and the same configuration."""
    mine, other = mesh.tds["job"], mesh.boot("job", "another pipeline")
    mesh.draft["roles"]["job"]["measurements"].append(measurement_of(other).to_json())
    rule = {"name": "data/claims", "roles": ["job"], "algorithm": "x25519", "compose_hashes": [mine.compose_hash.hex()]}
    mesh.draft["key_releases"].append(rule)
    live = LiveMesh(mesh)
    key, manifest, sealed = (mesh.folder / name for name in ("key.pem", "claims.json", "claims.sealed"))
    plain = mesh.folder / "claims"
    plain.mkdir()
    (plain / "2026.txt").write_text("Some SECRET\n")
    public = load_der_public_key(live.kms.keyring.public_key("data/claims", 1, KeyAlgorithm.X25519))
    key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    digest = (await teemesh("weights", "manifest", plain, "--out", manifest)).out.split()[0]
    assert (await teemesh("weights", "seal", plain, "--key", key, "--out", sealed)).status == 0
    shutil.rmtree(plain)
    read = {"folder": str(sealed), "manifest": str(manifest), "key": "data/claims", "epoch": 1}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        opened, made = Path(memory) / "claims", mesh.folder / "made"
        copy = "import shutil, sys; shutil.copyfile(sys.argv[1] + '/2026.txt', sys.argv[2])"
        async with live.running() as running:
            await running.start()
            async with (
                job_config(running, "named", sealed={"read": read}) as named,
                job_config(running, "other", other, sealed={"read": read}) as others,
            ):
                refused = await teemesh(*record(others, "training", opened, made, copy))
                assert (refused.status, "KEY_NOT_ALLOWED" in refused.err) == (1, True), refused.err
                assert (made.exists(), os.listdir(memory)) == (False, [])
                done = await teemesh(*record(named, "training", opened, made, copy))
                assert (done.status, made.read_text()) == (0, "Some SECRET\n"), done.err
                assert os.listdir(memory) == []
            shown = await teemesh(
                *("pipeline", "show", "--weights", done.members["outputs"]["made"], "--mesh", describe(running))
            )
            assert f"took {digest} 'read'" in shown.out


async def test_of_several_stages_with_one_output_one_is_named(live: LiveMesh) -> None:
    made = await pipeline(live)
    corpus, again = made.folder / "corpus-2", made.folder / "weights-2"
    corpus.write_text("Some text\n")
    async with job_config(live, "other") as config:
        # The same weights by another way: a file's manifest has its name.
        again = made.folder / "again" / "weights"
        again.parent.mkdir()
        other = (await teemesh(*record(config, "training", corpus, again, TRAIN))).members
    assert other["outputs"]["made"] == made.weights
    assert "STAGES_AMBIGUOUS" in (await made.show()).err
    shown = await made.show("--stage", made.tuned)
    assert (shown.status, f"entry {made.tuned}" in shown.out) == (0, True)
    assert parse_entry(lineage_file.decode(await _kept(made, other["entry"])).stages[0].canonical).body["inputs"]


async def _kept(made: Pipeline, stage: str) -> bytes:
    path = made.folder / "other.json"
    shown = await made.show("--stage", stage, "--save", path)
    assert shown.status == 0, shown.err
    return path.read_bytes()
