"""`teemesh ledger order-prune`, `prune` and `restore --pruned` on a stopped ledger's folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from libs.events.erasure import HoldChanged
from libs.policy.orders import HOLD_VAULT, PRUNE_LOG, parse_order
from libs.transparency.leaf import Kind
from services.cli.__main__ import main
from services.ledger.storage.store import lock_log
from tests.fakes.prunable_log import prunable_log, signed_order
from tests.fakes.written_log import VAULT, WrittenLog

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str]:
        code = main(["ledger", *map(str, arguments)])
        said = capfd.readouterr()
        return code, said.out + said.err

    return run


@pytest.fixture
def log(tmp_path: Path) -> WrittenLog:
    return prunable_log(tmp_path / "log")


def segments_of(log: WrittenLog) -> dict[str, bytes]:
    return {name: data for name, data in log.files().items() if name.startswith(("seg/", "bare/"))}


@pytest.mark.parametrize("name", ["bundle", "bundle.tar"])
def test_log_is_archived_pruned_verified_and_restored_byte_for_byte(
    log: WrittenLog, run: Run, tmp_path: Path, name: str
) -> None:
    before = segments_of(log)
    assert run("export", tmp_path / name, log.folder)[0] == 0
    code, said = run("prune", log.folder, "--archive", tmp_path / name)
    assert (code, "2 segments pruned" in said) == (0, True)
    assert sorted(segments_of(log))[:2] == [f"bare/{first:020d}.seg" for first in (0, 4)]
    code, said = run("verify", log.folder)
    assert (code, "SOUND: 10 entries" in said) == (0, True)
    assert "before 8 were pruned" in said
    assert run("verify", log.folder, "--against", tmp_path / name)[0] == 0
    assert run("fsck", log.keep_keyring().folder)[0] == 0

    code, said = run("export", tmp_path / "later", log.folder)
    assert (code, "ENTRIES_PRUNED: entries before 8 are pruned here" in said) == (1, True)
    assert run("export", tmp_path / "later", log.folder, "--from", 8)[0] == 0

    code, said = run("restore", tmp_path / name, log.folder, "--pruned")
    assert (code, "2 segments are whole again" in said) == (0, True)
    assert segments_of(log) == before


def test_what_is_held_stays_and_is_named(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    order = signed_order(HOLD_VAULT, VAULT.vault_id.hex())
    log.append([log.ledger.entry(Kind.ERASURE, HoldChanged(VAULT.vault_id, True, 1, order).body())])
    before = log.files()
    code, said = run("prune", log.folder)
    assert (code, "0 segments pruned" in said, said.count("stays: a vault in it is under a hold")) == (0, True, 2)
    assert log.files() == before


def test_damaged_archive_is_none(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    assert run("export", tmp_path / "bundle", log.folder)[0] == 0
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_bytes())
    before = log.files()
    for name in manifest["files"]:
        damaged = tmp_path / "damaged"
        shutil.copytree(tmp_path / "bundle", damaged)
        path = damaged / "objects" / manifest["files"][name]
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        code, said = run("prune", log.folder, "--archive", tmp_path / "bundle", "--archive", damaged)
        assert (code, f"ARCHIVE_DAMAGED: {name}" in said) == (1, True)
        shutil.rmtree(damaged)
    assert log.files() == before


def test_archive_of_a_part_does_not_stand_for_the_rest(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    assert run("export", tmp_path / "part", log.folder, "--from", 4)[0] == 0
    before = log.files()
    for archives in ([], ["--archive", tmp_path / "part"]):
        code, said = run("prune", log.folder, *archives)
        assert (code, "SEGMENT_NOT_ARCHIVED: 00000000000000000000.seg" in said) == (1, True)
    assert log.files() == before


def test_log_that_is_open_is_neither_pruned_nor_restored(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    assert run("export", tmp_path / "bundle", log.folder)[0] == 0
    assert run("prune", log.folder, "--archive", tmp_path / "bundle")[0] == 0
    before = log.files()
    with open(lock_log(log.folder)):
        code, said = run("prune", log.folder, "--archive", tmp_path / "bundle")
        assert (code, "LOG_LOCKED" in said) == (1, True)
        code, said = run("restore", tmp_path / "bundle", log.folder, "--pruned")
        assert (code, "LOG_LOCKED" in said, "PRUNING_FAILED" in said) == (1, True, True)
    assert log.files() == before


def test_archive_that_was_damaged_since_restores_nothing(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    assert run("export", tmp_path / "bundle", log.folder)[0] == 0
    assert run("prune", log.folder, "--archive", tmp_path / "bundle")[0] == 0
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_bytes())
    path = tmp_path / "bundle" / "objects" / manifest["files"]["seg/00000000000000000000.seg"]
    data = path.read_bytes()
    path.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    before = log.files()
    code, said = run("restore", tmp_path / "bundle", log.folder, "--pruned")
    assert (code, "LOG_DAMAGED" in said, "another file" in said) == (1, True, True)
    assert log.files() == before


def test_order_names_the_log_and_what_stays(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mesh.json").write_text(json.dumps({"trust_domain": "mesh.local"}))
    drafted = [
        "order-prune", "--before", 65536, "--reason", "disk", "--out", tmp_path / "o.json", "--state", tmp_path
    ]  # fmt: skip
    code, said = run(*drafted)
    assert (code, "teemesh kms approve" in said) == (0, True)
    order = parse_order((tmp_path / "o.json").read_bytes()).order
    assert (order.action, order.subject, order.reason) == (PRUNE_LOG, "mesh.local/ledger/1,65536", "disk")
