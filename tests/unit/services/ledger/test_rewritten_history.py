"""Whoever holds the log's own keys and disk can write another history; nobody who has seen the first one takes it.

The rewritten log is whole: it opens, its auditor signs it. What it lacks is what others remember.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from libs.transparency import checkpoint, merkle
from libs.transparency.add_checkpoint import AddCheckpoint
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.cosignature import verify_quorum
from libs.transparency.merkle import ProofInvalid
from libs.transparency.note import VerifierKey
from libs.transparency.resume import LogDiverged
from services.ledger.auditor import Auditor
from services.ledger.checkpoints.auditing import Checkpoints, SignedTree
from services.ledger.checkpoints.proofs import Proofs, ProofWithheld
from services.ledger.checkpoints.split_view import FOLDER, keep
from services.ledger.checkpoints.witnessed_floor import witnessed_floors
from services.ledger.checkpoints.witnesses import Witness, open_witnesses
from services.ledger.checkpoints.witnessing import Asked, Witnessing
from services.ledger.growth import Growth
from services.ledger.keys import ReleasedKey
from services.ledger.serving.tail import KEY_NAME, Tail
from services.ledger.storage.damage import LogForked, LogRolledBack
from services.ledger.storage.store import LogStore
from services.witness.cosigning import NotConsistent
from tests.fakes.served_witness import served_witness

from .conftest import (
    DESCRIPTION,
    INDEX_KEY,
    KEY,
    ORIGIN,
    SMALL,
    SOURCE,
    candidate,
    open_store,
    sequencer,
    sign_receipts,
    sign_tree,
)

VKEY = VerifierKey(ORIGIN, KEY.public_key().public_bytes_raw())
SIZE = 6


class StolenAuditor:
    """The auditor's code and key, in the hands of whoever wants another history signed."""

    def __init__(self, directory: Path) -> None:
        self._auditor = Auditor(directory, ORIGIN, sign_tree, sign_receipts, SMALL)

    async def sign(self, size: int, root: bytes) -> SignedTree:
        return SignedTree(size, root, self._auditor.checkpoint(size, root))

    async def keep_witnessed(self, cosigned: bytes) -> None:
        self._auditor.witnessed(cosigned)


class ResumeKey:
    async def release(self, name: str, epoch: int = 0) -> ReleasedKey:
        assert name == KEY_NAME
        return ReleasedKey(1, b"\x0d" * 32)

    def forget(self, name: str) -> None:
        raise AssertionError(name)

    async def retire(self, signed_order: bytes) -> None:
        raise AssertionError


def write(directory: Path, words: bytes, size: int) -> Path:
    LogStore.create(directory, DESCRIPTION)
    with open_store(directory) as store:
        writer = sequencer(store)
        for number in range(1, size + 1):
            writer.append([candidate(number, body=b"%s %d" % (words, number))], SOURCE, number, number)
    return directory


@dataclass(frozen=True, slots=True)
class Served:
    """A log as its ledger serves it."""

    store: LogStore
    growth: Growth
    checkpoints: Checkpoints
    proofs: Proofs
    tail: Tail


@contextmanager
def served(directory: Path) -> Iterator[Served]:
    async def synced() -> None:
        store.sync_watermark()

    with open_store(directory) as store:
        growth = Growth(store.head.size, store.head.root())
        checkpoints = Checkpoints(StolenAuditor(directory), growth, synced, 0.01)  # type: ignore[arg-type]
        tail = Tail(store, growth, checkpoints, ResumeKey(), ReleasedKey(1, b"\x0d" * 32))
        yield Served(store, growth, checkpoints, Proofs(store, growth, checkpoints), tail)


@asynccontextmanager
async def signing(log: Served) -> AsyncIterator[SignedTree]:
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(log.checkpoints.keep())
        yield await log.checkpoints.signed_beyond(log.growth.size - 1)
        keeping.cancel()


async def nothing() -> None:
    """The witness is there: nobody is waited for."""
    raise AssertionError


def witnessing(log: Served, witnesses: list[Witness], directory: Path) -> Witnessing:
    def refuse(request: object) -> None:
        raise AssertionError("the witness knows the key")

    return Witnessing(
        Asked(witnesses, 1, 0.01),
        log.checkpoints,
        log.proofs,
        refuse,  # type: ignore[arg-type]
        lambda found: asyncio.to_thread(keep, directory, found),
    )


@pytest.fixture
def honest(tmp_path: Path) -> Path:
    return write(tmp_path / "honest", b"what was said", SIZE)


@pytest.fixture
def rewritten(tmp_path: Path) -> Path:
    """The same issuers and numbers, the same keys, and longer; with every file of the state rewritten too."""
    return write(tmp_path / "rewritten", b"what is said to have been said", SIZE + 2)


