"""Responsible for what a long log costs: memory while it grows, its next start, proofs, reading it out, committing.

No mesh is around it. The log is made in a process of its own, whose memory is then its own too; bodies are small there,
so that it is the number of entries that counts. Commits and reads are of entries of a receipt's size.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from itertools import count
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from libs.transparency.leaf import Kind
from libs.transparency.merkle import inclusion_path, verify_inclusion
from services.ledger.intake.sequencer import Candidate, Sequencer
from services.ledger.storage import frames
from services.ledger.storage.description import LogDescription
from services.ledger.storage.segment_files import SEGMENTS
from services.ledger.storage.segments import HEADER_SIZE
from services.ledger.storage.store import LogStore
from tests.bench import ledger_tail
from tests.bench.report import Row, Section
from tests.bench.samples import Action, in_pairs
from tests.mesh.running import ROOT

_KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
_INDEX_KEY = b"\x08" * 32
_SOURCE = b"\x51" * 16
_ISSUERS, _TENANTS = 500, 200
_FRAME = 256
_LARGE_FRAME = 4096
_RECEIPT_BYTES, _SMALL_BYTES = 1100, 120
_PAIRS = 10


def open_log(folder: Path) -> LogStore:
    return LogStore(folder, sign=_KEY.sign, clock=time.time_ns, index_key=_INDEX_KEY)


def make_log(folder: Path) -> None:
    LogStore.create(folder, LogDescription("bench.local/ledger/1", "LEDGER_1", b"\x01" * 32, (b"\x02" * 32,), 1))


def tag(vault_id: bytes, vault_seq: int) -> bytes:
    return sha256(vault_id + vault_seq.to_bytes(8, "big")).digest()[:16]


def sequencer(store: LogStore) -> Sequencer:
    return Sequencer(store, epoch=store.last_epoch + 1, tag=tag, clock=time.time_ns)


class Entries:
    """New entries without end, of many issuers and tenants."""

    def __init__(self, body_bytes: int) -> None:
        self._body = os.urandom(body_bytes)
        self._issuers = [os.urandom(32) for _ in range(_ISSUERS)]
        self._vaults = [os.urandom(16) for _ in range(_TENANTS)]
        self._numbers = [0] * _ISSUERS
        self._chance = random.Random(1)  # noqa: S311 - which entries, not a secret

    def take(self, wanted: int) -> list[Candidate]:
        """Return some, as they come: several of one issuer after each other."""
        found: list[Candidate] = []
        while len(found) < wanted:
            which = self._chance.randrange(_ISSUERS)
            for _ in range(min(64, wanted - len(found))):
                self._numbers[which] += 1
                vault = self._vaults[self._chance.randrange(_TENANTS)]
                commitment, issuer = os.urandom(32), self._issuers[which]
                found.append(Candidate(Kind.RECEIPT, issuer, self._numbers[which], commitment, 600, vault, self._body))
        return found


def grow(folder: Path, size: int) -> Iterator[dict[str, float]]:
    """Make a log of so many entries and stop it cleanly; yield its process's memory now and then."""
    make_log(folder)
    entries = Entries(_SMALL_BYTES)
    with open_log(folder) as store:
        writer, step, told = sequencer(store), max(size // 10, 1), 0
        while store.head.size < size:
            position = store.head.source_high + 1
            writer.append(entries.take(min(_LARGE_FRAME, size - store.head.size)), _SOURCE, position, position)
            if store.head.size // step > told:
                told = store.head.size // step
                yield {"entries": store.head.size, "resident_mb": _resident_mb(), "peak_mb": _peak_mb()}


async def measure(folder: Path, entries: int) -> Section:
    log, receipts = folder / "log", folder / "receipts"
    notes = [await _grown(log, entries), await asyncio.to_thread(_started, log)]
    make_log(receipts)
    with open_log(receipts) as store:
        with closing(_Bare(folder / "bare")) as bare:
            committed = await in_pairs(bare.write, _commits(store), pairs=_PAIRS, in_a_row=64)
        notes.append(f"commit: median of {_PAIRS} pairs {committed.median_ratio:.2f}x")
        read = await in_pairs(_hashes(store), _reads(store), pairs=_PAIRS, in_a_row=1)
        tailed, tail_notes = await ledger_tail.measure(store, _hashes(store))
        size = store.head.size
    with open_log(log) as store:
        proven = await in_pairs(_hash_nodes, _proofs(store), pairs=_PAIRS, in_a_row=200)
    notes += [f"read: {size * read.ours.rate:,.0f} entries/s verified", *tail_notes]
    return Section(
        f"ledger, a log of {entries:,} entries",
        "the same bytes written and synced; the same bytes hashed; as many hashes as a proof has at most",
        "frames of 256 receipts made durable; those receipts read and verified; a proof made and verified",
        [
            Row("commit of 256", committed.base, committed.ours),
            Row("reading all receipts", read.base, read.ours),
            *tailed,
            Row("inclusion proof", proven.base, proven.ours),
        ],
        notes,
    )


async def _grown(log: Path, entries: int) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.ledger_log", str(log), "--entries", str(entries)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    told = [json.loads(line) for line in said.splitlines()]
    if process.returncode or not told:
        raise RuntimeError("the log could not be made")
    at = ", ".join(f"{each['entries'] / 1e6:.1f}M {each['resident_mb']:.0f}" for each in told)
    return f"memory while it grew, MB: {at}; at most {told[-1]['peak_mb']:.0f}"


def _started(log: Path) -> str:
    began = time.perf_counter()
    with open_log(log) as store:
        seconds = time.perf_counter() - began
        return f"start after a clean stop: {seconds:.2f} s, {store.report.segments_read} segments read"


class _Bare:
    """The bytes of a frame, written and synced with nothing around it."""

    def __init__(self, path: Path) -> None:
        size = frames.HEADER_SIZE + _FRAME * (frames.ROW_SIZE + _RECEIPT_BYTES) + frames.TRAILER_SIZE
        self._data = os.urandom(size)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    async def write(self) -> None:
        os.write(self._descriptor, self._data)
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _commits(store: LogStore) -> Action:
    writer, entries, positions = sequencer(store), Entries(_RECEIPT_BYTES), count(1)
    # Made before they are measured: in a ledger they come from elsewhere.
    ready = iter([entries.take(_FRAME) for _ in range(64 * (_PAIRS + 1))])

    async def commit() -> None:
        position = next(positions)
        writer.append(next(ready), _SOURCE, position, position)

    return commit


def _hashes(store: LogStore) -> Action:
    async def hash_all() -> None:
        for path in sorted((store.directory / SEGMENTS).iterdir()):
            with path.open("rb") as file:
                file.seek(HEADER_SIZE)
                sha256(file.read()).digest()

    return hash_all


def _reads(store: LogStore) -> Action:
    async def read_all() -> None:
        for _ in store.reader.entries(0, store.head.size):
            pass

    return read_all


def _proofs(store: LogStore) -> Action:
    chance, size = random.Random(2), store.head.size  # noqa: S311 - which entries, not a secret
    root, tree = store.head.root(), store.index.tree

    async def prove() -> None:
        index = chance.randrange(size)
        path = inclusion_path(tree, index, size)
        verify_inclusion(tree.leaf(index), index, size, path, root)

    return prove


async def _hash_nodes() -> None:
    """Two subtrees of 256 leaves, of which nothing is kept, and the path itself."""
    node = bytes(65)
    for _ in range(2 * 255 + 24):
        sha256(node).digest()


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.ledger_log", description="Make a log; print its memory.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--entries", type=int, required=True)
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    for told in grow(arguments.folder, arguments.entries):
        console.print(json.dumps(told))


if __name__ == "__main__":
    main()
