"""Opening a log: made once, under what was measured, never under what a host wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from libs.transparency.leaf import Kind
from services.ledger import description
from services.ledger.admission import Admission, LogView
from services.ledger.damage import LogDamaged
from services.ledger.keyring import KeyringFile
from services.ledger.keys import ReleasedKey
from services.ledger.opening import LogOfAnotherMesh, ensure_log, logged_policies, open_log, restore
from services.ledger.policies import SeedPolicyMissing
from services.ledger.sequencer import Candidate, Sequencer
from services.ledger.vaults import Vaults
from tests.fakes.joined_mesh import JoinedMesh, KmsCore

from .conftest import KEY, SOURCE
from .writers import LOG_ORIGIN, Keys, LogWriter, describe_log


@pytest.fixture
def directory(mesh: JoinedMesh, tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    ensure_log(folder, LOG_ORIGIN, 1, mesh.anchors("ledger"), mesh.keeper("ledger"))
    return folder


def vaults_of(folder: Path) -> Vaults:
    file = KeyringFile(folder, b"\x01" * 32)
    return Vaults(file, file.load(bytes(32)), ReleasedKey(1, bytes(32)), Keys())


def test_a_log_is_made_under_the_measured_operators_and_seed(mesh: JoinedMesh, directory: Path) -> None:
    assert description.read(directory) == describe_log(mesh)
    before = (directory / description.NAME).read_bytes()
    ensure_log(directory, LOG_ORIGIN, 1, mesh.anchors("ledger"), mesh.keeper("again"))
    assert (directory / description.NAME).read_bytes() == before


def test_a_log_of_other_operators_is_refused(mesh: JoinedMesh, directory: Path) -> None:
    anchors = mesh.anchors("ledger")
    for other in (
        replace(anchors, operator_keys=(b"\x09" * 32, *anchors.operator_keys[1:])),
        replace(anchors, operator_threshold=1),
    ):
        with pytest.raises(LogOfAnotherMesh):
            ensure_log(directory, LOG_ORIGIN, 1, other, mesh.keeper("other"))
    with pytest.raises(LogOfAnotherMesh):
        ensure_log(directory, "mesh.test/ledger/2", 2, anchors, mesh.keeper("other"))


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
    async with open_log(directory, KEY.sign, lambda: 1) as store:
        record = writer.seal(Kind.RECEIPT, vault=vault).record
        header = record.header
        entry = Candidate(
            header.kind, writer.issuer.id, 1, header.commitment, header.vault_epoch, header.vault_id, record.body
        )
        Sequencer(store, epoch=1, tag=lambda vault_id, seq: bytes(16), clock=lambda: 1).append([entry], SOURCE, 1, 1)
        policies = logged_policies(store.description, mesh.keeper("ledger"))
        admission = Admission(policies, LogView(lambda entry_id: False, lambda issuer: 0), kms.ca.certificate)
        restore(store, admission, policies, vaults_of(directory))
        (directory / "keyring").unlink()
        with pytest.raises(LogDamaged) as damage:
            restore(store, admission, policies, vaults_of(directory))
    assert damage.value.exit_status == 3


async def test_an_empty_log_without_its_seed_serves_nobody(mesh: JoinedMesh, kms: KmsCore, directory: Path) -> None:
    other = JoinedMesh(mesh.folder / "other", mesh.machine)
    other.folder.mkdir()
    async with open_log(directory, KEY.sign, lambda: 1) as store:
        policies = logged_policies(store.description, other.keeper("ledger"))
        admission = Admission(policies, LogView(lambda entry_id: False, lambda issuer: 0), kms.ca.certificate)
        with pytest.raises(SeedPolicyMissing):
            restore(store, admission, policies, vaults_of(directory))
