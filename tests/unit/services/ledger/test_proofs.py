"""Proofs over files and memory: each verifies, and one that would not is withheld."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.transparency.merkle import SizeNotReached, root_of, verify_consistency, verify_inclusion
from services.ledger.checkpoints.auditing import Checkpoints, NoCheckpoint
from services.ledger.checkpoints.proofs import EntryUnknown, Proofs, ProofWithheld
from services.ledger.growth import Growth, LogBehind
from services.ledger.storage.store import LogStore

from .conftest import SOURCE, candidate, open_store, sequencer
from .test_tail import Unused

SIZE = 10


@pytest.fixture
def store(empty_log: Path) -> Iterator[LogStore]:
    """Ten entries: eight in two sealed segments, two in the one that grows."""
    with open_store(empty_log) as store:
        sequencer(store).append([candidate(number) for number in range(1, SIZE + 1)], SOURCE, 1, 1)
    with open_store(empty_log) as store:
        yield store


def proofs_of(store: LogStore, *, known: int = SIZE) -> Proofs:
    """Proofs of a member that knows so many leaves to count: all, or fewer than another may know of."""

    async def nothing() -> None:
        return None

    growth = Growth(known, store.index.tree.root(known), is_all=lambda: known == SIZE)
    return Proofs(store, growth, Checkpoints(Unused(), growth, nothing, 1.0))


def test_every_proof_verifies(store: LogStore) -> None:
    proofs, leaves = proofs_of(store), [store.index.tree.leaf(index) for index in range(SIZE)]
    for size in range(1, SIZE + 1):
        root = root_of(leaves[:size])
        for index in range(size):
            proof = proofs.inclusion(index, size)
            verify_inclusion(leaves[index], index, size, proof.path, root)
        for first in range(size + 1):
            verify_consistency(first, size, proofs.consistency(first, size).path, root_of(leaves[:first]), root)


async def test_what_is_not_in_the_log_is_not_proven(store: LogStore) -> None:
    proofs = proofs_of(store)
    with pytest.raises(SizeNotReached):
        proofs.inclusion(0, SIZE + 1)
    with pytest.raises(NoCheckpoint):
        proofs.inclusion(0, 0)
    with pytest.raises(EntryUnknown):
        await proofs.find(candidate(SIZE + 1).entry_id)
    assert await proofs.find(candidate(3).entry_id) == 2


async def test_what_a_member_does_not_know_of_may_be_in_the_log_all_the_same(store: LogStore) -> None:
    """Of the last leaf it does not know that a majority holds it."""
    proofs = proofs_of(store, known=SIZE - 1)
    for ask in (
        lambda: proofs.inclusion(0, SIZE),
        lambda: proofs.consistency(1, SIZE),
        lambda: proofs.require(SIZE - 1),
    ):
        with pytest.raises(LogBehind):
            ask()
    for number in (SIZE, SIZE + 1):
        with pytest.raises(LogBehind):
            await proofs.find(candidate(number).entry_id)
    assert await proofs.find(candidate(3).entry_id) == 2


def test_hash_that_changed_in_memory_is_in_no_proof(store: LogStore) -> None:
    proofs = proofs_of(store)
    store.index.tree._recent.hashes[3] ^= 1
    for index in range(SIZE):
        with pytest.raises(ProofWithheld):
            proofs.inclusion(index, SIZE)
    with pytest.raises(ProofWithheld):
        proofs.consistency(4, SIZE)
