"""`teemesh ledger tail` over real mutual TLS: what it prints, what it remembers, and what it does not let pass."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.console import Console

from libs.transparency.leaf import Kind
from services.cli.ledger import command as ledger
from services.cli.ledger.command import Tail, read_ledger_access
from services.cli.ledger.tail_state import ChainBroken, TailStateDamaged, keep_tail_state, load_tail_state
from tests.fakes.ledger_log import TRUST_DOMAIN, LedgerLog, serving_log
from tests.fakes.pki import ThrowawayCa


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[LedgerLog]:
    """Three entries, served to the operator that mesh.json in the test's folder names."""
    served, ca = LedgerLog(), ThrowawayCa()
    served.append(Kind.START, {"epoch": 1})
    served.append(Kind.POLICY, {"version": 1, "digest": "ab" * 32})
    served.append(Kind.RECEIPT, {"receipt_id": "rcpt-1"})
    key, certificate = ca.leaf(f"spiffe://{TRUST_DOMAIN}/operator/me", f"operator.{TRUST_DOMAIN}")
    for name, data in (("ca.pem", ca.pem), ("operator.pem", certificate), ("operator.key", key)):
        (tmp_path / name).write_bytes(data)
    async with serving_log(served, ca):
        described = {
            "ledger_grpc": served.target,
            "trust_domain": TRUST_DOMAIN,
            "mesh_ca": "ca.pem",
            "operator_cert": "operator.pem",
            "operator_key": "operator.key",
        }
        (tmp_path / "mesh.json").write_text(json.dumps(described))
        yield served


async def _tail(state: Path, *, from_index: int | None = None, as_json: bool = False) -> list[str]:
    text = io.StringIO()
    tail = Tail(read_ledger_access(state), Console(file=text, width=80), from_index=from_index, as_json=as_json)
    await tail.read(follow=False)
    return text.getvalue().splitlines()


async def test_each_entry_is_one_line_and_public_ones_say_what_they_are(log: LedgerLog, tmp_path: Path) -> None:
    start, policy, receipt = await _tail(tmp_path)

    assert start.split()[:2] == ["0", "start"]
    assert start.endswith("epoch=1")
    assert policy.split()[:2] == ["1", "policy"]
    assert policy.endswith(f"digest={'ab' * 12}... version=1")
    assert receipt.split()[:2] == ["2", "receipt"]
    assert receipt.endswith("(sealed)")


async def test_where_one_member_of_the_log_is_away_another_is_read(log: LedgerLog, tmp_path: Path) -> None:
    described = json.loads((tmp_path / "mesh.json").read_text())
    described |= {"ledger_grpc": "127.0.0.1:9", "ledger_others": [log.target]}
    (tmp_path / "mesh.json").write_text(json.dumps(described))
    notice, *entries = await _tail(tmp_path)
    assert notice.startswith("# no connection to the ledger")
    assert len(entries) == 3


async def test_a_log_is_short_only_when_every_member_says_so(log: LedgerLog, tmp_path: Path) -> None:
    """One member may not know of all that another has shown."""
    await _tail(tmp_path)
    state = load_tail_state(tmp_path / "ledger-tail.json", read_ledger_access(tmp_path).origin)
    assert state is not None
    kept = dataclasses.replace(state, next_index=state.next_index + 1, peaks=None)
    keep_tail_state(tmp_path / "ledger-tail.json", kept)
    described = json.loads((tmp_path / "mesh.json").read_text())
    (tmp_path / "mesh.json").write_text(json.dumps(described | {"ledger_others": [log.target, log.target]}))
    with pytest.raises(ChainBroken):
        await _tail(tmp_path, from_index=0)
    assert len(log.requests) == 4


async def test_json_has_one_object_a_line(log: LedgerLog, tmp_path: Path) -> None:
    entries = [json.loads(line) for line in await _tail(tmp_path, as_json=True)]

    assert [(entry["index"], entry["kind"]) for entry in entries] == [(0, "start"), (1, "policy"), (2, "receipt")]
    assert entries[2]["summary"] is None


