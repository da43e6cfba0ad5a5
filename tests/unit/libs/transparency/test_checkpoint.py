"""Checkpoints, and the notes that carry them."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.transparency import checkpoint, note
from libs.transparency.checkpoint import Checkpoint, CheckpointMalformed, CheckpointOfAnotherLog
from libs.transparency.note import NoteMalformed, NoteSignatureInvalid, VerifierKey

ORIGIN = "mesh.local/ledger/1"
KEY = Ed25519PrivateKey.from_private_bytes(b"\x06" * 32)
VKEY = VerifierKey(ORIGIN, KEY.public_key().public_bytes_raw())
OTHER = Ed25519PrivateKey.from_private_bytes(b"\x08" * 32)
TREE = Checkpoint(ORIGIN, 12, b"\x0a" * 32)
SIGNED = checkpoint.sign(TREE, KEY)


def test_signed_checkpoint_verifies_and_reads_back() -> None:
    assert checkpoint.verify(SIGNED, VKEY) == checkpoint.parse(SIGNED) == TREE
    assert SIGNED.startswith(f"{ORIGIN}\n12\n{base64.b64encode(TREE.root).decode()}\n\n\N{EM DASH} {ORIGIN} ".encode())


def test_key_reads_back_from_its_text() -> None:
    assert VerifierKey.parse(VKEY.text()) == VKEY


def test_lines_of_unknown_keys_are_skipped() -> None:
    witness = note.sign(TREE.text(), "witness.example", OTHER).rpartition(b"\n\n")[2]
    assert checkpoint.verify(SIGNED + witness, VKEY) == TREE


def test_bad_line_of_a_known_key_rejects_the_note_that_also_has_a_good_one() -> None:
    bad = base64.b64encode(VKEY.key_id + bytes(64)).decode()
    with pytest.raises(NoteSignatureInvalid, match="is wrong"):
        checkpoint.verify(SIGNED + f"\N{EM DASH} {ORIGIN} {bad}\n".encode(), VKEY)


def test_changed_text_and_unsigned_note_are_refused() -> None:
    with pytest.raises(NoteSignatureInvalid):
        checkpoint.verify(SIGNED.replace(b"\n12\n", b"\n13\n"), VKEY)
    with pytest.raises(NoteSignatureInvalid, match="no signature"):
        checkpoint.verify(note.sign(TREE.text(), ORIGIN, OTHER), VKEY)


def test_log_cannot_sign_for_another() -> None:
    other = Checkpoint("other.example/ledger/1", 12, TREE.root)
    with pytest.raises(CheckpointOfAnotherLog):
        checkpoint.verify(note.sign(other.text(), ORIGIN, KEY), VKEY)


@pytest.mark.parametrize(
    "text",
    [
        TREE.text() + "extension\n",
        f"{ORIGIN}\n012\n{base64.b64encode(TREE.root).decode()}\n",
        f"{ORIGIN}\n-1\n{base64.b64encode(TREE.root).decode()}\n",
        f"{ORIGIN}\n٣\n{base64.b64encode(TREE.root).decode()}\n",
        f"{ORIGIN}\n{2**64}\n{base64.b64encode(TREE.root).decode()}\n",
        f"{ORIGIN}\n12\n{base64.b64encode(TREE.root[:-1]).decode()}\n",
        f"{ORIGIN}\n12\n???\n",
        f"{ORIGIN}\n12\n",
        f"\n12\n{base64.b64encode(TREE.root).decode()}\n",
    ],
    ids=["extension", "zero", "sign", "digit", "range", "short", "base64", "lines", "origin"],
)
def test_signed_text_that_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(CheckpointMalformed):
        checkpoint.verify(note.sign(text, ORIGIN, KEY), VKEY)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text\n",
        b"text\n\n",
        SIGNED[:-1],
        SIGNED.replace("\N{EM DASH}".encode(), b"-"),
        SIGNED.replace(b"\n12\n", b"\n1\x072\n"),
        SIGNED[:-2] + b"*\n",
        b"\xff" + SIGNED,
        SIGNED + b"\n",
        SIGNED + "\N{EM DASH} a+b AAAAAAAA\n".encode(),
        SIGNED + "\N{EM DASH} short AAAA\n".encode(),
        SIGNED + "\N{EM DASH} many AAAAAAAA\n".encode() * 100,
        b"a" * (1 << 20) + SIGNED,
    ],
    ids=range(13),
)
def test_other_bytes_are_no_note(data: bytes) -> None:
    with pytest.raises(NoteMalformed):
        note.parse(data)