async def test_a_witness_catches_it_and_both_notes_are_kept(honest: Path, rewritten: Path, tmp_path: Path) -> None:
    async with served_witness(tmp_path / "w", [VKEY]) as witness, open_witnesses([witness.settings]) as witnesses:
        with served(honest) as log:
            async with signing(log) as tree:
                assert await witnessing(log, list(witnesses), honest)._witness(tree)
            assert verify_quorum(log.checkpoints.witnessed.note, [witness.key], 1)
        with served(rewritten) as forged:
            async with signing(forged) as tree:
                # Whoever knows the log's key alone finds nothing wrong.
                assert checkpoint.verify(tree.note, VKEY).size == SIZE + 2
                path = forged.proofs.consistency(SIZE, SIZE + 2).path
                with pytest.raises(NotConsistent) as refused:
                    witness.cosigning.add_checkpoint(AddCheckpoint(SIZE, path, tree.note).encode())
                assert refused.value.status == 422
                with pytest.raises(ExceptionGroup) as ended:
                    await witnessing(forged, list(witnesses), rewritten)._witness(tree)
        assert ended.group_contains(LogForked)
        assert len(list((rewritten / FOLDER).iterdir())) == 1
        # Nor does it start where the witness is asked first.
        floors = await witnessed_floors(witnesses, 1, ORIGIN, nothing)
        with pytest.raises(LogRolledBack, match="witness"):
            LogStore(rewritten, sign=KEY.sign, clock=lambda: 1, index_key=INDEX_KEY, promised=floors, geometry=SMALL)


async def test_a_disk_that_was_put_back_does_not_start(honest: Path, tmp_path: Path) -> None:
    """A consistent image of the whole folder, only older: by itself there is nothing to see."""
    image = shutil.copytree(honest, tmp_path / "image")
    async with served_witness(tmp_path / "w", [VKEY]) as witness, open_witnesses([witness.settings]) as witnesses:
        with open_store(honest) as store:
            sequencer(store).append([candidate(99)], SOURCE, SIZE + 1, SIZE + 1)
        with served(honest) as log:
            async with signing(log) as tree:
                assert await witnessing(log, list(witnesses), honest)._witness(tree)
        with open_store(image):
            pass
        floors = await witnessed_floors(witnesses, 1, ORIGIN, nothing)
        with pytest.raises(LogRolledBack, match=r"6 leaves are left, but witness witness\.example/w1 promises 7"):
            LogStore(image, sign=KEY.sign, clock=lambda: 1, index_key=INDEX_KEY, promised=floors, geometry=SMALL)


async def test_what_is_to_be_covered_waits_for_the_witness_where_there_is_one(honest: Path) -> None:
    """A share that is destroyed because an order is covered cannot be had back."""

    async def synced() -> None:
        return None

    with open_store(honest) as store:
        growth = Growth(store.head.size, store.head.root())
        auditor = StolenAuditor(honest)
        checkpoints = Checkpoints(auditor, growth, synced, 0.01, has_witnesses=True)  # type: ignore[arg-type]
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(checkpoints.keep())
            waiting = tasks.create_task(checkpoints.covering(SIZE))
            tree = await checkpoints.signed_beyond(SIZE - 1)
            await asyncio.sleep(0)
            assert not waiting.done()
            await checkpoints.witness(tree)
            assert (await waiting).size == SIZE
            keeping.cancel()


def test_a_root_that_the_tree_contradicts_is_withheld(honest: Path) -> None:
    with served(honest) as log:
        assert log.proofs.root(4) == log.store.index.tree.root(4)
        log.growth.reach(SIZE, bytes(32))
        with pytest.raises(ProofWithheld):
            log.proofs.root(4)


async def test_a_readers_resume_token_catches_it(honest: Path, rewritten: Path) -> None:
    with served(honest) as log:
        async with signing(log):
            async for batch in log.tail.read(await log.tail.from_index(0), follow=False, max_batch=4):
                token = batch.token
        assert (await log.tail.from_token(token)).next_index == SIZE
    with served(rewritten) as forged:
        async with signing(forged):
            with pytest.raises(LogDiverged):
                await forged.tail.from_token(token)


async def test_whoever_holds_an_older_checkpoint_gets_no_proof_of_it(honest: Path, rewritten: Path) -> None:
    """Neither the proof that the rewritten log makes, nor the honest one's, nor any of their mixtures."""
    with served(honest) as log:
        async with signing(log) as tree:
            older = checkpoint.verify(tree.note, VKEY)
        nodes = [log.store.index.tree.leaf(index) for index in range(SIZE)] + [older.root]
    with served(rewritten) as forged:
        async with signing(forged) as tree:
            newer = checkpoint.verify(tree.note, VKEY)
        path = forged.proofs.consistency(older.size, newer.size).path
        nodes += [forged.store.index.tree.leaf(index) for index in range(newer.size)] + list(path)
    for at in range(len(path)):
        for node in nodes:
            with pytest.raises(ProofInvalid):
                merkle.verify_consistency(
                    older.size, newer.size, [*path[:at], node, *path[at + 1 :]], older.root, newer.root
                )
    assert newer == Checkpoint(ORIGIN, SIZE + 2, newer.root)
