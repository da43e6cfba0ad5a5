"""Cosignatures: what a witness signed, by whom, and how many of those that are known."""

from __future__ import annotations

import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from libs.transparency import checkpoint, cosignature, note
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.cosignature import CosignatureInvalid, CosignerKey, QuorumNotReached
from libs.transparency.note import NoteMalformed, VerifierKey

ORIGIN = "mesh.local/ledger/1"
LOG_KEY = Ed25519PrivateKey.from_private_bytes(b"\x06" * 32)
TREE = Checkpoint(ORIGIN, 12, b"\x0a" * 32)
SIGNED = checkpoint.sign(TREE, LOG_KEY)
KEYS = (Ed25519PrivateKey.from_private_bytes(b"\x08" * 32), MLDSA44PrivateKey.from_seed_bytes(b"\x09" * 32))
NAME = "witness.example/w1"


def cosigned(key: Ed25519PrivateKey | MLDSA44PrivateKey, name: str = NAME, time: int = 1_700_000_000) -> bytes:
    return cosignature.attach(SIGNED, [cosignature.cosign(TREE, name, key, time)])


@pytest.mark.parametrize("key", KEYS, ids=["ed25519", "ml-dsa-44"])
def test_cosignature_verifies_and_tells_its_time(key: Ed25519PrivateKey | MLDSA44PrivateKey) -> None:
    public = cosignature.cosigner_key(NAME, key)
    assert CosignerKey.parse(public.text()) == public
    assert cosignature.verify_cosignature(cosigned(key), public) == 1_700_000_000
    # To the log's own readers it is a line of a key that they do not know.
    assert checkpoint.verify(cosigned(key), VerifierKey(ORIGIN, LOG_KEY.public_key().public_bytes_raw())) == TREE


@pytest.mark.parametrize("key", KEYS, ids=["ed25519", "ml-dsa-44"])
def test_cosignature_of_another_tree_time_or_log_is_refused(key: Ed25519PrivateKey | MLDSA44PrivateKey) -> None:
    public, line = cosignature.cosigner_key(NAME, key), cosignature.cosign(TREE, NAME, key, 1_700_000_000)
    for other in (
        Checkpoint(ORIGIN, 13, TREE.root),
        Checkpoint(ORIGIN, 12, b"\x0b" * 32),
        Checkpoint("other.example", 12, TREE.root),
    ):
        with pytest.raises(CosignatureInvalid, match="is wrong"):
            cosignature.verify_cosignature(cosignature.attach(checkpoint.sign(other, LOG_KEY), [line]), public)
    later = note.Signature(line.name, line.key_id, (1_700_000_001).to_bytes(8, "big") + line.signature[8:])
    with pytest.raises(CosignatureInvalid, match="is wrong"):
        cosignature.verify_cosignature(cosignature.attach(SIGNED, [later]), public)
    for cut in (b"", line.signature[:8], line.signature[:-1]):
        short = note.Signature(line.name, line.key_id, cut or b"\x00")
        with pytest.raises(CosignatureInvalid, match="is wrong"):
            cosignature.verify_cosignature(cosignature.attach(SIGNED, [short]), public)


def test_of_several_lines_by_one_key_each_must_verify_and_the_newest_tells_the_time() -> None:
    public = cosignature.cosigner_key(NAME, KEYS[0])
    lines = [cosignature.cosign(TREE, NAME, KEYS[0], time) for time in (2, 3, 1)]
    assert cosignature.verify_cosignature(cosignature.attach(SIGNED, lines), public) == 3
    forged = note.Signature(NAME, public.key_id, bytes(72))
    for several in ([*lines, forged], [forged, *lines]):
        with pytest.raises(CosignatureInvalid, match="is wrong"):
            cosignature.verify_cosignature(cosignature.attach(SIGNED, several), public)


def test_unsigned_checkpoint_and_impossible_time_are_refused() -> None:
    public = cosignature.cosigner_key(NAME, KEYS[0])
    with pytest.raises(CosignatureInvalid, match="no cosignature"):
        cosignature.verify_cosignature(SIGNED, public)
    with pytest.raises(CosignatureInvalid, match="no possible time"):
        cosignature.verify_cosignature(cosigned(KEYS[0], time=2**63), public)


def test_ml_dsa_cosignature_says_by_whom_it_is() -> None:
    other = cosignature.cosigner_key("witness.example/w2", KEYS[1])
    line = cosignature.cosign(TREE, NAME, KEYS[1], 1_700_000_000)
    renamed = note.Signature(other.name, other.key_id, line.signature)
    with pytest.raises(CosignatureInvalid):
        cosignature.verify_cosignature(cosignature.attach(SIGNED, [renamed]), other)


def test_quorum_counts_witnesses_and_not_their_names_or_keys() -> None:
    ed, ml = (cosignature.cosigner_key(NAME, key) for key in KEYS)
    both = cosignature.attach(cosigned(KEYS[0]), [cosignature.cosign(TREE, NAME, KEYS[1], 1_700_000_000)])
    assert cosignature.verify_quorum(both, [ed, ml], 1) == (NAME,)
    with pytest.raises(QuorumNotReached):
        cosignature.verify_quorum(both, [ed, ml], 2)
    twice = cosignature.attach(
        cosigned(KEYS[0]), [cosignature.cosign(TREE, "witness.example/w2", KEYS[0], 1_700_000_000)]
    )
    renamed = cosignature.cosigner_key("witness.example/w2", KEYS[0])
    with pytest.raises(QuorumNotReached):
        cosignature.verify_quorum(twice, [ed, renamed], 2)
    thrice = cosignature.attach(twice, [cosignature.cosign(TREE, NAME, KEYS[1], 1_700_000_000)])
    for keys in itertools.permutations([ed, ml, renamed]):
        with pytest.raises(QuorumNotReached):
            cosignature.verify_quorum(thrice, keys, 2)
    other = Ed25519PrivateKey.from_private_bytes(b"\x0a" * 32)
    second = cosignature.attach(cosigned(KEYS[0]), [cosignature.cosign(TREE, "other.example", other, 1)])
    assert cosignature.verify_quorum(second, [ed, cosignature.cosigner_key("other.example", other)], 2) == (
        "other.example",
        NAME,
    )
    assert cosignature.verify_quorum(SIGNED, [ed], 0) == ()


@pytest.mark.parametrize(
    "text",
    [
        VerifierKey(ORIGIN, LOG_KEY.public_key().public_bytes_raw()).text(),
        note.key_text(NAME, b"\x04" + bytes(31)),
        note.key_text(NAME, b"\x06" + bytes(32)),
        note.key_text(NAME, b""),
        "",
    ],
)
def test_other_keys_are_no_cosigners(text: str) -> None:
    with pytest.raises(NoteMalformed):
        CosignerKey.parse(text)