async def test_a_second_reading_goes_on_where_the_first_stopped(log: LedgerLog, tmp_path: Path) -> None:
    await _tail(tmp_path)
    log.append(Kind.ADMISSION, {"spiffe_id": "spiffe://mesh.local/node/a"})
    lines = await _tail(tmp_path)

    assert len(lines) == 1
    assert "admission" in lines[0]
    assert log.requests[1].token


async def test_a_reading_can_begin_in_the_middle(log: LedgerLog, tmp_path: Path) -> None:
    assert len(await _tail(tmp_path, from_index=1)) == 2


async def test_a_body_that_is_not_committed_to_is_said_to_be_damaged(log: LedgerLog, tmp_path: Path) -> None:
    log.entries[1].body = log.entries[1].body.replace(b'"version":1', b'"version":2')

    assert "DAMAGED" in (await _tail(tmp_path))[1]


async def test_text_in_an_entry_cannot_steer_the_terminal(log: LedgerLog, tmp_path: Path) -> None:
    log.append(Kind.ADMISSION, {"name": "\x1b[2J\r"})

    assert "\\u001b[2J\\r" in (await _tail(tmp_path))[3]


async def test_a_head_that_does_not_follow_stops_the_reading(log: LedgerLog, tmp_path: Path) -> None:
    log.wrong_head = True
    with pytest.raises(ChainBroken):
        await _tail(tmp_path)

    assert not (tmp_path / "ledger-tail.json").exists()


async def test_a_left_out_entry_stops_the_reading(log: LedgerLog, tmp_path: Path) -> None:
    del log.entries[1]
    with pytest.raises(ChainBroken, match="entry 1 was expected"):
        await _tail(tmp_path)


async def test_a_rewritten_log_is_noticed_even_from_its_beginning(log: LedgerLog, tmp_path: Path) -> None:
    await _tail(tmp_path)
    log.entries.clear()
    for number in range(4):
        log.append(Kind.POLICY, {"version": number})
    with pytest.raises(ChainBroken, match="another history"):
        await _tail(tmp_path, from_index=0)


async def test_a_log_that_was_rolled_back_is_noticed_even_from_its_beginning(log: LedgerLog, tmp_path: Path) -> None:
    await _tail(tmp_path)
    log.entries.pop()
    with pytest.raises(ChainBroken, match="ends before entry 2"):
        await _tail(tmp_path, from_index=0)


async def test_a_divergence_is_said_and_has_its_own_exit_status(
    log: LedgerLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await _tail(tmp_path)
    log.entries.pop()
    parser = argparse.ArgumentParser()
    ledger.add_parser(parser.add_subparsers())
    args = parser.parse_args(["ledger", "tail", "--state", str(tmp_path)])

    assert await asyncio.to_thread(args.run, args) == ledger.DIVERGED
    assert "THE LOG DIVERGED" in capsys.readouterr().err


async def test_following_reconnects_and_repeats_nothing(log: LedgerLog, tmp_path: Path) -> None:
    log.failures = 2
    text = io.StringIO()
    tail = Tail(read_ledger_access(tmp_path), Console(file=text), from_index=None, as_json=True, retry_seconds=0.01)
    reading = asyncio.create_task(tail.read(follow=True))
    async with asyncio.timeout(30):
        await log.caught_up.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    lines = [json.loads(line) for line in text.getvalue().splitlines()]
    assert [line["index"] for line in lines if "index" in line] == [0, 1, 2]
    assert len([line for line in lines if "notice" in line]) == 2


async def test_a_damaged_memory_is_not_taken_for_a_fresh_start(log: LedgerLog, tmp_path: Path) -> None:
    (tmp_path / "ledger-tail.json").write_bytes(b'{"v":1}')
    with pytest.raises(TailStateDamaged):
        await _tail(tmp_path)
