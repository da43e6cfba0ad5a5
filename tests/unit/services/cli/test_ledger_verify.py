"""`teemesh ledger verify`, by its exit status: every finding is printed, and the worst one counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from libs.transparency import checkpoint
from libs.transparency.checkpoint import Checkpoint
from services.cli.__main__ import main
from services.ledger.storage.segments import Geometry
from tests.fakes.served_log import serving_files, tiles_of
from tests.fakes.written_log import ORIGIN, TAG_KEY, WrittenLog, rewritten, tag_of

SEGMENT = "seg/00000000000000000000.seg"
_HEADER = 4096


@pytest.fixture
def log(tmp_path: Path) -> WrittenLog:
    """Five entries in four frames, of which the first four are signed."""
    log = WrittenLog(tmp_path / "log", geometry=Geometry(zeros_ahead=100)).create()
    log.append([log.ledger.introduce()], [log.router.introduce(), log.router.receipt("one")], [log.router.receipt()])
    log.sign()
    return log.append([log.router.receipt("unsigned")])


Verify = Callable[..., tuple[int, str]]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    """Run the command; return its exit status and all that it said."""

    def run(*arguments: object) -> tuple[int, str]:
        code = main(["ledger", "verify", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def flip(log: WrittenLog, name: str, at: int) -> None:
    data = bytearray((log.folder / name).read_bytes())
    data[at] ^= 1
    (log.folder / name).write_bytes(data)


def leaves_of(log: WrittenLog) -> list[bytes]:
    data, leaves, at = (log.folder / SEGMENT).read_bytes(), [], _HEADER
    while data[at : at + 4] == b"TMF1":
        count = int.from_bytes(data[at + 16 : at + 20], "big")
        leaves += [data[at + 160 + 152 * row : at + 256 + 152 * row] for row in range(count)]
        at += int.from_bytes(data[at + 4 : at + 8], "big")
    return leaves


def test_sound_log_is_status_0(log: WrittenLog, verify: Verify) -> None:
    for depth in ([], ["--full"], ["--tiles"], ["--sample", 2]):
        code, said = verify(log.folder, *depth)
        assert code == 0
        assert "SOUND: 5 entries of 2 issuers; signed up to 4; root " in said


def test_machines_get_one_object(log: WrittenLog, verify: Verify) -> None:
    code, said = verify(log.folder, "--json", "--tag-key", _tag_key(log.folder.parent))
    value = json.loads(said)
    assert (code, value["status"], value["verdict"], value["size"], value["tenant_entries"]) == (0, 0, "sound", 5, 3)
    assert value["tenant_gap_free"] is True
    assert value["keys"] == [log.ledger.vkey.text()]
    flip(log, SEGMENT, _HEADER + 200)
    code, said = verify(log.folder, "--json")
    value = json.loads(said)
    assert (code, value["status"]) == (3, 3)
    assert value["findings"][0]["file"] == "00000000000000000000.seg"


def test_withheld_number_of_the_tenants_is_status_7_and_named(log: WrittenLog, verify: Verify) -> None:
    """A ledger with all its keys leaves one out: to everybody else the log is sound."""
    key = _tag_key(log.folder.parent)
    code, said = verify(log.folder, "--tag-key", key)
    assert (code, "the tenant's 1 to 3 without a gap" in said) == (0, True)
    log.tag = lambda vault_id, number: tag_of(vault_id, number + 1 if any(vault_id) else number)
    log.append([log.router.receipt("after the one that is withheld")])
    assert verify(log.folder)[0] == 0
    code, said = verify(log.folder, "--tag-key", key)
    assert (code, "numbers 4 to 4 of the vault are on no leaf before number 5" in said) == (7, True)
    assert "the tenant's 1 to 5 with gaps" in said
    code, said = verify(log.folder, "--tag-key", key, "--json")
    assert (code, json.loads(said)["tenant_gap_free"]) == (7, False)
    key.write_text("01" * 32)
    code, said = verify(log.folder, "--tag-key", key)
    assert (code, "none of the tenant's" in said) == (0, True)


def test_torn_tail_is_status_2(log: WrittenLog, verify: Verify) -> None:
    flip(log, SEGMENT, (log.folder / SEGMENT).stat().st_size - 1)
    code, said = verify(log.folder)
    assert code == 2
    assert "TORN  00000000000000000000.seg at byte" in said


def test_damage_is_status_3_and_names_file_and_byte(log: WrittenLog, verify: Verify) -> None:
    flip(log, SEGMENT, _HEADER + 170)
    code, said = verify(log.folder)
    assert code == 3
    assert f"DAMAGED  00000000000000000000.seg at byte {_HEADER + 160}: a frame's rows and trailer" in said
    assert "UNPROVEN  checkpoints.log at byte 0" in said


def test_log_below_a_signed_size_is_status_4(log: WrittenLog, verify: Verify, tmp_path: Path) -> None:
    older = shutil.copytree(log.folder, tmp_path / "older")
    log.sign()
    assert verify(older)[0] == 0
    code, said = verify(older, "--against", log.folder / "checkpoint", "--from", older / "checkpoint")
    assert code == 0
    log.append([log.router.receipt()])
    log.sign()
    code, said = verify(older, "--from", log.folder / "checkpoint")
    assert code == 4
    assert "ROLLED BACK  00000000000000000000.seg" in said
    assert "5 leaves are left, but checkpoint promises 6" in said


def test_unknown_signer_is_status_5(log: WrittenLog, verify: Verify) -> None:
    log.sign(log.router.checkpoint_key)
    assert verify(log.folder)[0] == 5
    assert verify(log.folder, "--key", log.router.vkey.text())[0] == 0


@pytest.mark.parametrize("origin", [ORIGIN, "other.example/log"])
def test_head_that_the_log_did_not_sign_is_status_5_however_large(
    log: WrittenLog, verify: Verify, tmp_path: Path, origin: str
) -> None:
    forged = tmp_path / "forged.checkpoint"
    forged.write_bytes(checkpoint.sign(Checkpoint(origin, 100, b"\x01" * 32), log.router.checkpoint_key))
    code, said = verify(log.folder, "--from", forged)
    assert (code, "ROLLED BACK" in said) == (5, False)


def test_second_history_is_status_6_with_evidence_that_proves_alone(
    log: WrittenLog, verify: Verify, tmp_path: Path
) -> None:
    old, evidence = tmp_path / "old.checkpoint", tmp_path / "evidence.json"
    shutil.copy(log.folder / "checkpoint", old)
    other = rewritten(log, tmp_path / "other", ["ONE"], ["two"], ["three"], ["four"])
    other.sign()
    assert verify(other.folder)[0] == 0
    code, said = verify(other.folder, "--from", old, "--evidence", evidence)
    assert code == 6
    assert old.read_text().splitlines()[2] in said
    assert (other.folder / "checkpoint").read_text().splitlines()[2] in said
    shutil.rmtree(other.folder)
    code, said = verify("--evidence", evidence, "--key", log.ledger.vkey.text())
    assert code == 6
    assert "two histories of mesh.local/ledger/1 are signed, by keys that were given" in said
    code, said = verify("--evidence", evidence, "--key", log.router.vkey.text())
    assert code == 1
    assert "NOTE_UNPROVEN" in said


@pytest.mark.parametrize("more", [0, 3])
def test_two_copies_of_two_histories_are_status_6_whichever_is_longer(
    log: WrittenLog, verify: Verify, tmp_path: Path, more: int
) -> None:
    other = rewritten(log, tmp_path / "other", ["ONE"], ["two"], *[["more"]] * more)
    other.sign()
    for at, (one, two) in enumerate([(log.folder, other.folder), (other.folder, log.folder)]):
        evidence = tmp_path / f"evidence-{at}.json"
        code, said = verify(one, "--against", two, "--evidence", evidence)
        assert code == 6, said
        assert "the log signed another history" in said
        assert verify("--evidence", evidence, "--key", log.ledger.vkey.text())[0] == 6


def test_longer_copy_of_one_history_is_no_second_one(log: WrittenLog, verify: Verify, tmp_path: Path) -> None:
    older = shutil.copytree(log.folder, tmp_path / "older")
    log.append([log.router.receipt()])
    log.sign()
    for one, two in ((log.folder, older), (older, log.folder)):
        code, said = verify(one, "--against", two)
        assert code == 0
        assert "is the same log, signed up to" in said


@pytest.mark.parametrize("more", [0, 3])
def test_another_history_without_its_heads_is_never_the_same_log(
    log: WrittenLog, verify: Verify, tmp_path: Path, more: int
) -> None:
    """Whoever rewrote it took the signed heads away; whether it is longer or shorter than the copy that has them."""
    other = rewritten(log, tmp_path / "other", ["ONE"], *[["more"]] * more)
    (other.folder / "wm").unlink()
    code, said = verify(other.folder, "--against", log.folder)
    assert (code, "the log signed another history up to 4 there, and none that holds here" in said) == (4, True)


def test_copy_without_its_heads_is_compared_by_its_tree(log: WrittenLog, verify: Verify, tmp_path: Path) -> None:
    older = shutil.copytree(log.folder, tmp_path / "older")
    for name in ("wm", "checkpoint", "checkpoints.log"):
        (older / name).unlink()
    for _ in range(2):
        code, said = verify(older, "--against", log.folder)
        assert (code, "is the same log, signed up to" in said, "no signed head holds" in said) == (5, True, True)
        log.append([log.router.receipt()])
        log.sign()


def test_copy_that_is_damaged_itself_is_said_to_be(log: WrittenLog, verify: Verify, tmp_path: Path) -> None:
    other = shutil.copytree(log.folder, tmp_path / "other")
    with (other / "checkpoints.log").open("ab") as heads:
        heads.write(b"TMCK")
    code, said = verify(log.folder, "--against", other)
    assert (code, "is itself torn: verify it, too" in said) == (0, True)


def test_another_history_that_the_log_did_not_sign_proves_nothing_against_it(
    log: WrittenLog, verify: Verify, tmp_path: Path
) -> None:
    stranger = WrittenLog(tmp_path / "stranger", geometry=log.geometry).create()
    stranger.append([stranger.ledger.introduce()], [stranger.ledger.start()])
    stranger.sign()
    code, said = verify(log.folder, "--against", stranger.folder)
    assert code == 5
    assert "it has another history, but no known key" in said


def test_withheld_number_is_status_7(log: WrittenLog, verify: Verify) -> None:
    log.router.receipt("withheld")
    log.append([log.router.receipt()])
    assert verify(log.folder)[0] == 0
    log.seconds = 61
    log.append([log.ledger.start()])
    code, said = verify(log.folder)
    assert code == 7
    assert "number 5 missing for 61.0 s" in said


def test_log_is_verified_where_it_is_served(log: WrittenLog, verify: Verify, tmp_path: Path) -> None:
    leaves = leaves_of(log)[:4]
    files = tiles_of((log.folder / "checkpoint").read_bytes(), leaves)
    key = ["--key", log.ledger.vkey.text()]
    with serving_files(files, tmp_path) as (url, ca):
        for depth in ([], ["--tiles"], ["--sample", 3]):
            code, said = verify(url, "--ca", ca, *key, *depth)
            assert (code, "SOUND: 4 entries" in said) == (0, True)
        assert verify(log.folder, "--against", url, "--ca", ca, *key)[0] == 0
        assert verify(url, "--ca", ca)[0] == 5
        files["tile/0/000.p/4"] = files["tile/0/000.p/4"][::-1]
        assert verify(url, "--ca", ca, *key)[0] == 3
        files["tile/0/000.p/4"] = b"x" * (1 << 25)
        code, said = verify(url, "--ca", ca, *key)
        assert (code, "LOG_NOT_SERVED" in said) == (1, True)
        code, said = verify(url, *key)
        assert (code, "LOG_NOT_SERVED" in said) == (1, True)


def test_second_history_that_is_served_is_status_6(log: WrittenLog, verify: Verify, tmp_path: Path) -> None:
    other = rewritten(log, tmp_path / "other", ["ONE"], ["two"], ["three"])
    files = tiles_of(other.sign(), leaves_of(other))
    evidence = tmp_path / "evidence.json"
    with serving_files(files, tmp_path) as (url, ca):
        key = ["--key", log.ledger.vkey.text()]
        code, _ = verify(log.folder, "--against", url, "--ca", ca, "--evidence", evidence, *key)
        assert code == 6
        assert verify(url, "--ca", ca, *key, "--from", log.folder / "checkpoint")[0] == 6
    assert verify("--evidence", evidence, *key)[0] == 6


def test_what_cannot_be_read_is_status_1(log: WrittenLog, verify: Verify, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    for arguments in (
        [tmp_path / "nothing"],
        [tmp_path / "absent"],
        ["http://127.0.0.1/log"],
        [log.folder, "--from", tmp_path / "absent"],
        [log.folder, "--from", log.folder / "log.json"],
        [log.folder, "--key", "nonsense"],
        [log.folder, "--tag-key", log.folder / "log.json"],
        [log.folder, "--evidence", log.folder / "log.json"],
        ["--evidence", log.folder / "log.json"],
        [],
    ):
        code, said = verify(*arguments)
        assert (code, said.count("\n")) == (1, 1), said


def _tag_key(folder: Path) -> Path:
    path = folder / "tenant.tag-key"
    path.write_text(TAG_KEY.hex() + "\n")
    return path


def test_fsck_gives_the_ledgers_own_verdict(log: WrittenLog, capfd: pytest.CaptureFixture[str]) -> None:
    log.keep_keyring()
    assert main(["ledger", "fsck", str(log.folder), "--repair-derived"]) == 0
    assert "clean: 5 entries in 1 segments, at least 5 promised" in capfd.readouterr().out
    flip(log, SEGMENT, (log.folder / SEGMENT).stat().st_size - 1)
    assert main(["ledger", "fsck", str(log.folder), "--json"]) == 2
    assert json.loads(capfd.readouterr().out)["verdict"] == "torn"
    flip(log, SEGMENT, _HEADER + 170)
    assert main(["ledger", "fsck", str(log.folder)]) == 3
    assert main(["ledger", "fsck", "--state", str(log.folder.parent)]) == 1
