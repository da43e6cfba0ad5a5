"""Responsible for what verifying a log costs: `teemesh ledger verify`'s reading, beside hashing the same bytes once."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from libs.audit.log.findings import Status
from libs.audit.log.reading import Depth, Question, read_log
from libs.transparency.leaf import Kind
from services.cli.ledger.files import LogFolder
from services.ledger.intake.sequencer import Candidate
from services.ledger.storage.segments import Geometry
from tests.bench.report import Row
from tests.bench.samples import Action, in_pairs, percentile
from tests.fakes.written_log import VAULT, WrittenLog

ENTRIES = 65_536
_BODY_BYTES = 1024
_GROUP = 256
_PAIRS = 10
_CHUNK = 1 << 20


def written(folder: Path) -> LogFolder:
    """Return a log of one segment, most of it receipts of about a kilobyte: sealed bytes are random to a reader."""
    log = WrittenLog(folder, geometry=Geometry()).create()
    log.append([log.ledger.introduce()], [log.router.introduce()])
    numbers = range(2, ENTRIES)
    groups = [numbers[at : at + _GROUP] for at in range(0, len(numbers), _GROUP)]
    log.append(*([_receipt(log.router.id, number) for number in group] for group in groups))
    log.sign()
    return LogFolder(folder)


async def measure(folder: Path) -> tuple[Sequence[Row], Sequence[str]]:
    """Return rows whose unit is one whole reading, and what they come to for an entry."""
    source = await asyncio.to_thread(written, folder / "log")
    rows, notes = [], []
    for depth, name in ((Depth.FULL, "verify a log, every byte"), (Depth.TREE, "verify a log, the tree alone")):
        spent: list[float] = []
        pairs = await in_pairs(_hashing(source), _reading(source, depth, spent), pairs=_PAIRS, in_a_row=1)
        rows.append(Row(f"{name} ({ENTRIES} entries)", pairs.base, pairs.ours))
        rates = (
            f"{ENTRIES / pairs.ours.p50:,.0f} entries/s, {ENTRIES / percentile(spent, 50):,.0f} in a second of one core"
        )
        notes.append(f"{name}: {rates}; median ratio {pairs.median_ratio:.2f} of hashing all segments once (SHA-256)")
    return rows, [*notes, "goal of verifying: at least 150,000 entries/s, every byte, on one core"]


def _reading(source: LogFolder, depth: Depth, spent: list[float]) -> Action:
    """`spent` gets the processor's seconds: a reading has one thread, and others may want the machine."""

    async def act() -> None:
        began = time.process_time()
        reading = read_log(source, Question(depth=depth))
        spent.append(time.process_time() - began)
        if (reading.findings.worst, reading.size) != (Status.SOUND, ENTRIES):
            raise RuntimeError(f"the log is not sound: {reading.findings.wrong}")

    return act


def _hashing(source: LogFolder) -> Action:
    async def act() -> None:
        for name in source.segments():
            content = sha256()
            with source.open_segment(name) as file:
                while chunk := file.read(_CHUNK):
                    content.update(chunk)
            content.digest()

    return act


def _receipt(issuer: bytes, number: int) -> Candidate:
    commitment, body = secrets.token_bytes(32), secrets.token_bytes(_BODY_BYTES)
    return Candidate(Kind.RECEIPT, issuer, number, commitment, VAULT.epoch, VAULT.vault_id, body)
