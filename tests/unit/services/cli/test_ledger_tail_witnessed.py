"""`teemesh ledger tail --witness`: all that was read is in a tree that witnesses cosigned, or the reading says no."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from libs.transparency.cosignature import QuorumNotReached, cosigner_key
from libs.transparency.leaf import Kind
from libs.transparency.note import NoteSignatureInvalid, VerifierKey
from libs.transparency.quorum import Quorum
from services.cli.__main__ import main
from services.cli.ledger.command import Tail, read_ledger_access
from services.cli.ledger.read_tree import TreeUnknown, witnessed_head
from services.cli.ledger.tail_state import ChainBroken, TailStateDamaged, load_tail_state
from tests.fakes.ledger_log import ORIGIN, WITNESS, LedgerLog

from .test_ledger_tail import log

__all__ = ["log"]


def key_of(log: LedgerLog) -> VerifierKey:
    return VerifierKey(ORIGIN, log.key.public_key().public_bytes_raw())


def quorum_of(log: LedgerLog) -> Quorum:
    return Quorum((cosigner_key(WITNESS, log.witness),), 1)


async def read(log: LedgerLog, state: Path, *, from_index: int | None = None) -> str:
    """Read to the end and have it witnessed; return what was said of that."""
    text = io.StringIO()
    tail = Tail(read_ledger_access(state), Console(file=text, width=200), from_index=from_index, as_json=False)
    await tail.read(follow=False)
    await tail.verify_witnessed(key_of(log), quorum_of(log))
    return text.getvalue().splitlines()[-1]


async def test_reading_is_witnessed_and_the_next_one_goes_on_from_it(log: LedgerLog, tmp_path: Path) -> None:
    log.witnessed = [3]
    assert await read(log, tmp_path) == f"# witnessed up to 3, by {WITNESS}"
    for number in range(4):
        log.append(Kind.START, {"epoch": number})
    log.witnessed = [7]
    assert await read(log, tmp_path) == f"# witnessed up to 7, by {WITNESS}"
    assert [bool(request.token) for request in log.requests] == [False, True]


async def test_larger_tree_is_read_to_its_end(log: LedgerLog, tmp_path: Path) -> None:
    tail = Tail(read_ledger_access(tmp_path), Console(file=io.StringIO()), from_index=None, as_json=False)
    await tail.read(follow=False)
    for number in range(3):
        log.append(Kind.START, {"epoch": number})
    log.witnessed = [5]
    await tail.verify_witnessed(key_of(log), quorum_of(log))
    assert tail.chain.next_index == 6
    log.entries.pop()
    log.append(Kind.START, {"epoch": 99})
    log.witnessed = [6]
    with pytest.raises(ChainBroken):
        await tail.verify_witnessed(key_of(log), quorum_of(log))


async def test_entries_that_were_witnessed_and_are_not_shown_are_missed(log: LedgerLog, tmp_path: Path) -> None:
    log.hidden, log.witnessed = 1, [3]
    with pytest.raises(ChainBroken, match="ends before the 3 entries"):
        await read(log, tmp_path)


async def test_entries_that_are_not_those_that_were_witnessed_are_another_history(
    log: LedgerLog, tmp_path: Path
) -> None:
    """The chain that was sent agrees with itself, and the last entry is the witnessed one."""
    true = log.entries[1]
    log.append(Kind.START, {"epoch": 7})
    log.entries[1] = log.entries.pop()
    log.entries[1].index = 1
    tail = Tail(read_ledger_access(tmp_path), Console(file=io.StringIO()), from_index=None, as_json=False)
    await tail.read(follow=False)
    log.entries[1] = true
    log.witnessed = [3]
    with pytest.raises(ChainBroken, match="not those that witnesses have cosigned"):
        await tail.verify_witnessed(key_of(log), quorum_of(log))


async def test_cosignature_that_is_on_its_way_is_waited_for(log: LedgerLog, tmp_path: Path) -> None:
    log.witnessed = [0, 0, 3]
    service = read_ledger_access(tmp_path).service
    proven = await witnessed_head(service, 2, key_of(log), quorum_of(log), between=0.01)
    assert (proven.checkpoint.size, proven.witnesses) == (3, (WITNESS,))


async def test_reading_that_nobody_cosigns_is_refused(log: LedgerLog, tmp_path: Path) -> None:
    service = read_ledger_access(tmp_path).service
    with pytest.raises(QuorumNotReached):
        await witnessed_head(service, 2, key_of(log), quorum_of(log), settle=0.0)
    log.witnessed = [3]
    with pytest.raises(NoteSignatureInvalid):
        await witnessed_head(service, 2, key_of(LedgerLog()), quorum_of(log), settle=0.0)


async def test_reading_from_the_middle_knows_no_tree(log: LedgerLog, tmp_path: Path) -> None:
    log.witnessed = [3]
    with pytest.raises(TreeUnknown):
        await read(log, tmp_path, from_index=1)
    assert await read(log, tmp_path, from_index=0) == f"# witnessed up to 3, by {WITNESS}"


async def test_state_of_before_is_read_and_damaged_subtrees_are_not(log: LedgerLog, tmp_path: Path) -> None:
    log.witnessed = [3, 3]
    await read(log, tmp_path)
    path = tmp_path / "ledger-tail.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "peaks": value["peaks"][:1]}))
    with pytest.raises(TailStateDamaged):
        load_tail_state(path, ORIGIN)
    del value["peaks"]
    path.write_text(json.dumps(value))
    assert load_tail_state(path, ORIGIN) is not None
    with pytest.raises(TreeUnknown):
        await read(log, tmp_path)


async def test_command_demands_what_its_options_say(
    log: LedgerLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = json.loads((tmp_path / "mesh.json").read_text())
    (tmp_path / "mesh.json").write_text(json.dumps({**described, "ledger_vkey": key_of(log).text()}))
    witness = ["--witness", quorum_of(log).keys[0].text()]
    log.witnessed = [3]
    assert await asyncio.to_thread(main, ["ledger", "tail", "--state", str(tmp_path), *witness]) == 0
    assert f"# witnessed up to 3, by {WITNESS}" in capsys.readouterr().out
    assert await asyncio.to_thread(main, ["ledger", "tail", "--state", str(tmp_path), *witness, "--follow"]) == 1
    assert "INPUT_UNREADABLE" in capsys.readouterr().err
