"""It is responsible for proofs: that a leaf is in a tree, and that one tree extends another.

Segments are read off the loop. The tree is read on it, by pages of 8 KiB that are in memory or soon are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from libs.errors import Code, MeshError
from libs.transparency.chain import entry_id
from libs.transparency.checkpoint import parse
from libs.transparency.cose_receipt import CoseReceipt
from libs.transparency.merkle import (
    ProofInvalid,
    SizeNotReached,
    consistency_path,
    inclusion_path,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from libs.transparency.proof_file import ProofFile
from services.ledger.checkpoints.auditing import Checkpoints, SignedTree
from services.ledger.growth import Growth
from services.ledger.storage.store import LogStore


class EntryUnknown(MeshError):
    """The log has no such entry."""

    code = Code.NOT_FOUND
    reason = "ENTRY_UNKNOWN"


class ProofWithheld(MeshError):
    """What was put together as a proof is none: the tree here is damaged, and nothing of it is given out."""

    code = Code.DATA_LOSS
    reason = "PROOF_WITHHELD"


@dataclass(frozen=True, slots=True)
class Inclusion:
    """Where a leaf is in a tree, and the signed note of that tree where there is one."""

    index: int
    size: int
    path: tuple[bytes, ...]
    leaf_hash: bytes
    checkpoint: bytes


@dataclass(frozen=True, slots=True)
class Consistency:
    """How a tree grew into one of `second` leaves."""

    path: tuple[bytes, ...]
    second: int


class Proofs:
    """Proofs over what is durable."""

    def __init__(self, store: LogStore, growth: Growth, checkpoints: Checkpoints) -> None:
        self._store = store
        self._growth = growth
        self._checkpoints = checkpoints

    async def find(self, entry: bytes) -> int:
        """Return the index of an entry by its id. Raises `EntryUnknown`, `LogBehind` or `LogDamaged`."""
        index = self._store.index.find(entry)
        if index is None:
            self._growth.require_all()
            raise EntryUnknown("no entry of that id in the log")
        stored = await asyncio.to_thread(self._store.reader.entry, self.require(index))
        public = stored.leaf
        if entry_id(public.issuer, public.issuer_seq) != entry:
            # The index goes by half of an id.
            raise EntryUnknown("no entry of that id in the log")
        return index

    def require(self, index: int) -> int:
        """Return an index that the durable log has. Raises `EntryUnknown` or `LogBehind`."""
        if index >= self._growth.size:
            self._growth.require_all()
            raise EntryUnknown(f"the log has no leaf {index}")
        return index

    def inclusion(self, index: int, size: int) -> Inclusion:
        """Prove a leaf; size 0 means the newest witnessed tree that has it, or else the newest signed one.

        Raises `SizeNotReached`, `LogBehind`, `NoCheckpoint`, `ProofWithheld` or `PageDamaged`.
        """
        provable = None if size else self._checkpoints.provable(index)
        size = self._size(size) if provable is None else provable.size
        tree = self._store.index.tree
        path = inclusion_path(tree, index, size)
        leaf = tree.leaf(index)
        with _verifying():
            verify_inclusion(leaf, index, size, path, self._root(size))
        note = self._checkpoints.of_size(size) if provable is None else provable.note
        return Inclusion(index, size, tuple(path), leaf, note)

    def consistency(self, first: int, second: int) -> Consistency:
        """Prove growth; second 0 means the newest signed tree.

        Raises `SizeNotReached`, `LogBehind`, `NoCheckpoint`, `ProofWithheld` or `PageDamaged`.
        """
        second = self._size(second)
        path = consistency_path(self._store.index.tree, first, second)
        with _verifying():
            verify_consistency(first, second, path, self._root(first), self._root(second))
        return Consistency(tuple(path), second)

    def _root(self, size: int) -> bytes:
        """Return what the tree was signed with, or written with, at a size; else what it is now."""
        signed = self._checkpoints.root_of(size)
        if signed is not None:
            return signed
        return self._growth.root if size == self._growth.size else self._store.index.tree.root(size)

    @property
    def size(self) -> int:
        """How many leaves are durable."""
        return self._growth.size

    def root(self, size: int) -> bytes:
        """Return the root of the first `size` leaves, which MUST be durable.

        Raises `ProofWithheld` or `PageDamaged`.
        """
        root, tree = self._store.index.tree.root(size), self._growth
        path = consistency_path(self._store.index.tree, size, tree.size)
        with _verifying():
            verify_consistency(size, tree.size, path, root, tree.root)
        return root

    async def proof_file(self, index: int) -> bytes:
        """Return a proof of a leaf that shows by itself: in the newest witnessed tree that has it, or else the newest.

        Raises `SizeNotReached`, `NoCheckpoint`, `ProofWithheld`, `PageDamaged` or `LogDamaged`.
        """
        tree = self._checkpoints.provable(index)
        leaf_data, path = await self._shown(index, tree)
        return ProofFile(leaf_data, index, path, tree.note).encode()

    async def cose_receipt(self, index: int) -> tuple[bytes, bytes]:
        """Return a COSE receipt of a leaf in the newest signed tree, and the leaf data that it is of.

        Raises what `proof_file` raises, `AuditorRefused` or `AuditorGone`.
        """
        tree = self._checkpoints.newest
        leaf_data, path = await self._shown(index, tree)
        signature = await self._checkpoints.sign_receipts(tree)
        return CoseReceipt(parse(tree.note).origin, tree.size, index, path, signature).encode(), leaf_data

    async def _shown(self, index: int, tree: SignedTree) -> tuple[bytes, tuple[bytes, ...]]:
        """Return a leaf's data and its path to a signed root."""
        path = inclusion_path(self._store.index.tree, index, tree.size)
        stored = await asyncio.to_thread(self._store.reader.entry, index)
        leaf_data = stored.row.leaf_data
        with _verifying():
            verify_inclusion(leaf_hash(leaf_data), index, tree.size, path, tree.root)
        return leaf_data, tuple(path)

    def _size(self, size: int) -> int:
        if size > self._growth.size:
            self._growth.require_all()
            raise SizeNotReached(f"the log has {self._growth.size} leaves, not {size}")
        return size or self._checkpoints.newest.size


@contextmanager
def _verifying() -> Iterator[None]:
    try:
        yield
    except ProofInvalid as error:
        raise ProofWithheld("the ledger's own tree contradicts its root: ask again after its next start") from error
