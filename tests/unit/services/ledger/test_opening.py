"""Opening a log: made once, under what was measured, never under what a host wrote."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.identity.freshness import PolicyKeeper
from libs.policy.compose import Anchors
from libs.policy.document import read
from libs.policy.signatures import SignedPolicy, sign
from libs.transparency.leaf import Kind
from services.ledger.intake.admission import Admission, LogView
from services.ledger.intake.policies import LoggedPolicies, SeedPolicyMissing
from services.ledger.intake.rejections import Rejections
from services.ledger.intake.sequencer import Candidate, Sequencer
from services.ledger.keys import ReleasedKey
from services.ledger.opening import LogOfAnotherMesh, ensure_log, logged_policies, open_log, restore
from services.ledger.storage import description
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.keyring import KeyringFile
from services.ledger.vaults.erasures import Erasures
from services.ledger.vaults.vaults import Vaults
from tests.fakes.joined_mesh import JoinedMesh, KmsCore

from .conftest import INDEX_KEY, KEY, SOURCE
from .writers import LOG_ORIGIN, Keys, LogWriter, describe_log


@pytest.fixture
def directory(mesh: JoinedMesh, tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    ensure_log(folder, LOG_ORIGIN, 1, mesh.anchors("ledger"), mesh.keeper("ledger"))
    return folder


def vaults_of(folder: Path) -> Vaults:
    file = KeyringFile(folder, b"\x01" * 32)
    return Vaults(file, file.load(bytes(32)), ReleasedKey(1, bytes(32)), Keys(), Erasures())


def admission_of(policies: LoggedPolicies, kms: KmsCore) -> Admission:
    return Admission(policies, LogView(lambda issuer, number: False, lambda issuer: 0), kms.ca.certificate, Erasures())


def test_a_log_is_made_under_the_measured_operators_and_seed(mesh: JoinedMesh, directory: Path) -> None:
    assert description.read(directory) == describe_log(mesh)
    before = (directory / description.NAME).read_bytes()
    ensure_log(directory, LOG_ORIGIN, 1, mesh.anchors("ledger"), mesh.keeper("again"))
    assert (directory / description.NAME).read_bytes() == before


def test_a_log_of_other_operators_or_of_another_name_is_refused(mesh: JoinedMesh, directory: Path) -> None:
    other = JoinedMesh(mesh.folder / "other", mesh.machine)
    with pytest.raises(LogOfAnotherMesh):
        ensure_log(directory, LOG_ORIGIN, 1, other.anchors("ledger"), other.keeper("ledger"))
    with pytest.raises(LogOfAnotherMesh):
        ensure_log(directory, "mesh.test/ledger/2", 2, mesh.anchors("ledger"), mesh.keeper("again"))


def _rotated(mesh: JoinedMesh, name: str) -> tuple[Anchors, PolicyKeeper]:
    """A ledger that is measured with the operators of version 2, and starts with that as its seed."""
    newcomers = tuple(Ed25519PrivateKey.generate() for _ in range(2))
    keys = tuple(key.public_key().public_bytes_raw() for key in newcomers)
    operators = {"keys": [key.hex() for key in keys], "threshold": 2}
    first = read(mesh.draft)
    policy = read({**mesh.draft, "version": 2, "previous": first.digest.hex(), "operators": operators})
    signers = (*mesh.operators[:2], *newcomers)
    seed = SignedPolicy(policy, tuple(sign(policy.document, key) for key in signers)).document
    anchors = replace(mesh.anchors("ledger"), operator_keys=keys)
    return anchors, PolicyKeeper(mesh.folder / name / "policy", seed, anchors)


def test_a_ledger_measured_with_later_operators_goes_on_with_the_log_where_it_knows_the_versions_between(
    mesh: JoinedMesh, directory: Path
) -> None:
    before = (directory / description.NAME).read_bytes()
    mesh.keeper("kept")  # It ran here before, and its first policy lies in its folder.
    anchors, keeper = _rotated(mesh, "kept")
    ensure_log(directory, LOG_ORIGIN, 1, anchors, keeper)
    assert (directory / description.NAME).read_bytes() == before
    assert logged_policies(description.read(directory), keeper).newest.version == 1
    anchors, ignorant = _rotated(mesh, "fresh")
    with pytest.raises(LogOfAnotherMesh, match="no policy known here leads"):
        ensure_log(directory, LOG_ORIGIN, 1, anchors, ignorant)


@pytest.mark.parametrize("threshold", [1, 2])
def test_operators_that_a_host_wrote_into_the_description_are_refused(
    mesh: JoinedMesh, directory: Path, threshold: int
) -> None:
    mesh.keeper("kept")
    anchors, keeper = _rotated(mesh, "kept")
    found = description.read(directory)
    stranger = (b"\x09" * 32, *found.operator_keys[1:]) if threshold == 2 else found.operator_keys
    description.write(directory, replace(found, operator_keys=stranger, operator_threshold=threshold))
    with pytest.raises(LogOfAnotherMesh):
        ensure_log(directory, LOG_ORIGIN, 1, anchors, keeper)


@pytest.mark.parametrize("kept", ["keyring", "wm", "checkpoints.log", "seg/00000000000000000000.seg"])
def test_a_description_that_is_gone_is_not_made_again_beside_a_log(
    mesh: JoinedMesh, directory: Path, kept: str
) -> None:
    (directory / kept).touch()
    (directory / description.NAME).unlink()
    with pytest.raises(LogDamaged):
        ensure_log(directory, LOG_ORIGIN, 1, mesh.anchors("ledger"), mesh.keeper("again"))


async def test_entries_whose_share_is_gone_are_damage(mesh: JoinedMesh, kms: KmsCore, directory: Path) -> None:
    vault = await vaults_of(directory).open("ab" * 16)
    writer = LogWriter(mesh, kms, "router")
    async with open_log(directory, KEY.sign, lambda: 1, INDEX_KEY) as store:
        record = writer.seal(Kind.RECEIPT, vault=vault).record
        header = record.header
        entry = Candidate(
            header.kind, writer.issuer.id, 1, header.commitment, header.vault_epoch, header.vault_id, record.body
        )
        Sequencer(store, epoch=1, tag=lambda vault_id, seq: bytes(16), clock=lambda: 1).append([entry], SOURCE, 1, 1)
        policies = logged_policies(store.description, mesh.keeper("ledger"))
        admission, rejections = admission_of(policies, kms), Rejections(directory)
        restore(store, admission, policies, vaults_of(directory), Erasures(), rejections)
        (directory / "keyring").unlink()
        with pytest.raises(LogDamaged) as damage:
            restore(store, admission, policies, vaults_of(directory), Erasures(), rejections)
        rejections.close()
    assert damage.value.exit_status == 3


async def test_an_empty_log_without_its_seed_serves_nobody(mesh: JoinedMesh, kms: KmsCore, directory: Path) -> None:
    other = JoinedMesh(mesh.folder / "other", mesh.machine)
    other.folder.mkdir()
    async with open_log(directory, KEY.sign, lambda: 1, INDEX_KEY) as store:
        policies = logged_policies(store.description, other.keeper("ledger"))
        admission, rejections = admission_of(policies, kms), Rejections(directory)
        with closing(rejections), pytest.raises(SeedPolicyMissing):
            restore(store, admission, policies, vaults_of(directory), Erasures(), rejections)
