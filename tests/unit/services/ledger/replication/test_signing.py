"""What a member signs for another: trees that it holds, with cosignatures of the witnesses that it knows."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.errors import MeshError
from libs.transparency import checkpoint
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.cosignature import QuorumNotReached, attach, cosign, cosigner_key, verify_quorum
from libs.transparency.note import NoteMalformed, Signature, VerifierKey
from services.ledger.checkpoints.auditing import (
    AuditorProcess,
    AuditorRefused,
    Checkpoints,
    NoCheckpoint,
    open_auditor,
)
from services.ledger.checkpoints.proofs import Proofs
from services.ledger.checkpoints.witnesses import open_witnesses
from services.ledger.checkpoints.witnessing import Asked
from services.ledger.config import WitnessSettings
from services.ledger.growth import Growth
from services.ledger.replication.signing import Signing, TreeDiffers, TreeNotTaken
from services.ledger.storage import segments
from services.ledger.storage.recovery import CHECKPOINT_WITNESSED
from services.ledger.storage.segment_files import SEGMENTS
from services.ledger.storage.segments import Geometry
from services.ledger.storage.store import LogStore
from tests.unit.services.ledger.conftest import DESCRIPTION, SOURCE, candidate, open_store, sequencer

ORIGIN = DESCRIPTION.origin
NAMES = ("witness.example/w1", "witness.example/w2")
WRITER = Ed25519PrivateKey.generate()
COSIGNERS = tuple(Ed25519PrivateKey.generate() for _ in NAMES)
NOW = 1_800_000_000


async def _synced() -> None:
    """The watermark has its own tests."""


class Member:
    """A follower that holds six leaves, of which a majority holds five. Its auditor is a real one."""

    def __init__(self, store: LogStore, auditor: AuditorProcess, asked: Asked, signed_size: int) -> None:
        self.store = store
        self.auditor = auditor
        self.growth = Growth(5, store.index.tree.root(5), is_all=lambda: False)
        self.checkpoints = Checkpoints(auditor, self.growth, _synced, 0.01, has_witnesses=True)
        self.key = VerifierKey(ORIGIN, auditor.checkpoint_key)
        self.ended: list[MeshError] = []
        proofs = Proofs(store, self.growth, self.checkpoints)
        self.signing = Signing(
            ORIGIN,
            signed_size,
            asked,
            store.index,
            self.growth,
            proofs,
            self.checkpoints,
            self.ended.append,
            patience_seconds=0,
        )
        self.signing.begin()

    def tree(self, size: int) -> Checkpoint:
        return Checkpoint(ORIGIN, size, self.store.index.tree.root(size))

    def note(self, size: int) -> bytes:
        """As the writer signs it."""
        return checkpoint.sign(self.tree(size), WRITER)

    def witnessed(self, size: int) -> bytes:
        return cosigned(self.tree(size))


def cosigned(tree: Checkpoint, *keys: Ed25519PrivateKey) -> bytes:
    """The writer's note of a tree, cosigned under the witnesses' names."""
    return attach(checkpoint.sign(tree, WRITER), lines(tree, *keys))


def lines(tree: Checkpoint, *keys: Ed25519PrivateKey) -> list[Signature]:
    return [cosign(tree, name, key, NOW) for name, key in zip(NAMES, keys or COSIGNERS, strict=False)]


@asynccontextmanager
async def member_on(directory: Path, *, signed_size: int = 0, quorum: int = 2) -> AsyncIterator[Member]:
    settings = [
        WitnessSettings("https://127.0.0.1:9", cosigner_key(name, key).text())
        for name, key in zip(NAMES, COSIGNERS, strict=True)
    ]
    async with AsyncExitStack() as stack:
        store = stack.enter_context(open_store(directory, Geometry(zeros_ahead=300)))
        auditor = await stack.enter_async_context(open_auditor(directory, ORIGIN))
        witnesses = await stack.enter_async_context(open_witnesses(settings if quorum else []))
        yield Member(store, auditor, Asked(witnesses, quorum, 1.0), signed_size)


@pytest.fixture
def log(empty_log: Path) -> Path:
    """Six leaves in four frames."""
    with open_store(empty_log, Geometry(zeros_ahead=300)) as store:
        writer = sequencer(store)
        for position, numbers in enumerate(([1], [2, 3], [4, 5], [6]), 1):
            writer.append([candidate(number) for number in numbers], SOURCE, position, position)
    return empty_log


@pytest.fixture
async def member(log: Path) -> AsyncIterator[Member]:
    async with member_on(log) as member:
        yield member


def has_signed(member: Member) -> bool:
    try:
        return member.checkpoints.newest.size > 0
    except NoCheckpoint:
        return False


async def test_what_witnesses_cosigned_is_shown_under_this_members_own_signature(member: Member) -> None:
    note = attach(member.witnessed(3), [cosign(member.tree(3), "witness.example/nobody", WRITER, NOW)])
    await member.signing.take(note, witnessed=True)
    shown = member.checkpoints.witnessed
    assert checkpoint.verify(shown.note, member.key) == member.tree(3)
    keys = [cosigner_key(name, key) for name, key in zip(NAMES, COSIGNERS, strict=True)]
    assert verify_quorum(shown.note, keys, 2) == NAMES
    assert len(shown.note.splitlines()) == 7  # Body, own line and two cosignatures: nobody else's are passed on.
    assert (member.store.directory / CHECKPOINT_WITNESSED).read_bytes() == shown.note
    assert member.checkpoints.provable(2) == shown


async def test_cosignatures_come_to_a_tree_that_was_signed_when_it_was_shown(member: Member) -> None:
    for size in (1, 3, 5):
        await member.signing.take(member.note(size), witnessed=False)
    await member.signing.take(member.witnessed(3), witnessed=True)
    assert (member.checkpoints.newest.size, member.checkpoints.witnessed.size) == (5, 3)
    await member.signing.take(member.witnessed(1), witnessed=True)
    assert member.checkpoints.witnessed.size == 3
    await member.signing.take(member.witnessed(5), witnessed=True)
    assert member.checkpoints.witnessed.size == 5


async def test_cosignatures_of_a_tree_that_was_passed_over_wait_for_the_next_one(member: Member) -> None:
    await member.signing.take(member.note(3), witnessed=False)
    await member.signing.take(member.witnessed(1), witnessed=True)
    with pytest.raises(NoCheckpoint):
        _ = member.checkpoints.witnessed
    await member.signing.take(member.witnessed(5), witnessed=True)
    assert member.checkpoints.witnessed.size == 5


async def test_cosignatures_by_others_or_by_too_few_are_refused(member: Member) -> None:
    tree, stranger = member.tree(3), Ed25519PrivateKey.generate()
    forged = Signature(NAMES[1], cosigner_key(NAMES[1], COSIGNERS[1]).key_id, b"\x00" * 72)
    for note in (
        member.note(3),
        cosigned(tree, COSIGNERS[0]),
        cosigned(tree, COSIGNERS[0], stranger),
        cosigned(tree, COSIGNERS[0], COSIGNERS[0]),
        attach(cosigned(tree, COSIGNERS[0]), [forged]),
        attach(member.note(3), lines(member.tree(1))),
    ):
        with pytest.raises(QuorumNotReached):
            await member.signing.take(note, witnessed=True)
    with pytest.raises(NoteMalformed):
        await member.signing.take(b"no note", witnessed=True)
    assert not has_signed(member)


async def test_a_member_that_knows_no_witness_takes_nothing_for_witnessed(log: Path) -> None:
    async with member_on(log, quorum=0) as member:
        with pytest.raises(QuorumNotReached):
            await member.signing.take(member.witnessed(3), witnessed=True)


async def test_what_is_no_tree_of_this_log_is_refused(member: Member) -> None:
    root = member.tree(3).root
    for tree in (
        Checkpoint("mesh.other/ledger/1", 3, root),
        Checkpoint(ORIGIN, 3, bytes(32)),
        Checkpoint(ORIGIN, 5, root),
        Checkpoint(ORIGIN, 0, member.tree(0).root),
        member.tree(2),  # No frame ends there, so nobody signs that.
    ):
        for witnessed in (False, True):
            with pytest.raises(TreeDiffers):
                await member.signing.take(cosigned(tree), witnessed=witnessed)
    assert not has_signed(member)
    assert member.ended == []


async def test_what_a_majority_is_not_known_to_hold_is_not_signed(member: Member) -> None:
    for tree in (member.tree(6), Checkpoint(ORIGIN, 7, bytes(32))):
        for witnessed in (False, True):
            with pytest.raises(TreeNotTaken):
                await member.signing.take(cosigned(tree), witnessed=witnessed)
    assert not has_signed(member)
    member.growth.reach(6, member.tree(6).root)
    await member.signing.take(member.witnessed(6), witnessed=True)
    assert member.checkpoints.witnessed.size == 6


async def test_before_it_is_introduced_a_member_signs_nothing(log: Path) -> None:
    async with member_on(log) as member:
        unknown = Signing(
            ORIGIN,
            0,
            Asked([], 0, 1.0),
            member.store.index,
            member.growth,
            Proofs(member.store, member.growth, member.checkpoints),
            member.checkpoints,
            member.ended.append,
        )
        with pytest.raises(TreeNotTaken):
            await unknown.take(member.note(3), witnessed=False)
        assert not has_signed(member)


async def test_a_tree_below_one_that_was_signed_before_is_passed_over_and_ends_nobody(log: Path) -> None:
    async with member_on(log) as member:
        await member.signing.take(member.note(5), witnessed=False)
    async with member_on(log, signed_size=5) as member:
        await member.signing.take(member.witnessed(3), witnessed=True)
        assert (has_signed(member), member.ended) == (False, [])
        await member.signing.take(member.witnessed(5), witnessed=True)
        assert member.checkpoints.witnessed.size == 5


async def test_a_tree_whose_showing_was_given_up_ends_nobody(member: Member) -> None:
    """The auditor goes on with it, and would refuse any below."""
    os.kill(member.auditor.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await member.signing.take(member.note(5), witnessed=False)
    os.kill(member.auditor.pid, signal.SIGCONT)
    await member.signing.take(member.witnessed(3), witnessed=True)
    assert member.ended == []


async def test_a_line_of_a_known_witness_that_is_wrong_is_not_passed_on(log: Path) -> None:
    forged = Signature(NAMES[1], cosigner_key(NAMES[1], COSIGNERS[1]).key_id, b"\x00" * 72)
    async with member_on(log, quorum=1) as member:
        note = attach(cosigned(member.tree(3), COSIGNERS[0]), [forged])
        await member.signing.take(note, witnessed=True)
        assert len(member.checkpoints.witnessed.note.splitlines()) == 6
        keys = [cosigner_key(NAMES[0], COSIGNERS[0])]
        assert verify_quorum(member.checkpoints.witnessed.note, keys, 1) == NAMES[:1]


async def test_an_auditor_that_reads_another_tree_ends_the_member(member: Member) -> None:
    path = member.store.directory / SEGMENTS / segments.file_name(0)
    data = bytearray(path.read_bytes())
    data[segments.HEADER_SIZE + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(AuditorRefused):
        await member.signing.take(member.note(3), witnessed=False)
    assert [error.reason for error in member.ended] == [AuditorRefused.reason]


async def test_a_writer_goes_on_with_what_was_witnessed_and_signs_for_nobody(member: Member) -> None:
    await member.signing.take(member.witnessed(3), witnessed=True)
    member.growth.reach(6, member.tree(6).root)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(member.signing.write())
        signed = await member.checkpoints.signed_beyond(3)
        with pytest.raises(TreeNotTaken):
            await member.signing.take(member.witnessed(5), witnessed=True)
        writing.cancel()
    assert (signed.size, member.checkpoints.witnessed.size) == (6, 3)
