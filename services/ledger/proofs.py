"""It is responsible for proofs: that a leaf is in a tree, and that one tree extends another."""

from __future__ import annotations

from dataclasses import dataclass

from libs.errors import Code, MeshError
from libs.transparency.chain import entry_id
from libs.transparency.checkpoint import parse
from libs.transparency.cose_receipt import CoseReceipt
from libs.transparency.merkle import SizeNotReached, consistency_path, inclusion_path
from libs.transparency.proof_file import ProofFile
from services.ledger.auditing import Checkpoints
from services.ledger.growth import Growth
from services.ledger.store import LogStore


class EntryUnknown(MeshError):
    """The log has no such entry."""

    code = Code.NOT_FOUND
    reason = "ENTRY_UNKNOWN"


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

    def find(self, entry: bytes) -> int:
        """Return the index of an entry by its id. Raises `EntryUnknown` or `LogDamaged`."""
        index = self._store.index.find(entry)
        if index is None:
            raise EntryUnknown("no entry of that id in the log")
        public = self._store.reader.entry(self.require(index)).leaf
        if entry_id(public.issuer, public.issuer_seq) != entry:
            # The index goes by half of an id.
            raise EntryUnknown("no entry of that id in the log")
        return index

    def require(self, index: int) -> int:
        """Return an index that the durable log has. Raises `EntryUnknown`."""
        if index >= self._growth.size:
            raise EntryUnknown(f"the log has no leaf {index}")
        return index

    def inclusion(self, index: int, size: int) -> Inclusion:
        """Prove a leaf; size 0 means the newest signed tree. Raises `SizeNotReached` or `NoCheckpoint`."""
        size = self._size(size)
        path = inclusion_path(self._store.index.tree, index, size)
        return Inclusion(index, size, tuple(path), self._store.index.tree.leaf(index), self._checkpoints.of_size(size))

    def consistency(self, first: int, second: int) -> Consistency:
        """Prove growth; second 0 means the newest signed tree. Raises `SizeNotReached` or `NoCheckpoint`."""
        second = self._size(second)
        return Consistency(tuple(consistency_path(self._store.index.tree, first, second)), second)

    @property
    def size(self) -> int:
        """How many leaves are durable."""
        return self._growth.size

    def root(self, size: int) -> bytes:
        """Return the root of the first `size` leaves, which MUST be durable."""
        return self._store.index.tree.root(size)

    def proof_file(self, index: int) -> bytes:
        """Return a proof of a leaf that shows by itself: in the newest witnessed tree that has it, or else the newest.

        Raises `SizeNotReached`, `NoCheckpoint` or `LogDamaged`.
        """
        tree = self._checkpoints.provable(index)
        path = inclusion_path(self._store.index.tree, index, tree.size)
        leaf_data = self._store.reader.entry(index).row.leaf_data
        return ProofFile(leaf_data, index, tuple(path), tree.note).encode()

    async def cose_receipt(self, index: int) -> tuple[bytes, bytes]:
        """Return a COSE receipt of a leaf in the newest signed tree, and the leaf data that it is of.

        Raises `SizeNotReached`, `NoCheckpoint`, `LogDamaged`, `AuditorRefused` or `AuditorGone`.
        """
        tree = self._checkpoints.newest
        path = inclusion_path(self._store.index.tree, index, tree.size)
        signature = await self._checkpoints.sign_receipts(tree)
        receipt = CoseReceipt(parse(tree.note).origin, tree.size, index, tuple(path), signature)
        return receipt.encode(), self._store.reader.entry(index).row.leaf_data

    def _size(self, size: int) -> int:
        if size > self._growth.size:
            raise SizeNotReached(f"the log has {self._growth.size} leaves, not {size}")
        return size or self._checkpoints.newest.size
