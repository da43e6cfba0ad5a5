"""A log that grows, a witness that looks at it, and what the one sends to the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.transparency import checkpoint, merkle
from libs.transparency.add_checkpoint import AddCheckpoint
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.note import VerifierKey
from libs.transparency.tree import Tree
from services.witness.book import Book
from services.witness.cosigning import Cosigning, WatchedLog
from services.witness.keys import WitnessKeys, load_keys
from tests.fakes.joined_fixtures import kms, machine, mesh

__all__ = ["kms", "machine", "mesh"]

ORIGIN = "mesh.local/ledger/1"
NAME = "witness.example/w1"
KEY = Ed25519PrivateKey.from_private_bytes(b"\x06" * 32)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
VKEY = VerifierKey(ORIGIN, KEY.public_key().public_bytes_raw())
NOW = 1_700_000_000


class GrowingLog:
    """A log, and whatever its key holder wants to sign."""

    def __init__(self, origin: str = ORIGIN, salt: bytes = b"") -> None:
        self.origin, self._salt = origin, salt
        self.tree = Tree()

    def grow(self, size: int) -> GrowingLog:
        for number in range(self.tree.size, size):
            self.tree.append(merkle.leaf_hash(self._salt + number.to_bytes(8, "big")))
        return self

    def note(self, size: int, key: Ed25519PrivateKey = KEY) -> bytes:
        return checkpoint.sign(Checkpoint(self.origin, size, self.tree.root(size)), key)

    def request(self, old: int, size: int, key: Ed25519PrivateKey = KEY) -> AddCheckpoint:
        path = merkle.consistency_path(self.tree, old, size) if old <= size else []
        return AddCheckpoint(old, tuple(path), self.note(size, key))


@pytest.fixture
def witness_keys(tmp_path: Path) -> WitnessKeys:
    return load_keys(tmp_path, NAME, may_draw=True)


@pytest.fixture
def book(tmp_path: Path, witness_keys: WitnessKeys) -> Iterator[Book]:
    with closing(Book(tmp_path, witness_keys.public)) as opened:
        yield opened


@pytest.fixture
def cosigning(book: Book, witness_keys: WitnessKeys) -> Cosigning:
    return Cosigning(book, witness_keys, {ORIGIN: WatchedLog((VKEY,), None)}, lambda: NOW)
