"""Evidence of two histories: it proves by itself, and nothing that could be true passes for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.audit.log.notes import Checkpoint, Key, NoteUnproven, read_checkpoint
from libs.audit.log.split_view import SplitView, SplitViewNotProven, SplitViewUnreadable, read_split_view
from libs.audit.log.tree import Frontier, consistency_ranges, leaf_hash
from libs.transparency import checkpoint

ORIGIN = "mesh.local/ledger/1"
SIGNER = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
KEY = Key(ORIGIN, SIGNER.public_key().public_bytes_raw())
LEAVES = [leaf_hash(bytes([number])) for number in range(10)]
OTHERS = [leaf_hash(bytes([number, 1])) for number in range(10)]


def root_over(leaves: list[bytes], low: int, high: int) -> bytes:
    frontier = Frontier()
    frontier.add(leaves[low:high])
    return frontier.root()


def head(leaves: list[bytes], size: int, origin: str = ORIGIN, key: Ed25519PrivateKey = SIGNER) -> Checkpoint:
    return read_checkpoint(checkpoint.sign(checkpoint.Checkpoint(origin, size, root_over(leaves, 0, size)), key))


def view(smaller: Checkpoint, size: int = 10) -> SplitView:
    proof = tuple(root_over(LEAVES, low, high) for low, high in consistency_ranges(smaller.size, size))
    return SplitView(smaller, head(LEAVES, size), (KEY,), root_over(LEAVES, 0, smaller.size), proof)


def test_evidence_proves_after_it_was_written_and_read() -> None:
    for size in range(1, 10):
        evidence = read_split_view(view(head(OTHERS, size)).encode())
        assert evidence.verify() == (KEY, KEY)
        assert evidence.verify([KEY]) == (KEY, KEY)
    same = SplitView(head(OTHERS, 10), head(LEAVES, 10), (KEY,))
    assert read_split_view(same.encode()).verify() == (KEY, KEY)


def test_two_heads_of_one_history_prove_nothing() -> None:
    with pytest.raises(SplitViewNotProven, match="is the larger one's beginning"):
        view(head(LEAVES, 4)).verify()
    with pytest.raises(SplitViewNotProven, match="of one tree"):
        SplitView(head(LEAVES, 10), head(LEAVES, 10), (KEY,)).verify()


def test_another_beginning_must_be_proven() -> None:
    honest = view(head(LEAVES, 4))
    framed = replace(honest, root=bytes(32))
    with pytest.raises(SplitViewNotProven, match="not shown to begin otherwise"):
        framed.verify()
    with pytest.raises(SplitViewNotProven):
        replace(view(head(OTHERS, 4)), proof=()).verify()
    with pytest.raises(SplitViewNotProven):
        replace(view(head(OTHERS, 4)), root=None).verify()


def test_heads_of_two_logs_prove_nothing() -> None:
    other = head(OTHERS, 10, "mesh.local/ledger/2")
    with pytest.raises(SplitViewNotProven, match="of two logs"):
        SplitView(other, head(LEAVES, 10), (KEY, Key("mesh.local/ledger/2", KEY.public))).verify()


def test_signature_that_is_forged_or_by_a_stranger_proves_nothing() -> None:
    stranger = Ed25519PrivateKey.generate()
    with pytest.raises(NoteUnproven):
        view(head(OTHERS, 4, key=stranger)).verify()
    own = Key(ORIGIN, stranger.public_key().public_bytes_raw())
    framed = SplitView(head(OTHERS, 10, key=stranger), head(LEAVES, 10), (KEY, own))
    assert framed.verify() == (own, KEY)
    with pytest.raises(NoteUnproven):
        framed.verify([KEY])


def test_one_wrong_bit_at_any_byte_proves_nothing() -> None:
    data = view(head(OTHERS, 4)).encode()
    for at in range(len(data)):
        flipped = data[:at] + bytes([data[at] ^ 1 << at % 7]) + data[at + 1 :]
        with pytest.raises((SplitViewUnreadable, SplitViewNotProven, NoteUnproven)):
            read_split_view(flipped).verify([KEY])
