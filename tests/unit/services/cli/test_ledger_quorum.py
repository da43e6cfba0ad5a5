"""`teemesh ledger verify --witness`: a log is as far witnessed as a quorum of known witnesses cosigned of this tree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.transparency import checkpoint, cosignature
from libs.transparency.checkpoint import Checkpoint
from services.cli.__main__ import main
from services.ledger.storage.records_log import CHECKPOINTS, RecordsLog, read_end
from services.ledger.storage.segments import Geometry
from tests.fakes.served_log import serving_files, tiles_of
from tests.fakes.written_log import WrittenLog

from .test_ledger_verify import SEGMENT, flip, leaves_of

SOUND, DAMAGED, UNPROVEN, DIVERGED = 0, 3, 5, 6
NAMES = ("w1.example", "w2.example", "w3.example")
WITNESSES = {name: Ed25519PrivateKey.from_private_bytes(bytes([7 + at]) * 32) for at, name in enumerate(NAMES)}
Verify = Callable[..., tuple[int, str]]


def demanding(*names: str) -> list[str]:
    keys = [cosignature.cosigner_key(name, WITNESSES[name]).text() for name in names]
    return [word for key in keys for word in ("--witness", key)]


def cosigned(note: bytes, *names: str) -> bytes:
    tree = checkpoint.parse(note)
    lines = [cosignature.cosign(tree, name, WITNESSES[name], 1_700_000_000) for name in names]
    return cosignature.attach(note, lines)


def keep(log: WrittenLog, note: bytes) -> None:
    """Keep a cosigned note as the auditor does."""
    path = log.folder / "checkpoints.log"
    kept = RecordsLog(path, CHECKPOINTS, read_end(path, CHECKPOINTS).end)
    kept.append([note])
    kept.close()
    (log.folder / "checkpoint.witnessed").write_bytes(note)


@pytest.fixture
def log(tmp_path: Path) -> WrittenLog:
    """Four entries, of which the first three are witnessed by two of three, and all are signed."""
    log = WrittenLog(tmp_path / "log", geometry=Geometry(zeros_ahead=100)).create()
    log.append([log.ledger.introduce()], [log.router.introduce(), log.router.receipt("one")])
    keep(log, cosigned(log.sign(), NAMES[0], NAMES[1]))
    log.append([log.router.receipt()])
    log.sign()
    return log


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    def run(*arguments: object) -> tuple[int, str]:
        code = main(["ledger", "verify", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_quorum_is_told_with_how_far_it_went(log: WrittenLog, verify: Verify, tmp_path: Path) -> None:
    code, said = verify(log.folder, *demanding(*NAMES), "--quorum", 2)
    assert (code, "witnessed up to 3 of 4, by w1.example, w2.example" in said) == (SOUND, True)
    assert main(["ledger", "export", str(tmp_path / "bundle"), str(log.folder)]) == 0
    assert verify(tmp_path / "bundle", *demanding(*NAMES), "--quorum", 2)[0] == SOUND
    assert verify(log.folder)[0] == SOUND


@pytest.mark.parametrize("options", [[*demanding(*NAMES)], [*demanding(NAMES[0], NAMES[2])], [*demanding(NAMES[2])]])
def test_fewer_cosignatures_than_are_demanded_leave_a_log_unproven(
    log: WrittenLog, verify: Verify, options: list[str]
) -> None:
    code, said = verify(log.folder, *options)
    assert (code, "QUORUM_NOT_REACHED" in said) == (UNPROVEN, True)


def test_more_witnesses_than_are_named_cannot_be_demanded(log: WrittenLog, verify: Verify) -> None:
    code, said = verify(log.folder, *demanding(NAMES[0]), "--quorum", 2)
    assert (code, "WITNESSES_TOO_FEW" in said) == (1, True)


def test_log_that_shows_no_witnessed_head_is_unproven(log: WrittenLog, verify: Verify) -> None:
    (log.folder / "checkpoint.witnessed").unlink()
    code, said = verify(log.folder, *demanding(NAMES[0]))
    assert (code, "NOT_WITNESSED" in said) == (UNPROVEN, True)


def test_witnessed_head_of_another_tree_counts_for_nothing(log: WrittenLog, verify: Verify) -> None:
    other = Checkpoint(log.ledger.origin, 3, b"\x0a" * 32)
    note = cosigned(checkpoint.sign(other, Ed25519PrivateKey.generate()), *NAMES)
    (log.folder / "checkpoint.witnessed").write_bytes(note)
    code, said = verify(log.folder, *demanding(*NAMES))
    assert code != SOUND
    assert "NOTE_UNPROVEN" in said
    keep(log, cosigned(checkpoint.sign(other, log.ledger.checkpoint_key), *NAMES))
    assert verify(log.folder, *demanding(*NAMES))[0] == DIVERGED


def test_tree_that_damage_keeps_from_being_read_is_not_called_witnessed(log: WrittenLog, verify: Verify) -> None:
    second = (log.folder / SEGMENT).read_bytes().index(b"TMF1", 4097)
    flip(log, SEGMENT, second + 200)
    code, said = verify(log.folder, *demanding(*NAMES), "--quorum", 2)
    assert (code, "witnessed up to" in said, "was not found here" in said) == (DAMAGED, False, True)


def test_served_log_is_held_to_the_same(log: WrittenLog, verify: Verify, tmp_path: Path) -> None:
    key = ["--key", log.ledger.vkey.text()]
    files = tiles_of((log.folder / "checkpoint").read_bytes(), leaves_of(log))
    with serving_files(files, tmp_path) as (url, ca):
        asked = [url, "--ca", ca, *key, *demanding(*NAMES), "--quorum", 2]
        assert "NOT_WITNESSED" in verify(*asked)[1]
        files["checkpoint.witnessed"] = (log.folder / "checkpoint.witnessed").read_bytes()
        code, said = verify(*asked)
        assert (code, "witnessed up to 3 of 4" in said) == (SOUND, True)
        code, said = verify(url, "--ca", ca, *key, *demanding(*NAMES))
        assert (code, "QUORUM_NOT_REACHED" in said) == (UNPROVEN, True)
        other = checkpoint.sign(Checkpoint(log.ledger.origin, 3, b"\x0a" * 32), log.ledger.checkpoint_key)
        files["checkpoint.witnessed"] = cosigned(other, *NAMES)
        assert verify(*asked)[0] == DIVERGED
        files["checkpoint.witnessed"] = b"no note"
        assert verify(*asked)[0] == UNPROVEN
