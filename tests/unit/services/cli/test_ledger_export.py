"""A log as a bundle: what was verified, every byte of it, and never the keyring."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from libs import jcs
from libs.transparency.leaf import Kind
from services.cli.__main__ import main
from services.ledger.storage.segments import Geometry
from tests.fakes.written_log import TAG_KEY, Author, WrittenLog, rewritten

Run = Callable[..., tuple[int, str]]
SECRET = b"TMKR" + b"the halves of all keys"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str]:
        code = main(["ledger", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.fixture
def log(tmp_path: Path) -> WrittenLog:
    """Seven entries in four segments, of which the last grows."""
    log = WrittenLog(tmp_path / "log", geometry=Geometry(zeros_ahead=100, sealed_at_stop=1)).create()
    keeper = Author("kms")
    policy = {"policy": {"version": 3}, "signatures": []}
    log.append([log.ledger.introduce()], [log.router.introduce()])
    log.append([keeper.introduce(), keeper.entry(Kind.POLICY, policy)])
    log.append([log.router.receipt()], [log.router.receipt()])
    log.geometry = Geometry(zeros_ahead=100)
    log.append([log.router.receipt()])
    log.sign()
    (log.folder / "keyring").write_bytes(SECRET)
    return log


@pytest.mark.parametrize("name", ["bundle", "bundle.tar"])
def test_bundle_is_verified_as_the_log_is(log: WrittenLog, run: Run, tmp_path: Path, name: str) -> None:
    code, said = run("export", tmp_path / name, log.folder)
    assert code == 0
    assert "mesh.local/ledger/1, entries 0 to 6, 9 files" in said
    code, said = run("verify", tmp_path / name)
    assert (code, "SOUND: 7 entries of 3 issuers; signed up to 7" in said) == (0, True)
    assert run("verify", log.folder, "--against", tmp_path / name)[0] == 0
    assert run("verify", tmp_path / name, "--against", log.folder)[0] == 0


@pytest.mark.parametrize("name", ["bundle", "bundle.tar"])
def test_restored_log_is_the_same_byte_for_byte(log: WrittenLog, run: Run, tmp_path: Path, name: str) -> None:
    assert run("export", tmp_path / name, log.folder)[0] == 0
    assert run("restore", tmp_path / name, tmp_path / "restored")[0] == 0
    restored = {
        str(path.relative_to(tmp_path / "restored")): path.read_bytes() for path in _files(tmp_path / "restored")
    }
    original = log.files()
    for file, content in restored.items():
        if file == "keys":
            assert content.decode() == log.ledger.vkey.text() + "\n"
        elif file == "policy/3.json":
            assert jcs.loads(content)["policy"] == {"version": 3}
        else:
            assert original[file].startswith(content)
            assert not original[file][len(content) :].strip(b"\0")
    assert {name for name in original if name.startswith("seg/")} <= restored.keys()
    again = WrittenLog(tmp_path / "restored", log.ledger, log.router, log.geometry)
    again.append([log.router.receipt()])
    assert run("verify", tmp_path / "restored")[0] == 0


@pytest.mark.parametrize("name", ["bundle", "bundle.tar"])
def test_keyring_is_in_no_bundle(log: WrittenLog, run: Run, tmp_path: Path, name: str) -> None:
    run("export", tmp_path / name, log.folder)
    path = tmp_path / name
    written = b"".join(each.read_bytes() for each in (_files(path) if path.is_dir() else [path]))
    assert SECRET not in written
    assert b"keyring" not in written


def test_bundle_of_a_growing_log_holds_what_was_verified(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    run("export", tmp_path / "one", log.folder)
    with (log.folder / "seg" / "00000000000000000006.seg").open("ab") as growing:
        growing.write(b"half a frame")
    assert run("export", tmp_path / "two", log.folder)[0] == 0
    assert (tmp_path / "one" / "manifest.json").read_bytes() == (tmp_path / "two" / "manifest.json").read_bytes()


def test_damaged_log_is_not_exported(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    path = log.folder / "seg" / "00000000000000000002.seg"
    path.write_bytes(path.read_bytes()[:-1])
    code, said = run("export", tmp_path / "bundle", log.folder)
    assert (code, "LOG_NOT_SOUND" in said) == (1, True)
    assert not (tmp_path / "bundle").exists()


def test_any_object_that_was_changed_is_damage(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    run("export", bundle, log.folder)
    for path in _files(bundle / "objects"):
        content = path.read_bytes()
        for at in range(0, len(content), max(len(content) // 3, 1)):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            assert run("verify", bundle)[0] == 3, path
        path.write_bytes(content)
        code, said = run("verify", bundle)
        assert code == 0, said


def test_changed_object_is_not_restored(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    run("export", bundle, log.folder)
    path = bundle / "objects" / sha256((log.folder / "log.json").read_bytes()).hexdigest()
    path.write_bytes(b"{}")
    code, said = run("restore", bundle, tmp_path / "restored")
    assert (code, "FILE_CHANGED" in said) == (1, True)


def test_manifest_cannot_name_a_file_elsewhere(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    run("export", bundle, log.folder)
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    for name in ("../escaped", "/etc/passwd", "seg/../../escaped.seg", "keyring", "policy/../3.json"):
        digest = manifest["files"]["log.json"]
        changed = {**manifest, "files": {**manifest["files"], name: digest}}
        (bundle / "manifest.json").write_text(json.dumps(changed))
        for command in (["restore", bundle, tmp_path / "restored"], ["verify", bundle]):
            code, said = run(*command)
            assert (code, "BUNDLE_MALFORMED" in said) == (1, True)
    assert not (tmp_path / "escaped").exists()


def test_missing_object_is_said(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    run("export", tmp_path / "bundle.tar", log.folder)
    with tarfile.open(tmp_path / "bundle.tar") as whole, tarfile.open(tmp_path / "less.tar", "w") as less:
        for member in whole.getmembers()[1:]:
            less.addfile(member, whole.extractfile(member))
    code, said = run("verify", tmp_path / "less.tar")
    assert (code, "BUNDLE_MALFORMED" in said) == (1, True)


def test_part_of_a_log_is_borne_out_by_a_signed_head_under_a_known_key(
    log: WrittenLog, run: Run, tmp_path: Path
) -> None:
    part, key = tmp_path / "part", ["--key", log.ledger.vkey.text()]
    code, said = run("export", part, log.folder, "--from", 3, "--to", 6)
    assert (code, "entries 2 to 6" in said) == (0, True)
    code, said = run("verify", part, *key)
    assert (code, "SOUND" in said) == (0, True)
    assert "only a part of the log" in said
    code, said = run("verify", part)
    assert (code, "nothing bears out what came before it" in said) == (5, True)


def test_part_whose_beginning_was_made_up_is_not_borne_out(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    part, key = tmp_path / "part", ["--key", log.ledger.vkey.text()]
    run("export", part, log.folder, "--from", 6)
    manifest = json.loads((part / "manifest.json").read_bytes())
    name = "seg/00000000000000000006.seg"
    header = bytearray((part / "objects" / manifest["files"][name]).read_bytes())
    header[184] ^= 1
    header[4064:4096] = sha256(header[:4064]).digest()
    digest = sha256(header).hexdigest()
    (part / "objects" / digest).write_bytes(header)
    manifest["files"][name] = digest
    (part / "manifest.json").write_text(json.dumps(manifest))
    code, said = run("verify", part, *key)
    assert code != 0
    assert "DIVERGED" not in said


def test_part_that_ends_early_is_not_rolled_back(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    log.append([log.router.receipt()])
    run("export", tmp_path / "part", log.folder, "--to", 1)
    code, said = run("verify", tmp_path / "part", "--key", log.ledger.vkey.text())
    assert (code, "no signed head that holds covers this part" in said) == (5, True)


def test_part_that_ends_early_is_not_taken_for_the_whole_log(run: Run, tmp_path: Path) -> None:
    log = WrittenLog(tmp_path / "log", geometry=Geometry(zeros_ahead=100, sealed_at_stop=1)).create()
    log.append([log.ledger.introduce()], [log.router.introduce()])
    log.sign()
    log.append([log.router.receipt()])
    log.sign()
    run("export", tmp_path / "part", log.folder, "--to", 1)
    code, said = run("verify", tmp_path / "part")
    assert (code, "only a part of the log, which went on after these 2 entries" in said) == (0, True)


def test_part_does_not_say_how_many_entries_a_tenant_has(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    part, tag_key = tmp_path / "part", tmp_path / "tenant.tag-key"
    tag_key.write_text(TAG_KEY.hex())
    run("export", part, log.folder, "--from", 6)
    code, said = run("verify", part, "--key", log.ledger.vkey.text(), "--tag-key", tag_key)
    assert (code, "of the tenant's" in said) == (0, False)


def test_part_says_nothing_of_a_history_that_ends_before_it(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    part, key = tmp_path / "part", ["--key", log.ledger.vkey.text()]
    run("export", part, log.folder, "--from", 6)
    other = rewritten(log, tmp_path / "other", ["ONE"])
    other.sign()
    for one, two in ((part, other.folder), (other.folder, part)):
        code, said = run("verify", one, "--against", two, *key)
        assert (code, "there is nothing to compare" in said) == (5, True)


def test_range_without_entries_is_refused(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    code, said = run("export", tmp_path / "part", log.folder, "--from", 100)
    assert (code, "RANGE_WITHOUT_SEGMENT" in said) == (1, True)


def test_nothing_is_overwritten(log: WrittenLog, run: Run, tmp_path: Path) -> None:
    for command in (["export", log.folder, log.folder], ["restore", tmp_path / "bundle", log.folder]):
        code, said = run(*command)
        assert (code, "OUTPUT_EXISTS" in said) == (1, True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
