"""A small log, and entries to put into it."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.transparency import checkpoint, cose_receipt
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.leaf import Kind
from services.ledger.intake.sequencer import Candidate, Sequencer
from services.ledger.storage import derived
from services.ledger.storage.description import LogDescription
from services.ledger.storage.index import Index
from services.ledger.storage.recovery import Examined, Floor, examine
from services.ledger.storage.segments import Geometry
from services.ledger.storage.store import LogStore
from tests.fakes.joined_fixtures import kms, machine, mesh

__all__ = ["kms", "machine", "mesh"]

ORIGIN = "mesh.local/ledger/1"
SMALL = Geometry(block_leaves=4, segment_leaves=4, segment_bytes=1 << 30, zeros_ahead=300)
SOURCE = b"\x51" * 16
KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
INDEX_KEY = b"\x08" * 32
DESCRIPTION = LogDescription(ORIGIN, "LEDGER_1", b"\x01" * 32, (b"\x02" * 32, b"\x03" * 32), 2)


def sign_tree(tree: Checkpoint) -> bytes:
    return checkpoint.sign(tree, KEY)


def sign_receipts(tree: Checkpoint) -> bytes:
    return cose_receipt.sign(tree, KEY)


def candidate(
    number: int, *, body: bytes | None = None, vault: bytes = bytes(16), kind: Kind = Kind.POLICY
) -> Candidate:
    content = b"salt and entry %d" % number if body is None else body
    return Candidate(kind, b"\x11" * 32, number, sha256(content).digest(), 0, vault, content)


def tag(vault_id: bytes, vault_seq: int) -> bytes:
    return sha256(vault_id + vault_seq.to_bytes(8, "big")).digest()[:16]


def open_store(directory: Path, geometry: Geometry = SMALL) -> LogStore:
    return LogStore(directory, sign=KEY.sign, clock=lambda: 5_000_000_000, index_key=INDEX_KEY, geometry=geometry)


def examined(directory: Path) -> Examined:
    """What a start makes of the log, sealed segments taken by their derived files."""
    return examine(directory, ORIGIN, SMALL, index=Index(directory / derived.FOLDER, INDEX_KEY))


def read_whole(directory: Path, geometry: Geometry = SMALL, promised: Sequence[Floor] = ()) -> Examined:
    """What the segments say, whatever is derived of them."""
    with TemporaryDirectory() as elsewhere:
        return examine(directory, ORIGIN, geometry, Index(Path(elsewhere), INDEX_KEY), promised)


def sequencer(store: LogStore) -> Sequencer:
    return Sequencer(store, epoch=store.last_epoch + 1, tag=tag, clock=lambda: 7_000_000_000)


@pytest.fixture
def empty_log(tmp_path: Path) -> Path:
    directory = tmp_path / "log"
    LogStore.create(directory, DESCRIPTION)
    return directory


@pytest.fixture
def two_segments(empty_log: Path) -> Path:
    """Six entries in four frames: two frames in a sealed segment, two in the active one."""
    fill(empty_log, [[1], [2, 3, 4], [5], [6]])
    return empty_log


def fill(directory: Path, frames: list[list[int]]) -> None:
    """Append entries by number, one frame and one stream message each."""
    with open_store(directory) as store:
        writer = sequencer(store)
        for numbers in frames:
            position = store.head.source_high + 1
            writer.append([candidate(number) for number in numbers], SOURCE, position, position)
