"""An encrypted data set: read by stages of the one measurement that policy names, and by nobody else."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key
from teemesh.kms.v1 import kms_pb2

from libs.errors import MeshError
from libs.events.pipeline import Step
from libs.identity.sealed import ReceiverKey
from libs.jobs import Given, Recorded, SealedInput, Stages
from libs.jobs.job import released_by_kms
from libs.policy.custody import verify_key_statement
from libs.weights import measure
from libs.weights.age import seal
from services.devtee.machine import VirtualTd
from tests.fakes.joined_mesh import JoinedMesh, measurement_of
from tests.fakes.kms_callers import operator
from tests.fakes.ledgers import LedgerTwin
from tests.fakes.running_kms import RunningKms, running_kms

KEY = "data/claims"
SECRET = b"name,claim\nAda,broken wheel\n" * 4_000


@dataclass(slots=True)
class Study:
    """A data set that its owner sealed for one measurement, and two jobs that policy lets write stages."""

    mesh: JoinedMesh
    running: RunningKms
    other: VirtualTd
    folder: Path
    given: Given
    digest: bytes
    ledger: LedgerTwin = field(default_factory=LedgerTwin)
    seen: bytes = b""

    @asynccontextmanager
    async def job(
        self, td: VirtualTd | None = None, role: str = "job", claims: dict[str, Any] | None = None
    ) -> AsyncIterator[Stages]:
        receiver = ReceiverKey()
        said = {"hpke_key": receiver.public.hex()} if claims is None else claims
        async with self.mesh.member(role, self.running.core, claims=said, td=td) as member:
            release = released_by_kms(member.peer("kms", self.running.target), member.identity, receiver)
            yield Stages(self.ledger, 5.0, release)

    async def run(self, stages: Stages, given: Given | None = None) -> Recorded:
        given = given or self.given
        made = self.folder / "made"

        async def work() -> None:
            self.seen = (given.path / "claims.csv").read_bytes()
            made.write_text(str(len(self.seen)))

        return await stages.run(
            Step.DATA_PREPROCESSING, "count", work, inputs={"claims": given}, outputs={"count": made}, parameters={}
        )

    async def refusal(self, stages: Stages, given: Given | None = None) -> str:
        """Nothing was read, nothing logged, and nothing lies in the clear."""
        with pytest.raises(MeshError) as refused:
            await self.run(stages, given)
        assert (self.seen, self.ledger.entries, os.listdir(self.given.path.parent)) == (b"", [], [])
        return refused.value.reason


@pytest.fixture
def in_memory() -> Iterator[Path]:
    folder = tempfile.mkdtemp(dir="/dev/shm")
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture
async def study(mesh: JoinedMesh, tmp_path: Path, in_memory: Path) -> AsyncIterator[Study]:
    mine, other = mesh.tds["job"], mesh.boot("job", "another pipeline")
    rule = {"name": KEY, "roles": ["job"], "algorithm": "x25519", "compose_hashes": [mine.compose_hash.hex()]}
    jobs = {**mesh.draft["roles"]["job"], "measurements": [measurement_of(td).to_json() for td in (mine, other)]}
    mesh.draft = {**mesh.draft, "roles": {**mesh.draft["roles"], "job": jobs}, "key_releases": [rule]}
    mesh.seed = mesh.sign(mesh.draft)
    async with running_kms(mesh, mesh.kms()) as running:
        async with operator(running) as ada:
            stated = await ada.GetPublicKey(kms_pb2.GetPublicKeyRequest(name=KEY), timeout=10)
        statement = verify_key_statement(stated.statement, stated.statement_signature, running.core.ca.spki)
        public = load_der_public_key(statement.public_key)
        assert isinstance(public, X25519PublicKey)
        plain, sealed = tmp_path / "plain", tmp_path / "sealed"
        plain.mkdir()
        (plain / "claims.csv").write_bytes(SECRET)
        manifest = (await measure(plain)).manifest
        await seal(plain, manifest, sealed, public)
        shutil.rmtree(plain)
        (tmp_path / "claims.json").write_bytes(manifest.document)
        given = Given(in_memory / "claims", sealed=SealedInput(sealed, tmp_path / "claims.json", KEY, statement.epoch))
        yield Study(mesh, running, other, tmp_path, given, manifest.digest)


async def test_the_named_measurement_reads_it_and_leaves_nothing_in_the_clear(study: Study) -> None:
    async with study.job() as stages:
        recorded = await study.run(stages)
    assert study.seen == SECRET
    ((claims,), _) = recorded.stage.inputs, recorded.stage.outputs
    assert claims.sha256 == study.digest
    assert os.listdir(study.given.path.parent) == []
    assert study.running.log.decisions == [f"released {KEY}"]


async def test_a_job_of_another_measurement_gets_no_key(study: Study) -> None:
    """Policy takes its word on stages, and not on this data set."""
    async with study.job(study.other) as stages:
        assert await study.refusal(stages) == "KEY_NOT_ALLOWED"


async def test_another_role_gets_no_key(study: Study) -> None:
    async with study.job(role="agent") as stages:
        assert await study.refusal(stages) == "KEY_NOT_ALLOWED"


async def test_a_key_is_sealed_to_the_evidence_of_whoever_asked(study: Study) -> None:
    """A job whose evidence binds another receiver's key cannot open what comes, though it may have it."""
    async with study.job(claims={"hpke_key": ReceiverKey().public.hex()}) as stages:
        assert await study.refusal(stages) == "SEALED_KEY_REFUSED"


@pytest.mark.parametrize(
    ("damage", "reason"), [("bit", "WEIGHTS_NOT_OPENED"), ("gone", "WEIGHTS_MISSING"), ("manifest", "WEIGHTS_DIFFER")]
)
async def test_what_the_host_did_to_the_files_is_found_before_the_work(study: Study, damage: str, reason: str) -> None:
    file = study.folder / "sealed" / "claims.csv.age"
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[-40] ^= 1
        file.write_bytes(content)
    elif damage == "gone":
        file.unlink()
    else:
        manifest = study.folder / "claims.json"
        manifest.write_bytes(manifest.read_bytes().replace(b'"size":', b'"size":1'))
    async with study.job() as stages:
        assert await study.refusal(stages) == reason


async def test_work_that_fails_leaves_nothing_in_the_clear(study: Study) -> None:
    async def fail() -> None:
        assert (study.given.path / "claims.csv").read_bytes() == SECRET
        raise RuntimeError("out of memory")

    async with study.job() as stages:
        with pytest.raises(RuntimeError):
            await stages.run(
                Step.TRAINING,
                "fails",
                fail,
                inputs={"claims": study.given},
                outputs={"made": study.folder / "made"},
                parameters={},
            )
    assert os.listdir(study.given.path.parent) == []


async def test_it_is_not_opened_where_a_disk_would_have_it_nor_over_anothers_files(study: Study) -> None:
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as disk:
        async with study.job() as stages:
            assert await study.refusal(stages, replace(study.given, path=Path(disk) / "x")) == "WEIGHTS_WOULD_REST"
        assert os.listdir(disk) == []
    study.given.path.mkdir()
    (study.given.path / "mine").write_text("mine")
    async with study.job() as stages:
        with pytest.raises(MeshError) as refused:
            await study.run(stages)
    assert refused.value.reason == "INPUT_THERE_BEFORE"
    assert os.listdir(study.given.path) == ["mine"]
