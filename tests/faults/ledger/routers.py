"""13: a router killed at each of its writes and syncs; and one that gives a number to two entries."""

from __future__ import annotations

import asyncio
import copy
import json
import signal
import sys
import tomllib
from pathlib import Path
from typing import Any

from libs.events.batches import encode_batch
from libs.events.records import open_record, parse_entry
from libs.events.subjects import issuer_subject
from libs.events.vault import PUBLIC_VAULT_ID
from libs.process import tethered
from libs.transparency import leaf
from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind
from tests.faults.ledger.elsewhere import ROOT
from tests.faults.ledger.ground import PATIENCE_SECONDS, Ground, record_of
from tests.faults.ledger.outcome import Batch, Outcome
from tests.faults.ledger_failover import TENANT
from tests.unit.services.ledger.writers import LogWriter

_STEPS, _STRIDE = 40, 17
_LAST_ENTRIES = 3


async def router_killed(ground: Ground, batch: Batch) -> Outcome:
    """Let a router die wherever it writes; what it let go is in the log, once, and nobody says that it did not go."""
    outcome, live = Outcome(), ground.live
    async with live.mesh.guest(live.mesh.tds["router"]) as guest:
        config = _configure(ground, guest)
        finished: dict[str, int] = {}
        for number in batch.rounds:
            chance = batch.chance(number)
            torn = ["--torn"] if chance.random() < 0.5 else []
            step = number * _STRIDE % _STEPS + 1
            status = await _run(config, ["--step", str(step), *torn], finished)
            outcome.require(status == -signal.SIGKILL, f"step {step}: it ended with status {status}")
            outcome.counts["routers killed"] += 1
        status = await _run(config, ["--count", str(_LAST_ENTRIES)], finished)
        outcome.require(status == 0, f"the last router ended with status {status}")
    outcome.counts["responses let go"] += len(finished)
    await _hold(ground, finished, outcome)
    return outcome


async def number_given_twice(ground: Ground, batch: Batch) -> Outcome:
    """Write two entries under one number: the first one stays, and the log says what happened."""
    outcome, live = Outcome(), ground.live
    await ground.commit()  # Nobody says that a message came: what is published before there is a stream is lost.
    for number in batch.rounds:
        writer = LogWriter(live.mesh, live.kms, "router", instance=f"twice-{number}")
        before = await ground.count(Kind.CONFLICT)
        keyset = writer.introduce()
        twin = copy.copy(writer.issuer)
        batches = [
            writer.batch(keyset),
            *(
                encode_batch(
                    issuer.id,
                    2,
                    [issuer.seal(Kind.RECEIPT, {"n": name}, ground.vault).record],
                    writer.issuer.key,
                )
                for name, issuer in (("one", writer.issuer), ("other", twin))
            ),
        ]
        async with ground.stream(ground.router.member) as link:
            client = await link.client(PATIENCE_SECONDS)
            for data in batches:
                await client.publish(issuer_subject(1, writer.issuer.id), data)
            await client.flush()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await ground.count(Kind.CONFLICT) == before:
                await ground.commit()
        logged = [leaf.parse(entry.leaf_data) for entry in await ground.read()]
        same = [each for each in logged if each.issuer == writer.issuer.id and each.issuer_seq == 2]
        outcome.require(len(same) == 1, f"round {number}: {len(same)} entries have the number")
        outcome.counts["numbers given twice"] += 1
        ground.equivocators.add(writer.issuer.id)
    return outcome


async def _hold(ground: Ground, finished: dict[str, int], outcome: Outcome) -> None:
    await ground.commit()
    entries = await ground.read()
    amended = {}
    for entry in entries:
        public = leaf.parse(entry.leaf_data)
        if public.kind is Kind.AMENDMENT and entry.vault_id != PUBLIC_VAULT_ID:
            opened = open_record(record_of(entry, public), public.issuer, public.issuer_seq, ground.vault)
            body = parse_entry(opened.canonical).body
            amended[body["entry_id"]] = body["effect"]
    place = {entry_id(public.issuer, public.issuer_seq).hex(): index for index, public in _parsed(entries)}
    for name, index in finished.items():
        outcome.require(place.get(name) == index, f"I1: a response went at {index} and is at {place.get(name)}")
        outcome.require(amended.get(name) != "not_released", f"{name} went, and the log says that it did not")
    outcome.counts["amendments"] += len(amended)


def _parsed(entries: list[Any]) -> list[tuple[int, leaf.Leaf]]:
    return [(entry.index, leaf.parse(entry.leaf_data)) for entry in entries]


def _configure(ground: Ground, guest: Path) -> Path:
    """A configuration that leads where the ledger's own does."""
    live = ground.live
    folder = live.mesh.folder / "dying-router"
    folder.mkdir(exist_ok=True)
    ledger = tomllib.loads((live.mesh.folder / "ledger.toml").read_text())
    own = {
        "instance": "dying",
        "listen": "127.0.0.1:0",
        "state_dir": str(folder / "state"),
        "guest_socket": str(guest),
    }
    events = {**ledger["events"], "outbox": str(folder / "outbox")}
    path = folder / "config.json"
    members = {"member": {**ledger["member"], **own}, "events": events, "ledger": live.target, "tenant": TENANT}
    path.write_text(json.dumps(members))
    return path


async def _run(config: Path, options: list[str], finished: dict[str, int]) -> int:
    """Run one router to its end, and take down which responses it let go."""
    with config.with_name("log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *tethered([sys.executable, "-m", "tests.faults.ledger.router_process", str(config), *options]),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
        async with asyncio.timeout(2 * PATIENCE_SECONDS):
            said, _ = await process.communicate()
    for line in said.decode().splitlines():
        match line.split():
            case ["finished", name, index]:
                finished[name] = int(index)
    assert process.returncode is not None
    return process.returncode
