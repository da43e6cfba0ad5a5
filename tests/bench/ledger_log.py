"""Responsible for what a long log costs: memory while it grows, its next start, proofs, and reading it out.

Run by itself it makes a log without a mesh around it: `python -m tests.bench.ledger_log FOLDER --entries 10000000`.
Bodies are small, so that it is the number of entries that is measured; the commit path has its own, of receipts' size.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from teemesh.ledger.v1 import ledger_pb2

from libs.transparency.leaf import Kind
from libs.transparency.merkle import inclusion_path, verify_inclusion
from services.ledger import frames
from services.ledger.description import LogDescription
from services.ledger.sequencer import Candidate, Sequencer
from services.ledger.store import LogStore
from services.ledger.wire import wire_entry

_KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
_INDEX_KEY = b"\x08" * 32
_SOURCE = b"\x51" * 16
_TENANTS = 200
_ISSUERS = 500
_GROUP = 4096
_COMMIT_GROUP = 256
_RECEIPT_BYTES = 1100
_SMALL_BYTES = 120


def open_log(folder: Path) -> LogStore:
    return LogStore(folder, sign=_KEY.sign, clock=time.time_ns, index_key=_INDEX_KEY)


def make_log(folder: Path) -> None:
    LogStore.create(folder, LogDescription("bench.local/ledger/1", "LEDGER_1", b"\x01" * 32, (b"\x02" * 32,), 1))


def tag(vault_id: bytes, vault_seq: int) -> bytes:
    return sha256(vault_id + vault_seq.to_bytes(8, "big")).digest()[:16]


class Entries:
    """New entries without end, of many issuers and tenants."""

    def __init__(self, body_bytes: int) -> None:
        self._body = os.urandom(body_bytes)
        self._issuers = [os.urandom(32) for _ in range(_ISSUERS)]
        self._vaults = [os.urandom(16) for _ in range(_TENANTS)]
        self._numbers = [0] * _ISSUERS
        self._chance = random.Random(1)  # noqa: S311 - which entries, not a secret

    def take(self, count: int) -> list[Candidate]:
        """Return some, as they come: several of one issuer after each other."""
        found: list[Candidate] = []
        while len(found) < count:
            which = self._chance.randrange(_ISSUERS)
            for _ in range(min(64, count - len(found))):
                self._numbers[which] += 1
                vault = self._vaults[self._chance.randrange(_TENANTS)]
                found.append(
                    Candidate(
                        Kind.RECEIPT,
                        self._issuers[which],
                        self._numbers[which],
                        os.urandom(32),
                        600,
                        vault,
                        self._body,
                    )
                )
        return found


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def grow(folder: Path, count: int) -> Iterator[dict[str, float]]:
    """Make a log of so many entries and stop it cleanly; yield what it took, each million."""
    make_log(folder)
    entries = Entries(_SMALL_BYTES)
    with open_log(folder) as store:
        writer = Sequencer(store, epoch=1, tag=tag, clock=time.time_ns)
        began, step = time.monotonic(), max(count // 10, _GROUP)
        while store.head.size < count:
            position = store.head.source_high + 1
            writer.append(entries.take(min(_GROUP, count - store.head.size)), _SOURCE, position, position)
            if store.head.size % step < _GROUP:
                yield {
                    "entries": store.head.size,
                    "resident_mb": resident_mb(),
                    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
                    "seconds": time.monotonic() - began,
                }


def start(folder: Path) -> dict[str, float]:
    began = time.perf_counter()
    with open_log(folder) as store:
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "segments_read": store.report.segments_read, "resident_mb": resident_mb()}


def proofs(folder: Path, count: int = 2000) -> dict[str, float]:
    """Milliseconds of inclusion proofs of entries anywhere in the log, each verified before it counts."""
    chance = random.Random(2)  # noqa: S311
    with open_log(folder) as store:
        size, root, tree = store.head.size, store.head.root(), store.index.tree
        taken = []
        for _ in range(count):
            index = chance.randrange(size)
            began = time.perf_counter()
            path, leaf = inclusion_path(tree, index, size), tree.leaf(index)
            verify_inclusion(leaf, index, size, path, root)
            taken.append((time.perf_counter() - began) * 1000)
    return {"p50_ms": statistics.median(taken), "p99_ms": sorted(taken)[count * 99 // 100]}


def reading(folder: Path, count: int = 400_000) -> dict[str, float]:
    """Entries a second: verified and in memory; the same as messages on the wire; and the bytes alone."""
    with open_log(folder) as store:
        count = min(count, store.head.size)
        began = time.perf_counter()
        read = sum(1 for _ in store.reader.entries(0, count))
        verified = read / (time.perf_counter() - began)
        began = time.perf_counter()
        batch: list[ledger_pb2.LoggedEntry] = []
        for stored in store.reader.entries(0, count):
            batch.append(wire_entry(stored, None))
            if len(batch) == 256:
                ledger_pb2.TailResponse(entries=batch).SerializeToString()
                batch.clear()
        wire = count / (time.perf_counter() - began)
        first = store.index.files[0] if store.index.files else None
        raw = 0.0
        if first is not None:
            path = folder / "seg" / f"{first.first:020d}.seg"
            began = time.perf_counter()
            sha256(path.read_bytes()).digest()
            raw = (first.end - first.first) / (time.perf_counter() - began)
    return {"verified_per_second": verified, "wire_per_second": wire, "bytes_hashed_per_second": raw}


def commit_ratio(folder: Path, pairs: int = 10, frames_each: int = 64) -> dict[str, float]:
    """The commit path beside writing the same bytes and syncing them: the median of pairs in turns."""
    make_log(folder)
    entries = Entries(_RECEIPT_BYTES)
    size = frames.HEADER_SIZE + _COMMIT_GROUP * (frames.ROW_SIZE + _RECEIPT_BYTES) + frames.TRAILER_SIZE
    data, ratios, rates = os.urandom(size), [], []
    bare = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open_log(folder) as store:
        writer = Sequencer(store, epoch=1, tag=tag, clock=time.time_ns)
        at = 0
        for _ in range(pairs):
            groups = [entries.take(_COMMIT_GROUP) for _ in range(frames_each)]
            began = time.perf_counter()
            for group in groups:
                position = store.head.source_high + 1
                writer.append(group, _SOURCE, position, position)
            ours = time.perf_counter() - began
            began = time.perf_counter()
            for _ in range(frames_each):
                os.pwrite(bare, data, at)
                os.fdatasync(bare)
                at += size
            ratios.append((time.perf_counter() - began) / ours)
            rates.append(frames_each * _COMMIT_GROUP / ours)
    os.close(bare)
    return {"ratio": statistics.median(ratios), "per_second": statistics.median(rates)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.ledger_log", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--entries", type=int, default=1_000_000)
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    for at in grow(arguments.folder / "log", arguments.entries):
        console.print(json.dumps(at))
    steps: dict[str, Callable[[Path], dict[str, float]]] = {"start": start, "proofs": proofs, "reading": reading}
    for name, step in steps.items():
        console.print(name, json.dumps(step(arguments.folder / "log")))
    console.print("commit", json.dumps(commit_ratio(arguments.folder / "commits")))


if __name__ == "__main__":
    main()
