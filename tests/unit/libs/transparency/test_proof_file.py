"""Proofs in a file: they show what they say without the log, and nothing once a byte is another."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.errors import MeshError
from libs.transparency import checkpoint, cosignature, merkle, proof_file
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.cosignature import QuorumNotReached
from libs.transparency.leaf import Kind, Leaf
from libs.transparency.note import NoteSignatureInvalid, VerifierKey
from libs.transparency.proof_file import ProofFile, ProofFileMalformed
from libs.transparency.tree import Tree

ORIGIN = "mesh.local/ledger/1"
KEY = Ed25519PrivateKey.from_private_bytes(b"\x06" * 32)
VKEY = VerifierKey(ORIGIN, KEY.public_key().public_bytes_raw())
WITNESS = Ed25519PrivateKey.from_private_bytes(b"\x08" * 32)
COSIGNER = cosignature.cosigner_key("witness.example", WITNESS)
LEAVES = [Leaf(Kind.RECEIPT, number, b"\x01" * 32, b"\x02" * 16, bytes([number]) * 32) for number in range(1, 8)]


def proof_of(index: int, *, size: int = 7, key: Ed25519PrivateKey = KEY) -> ProofFile:
    tree = Tree()
    for leaf in LEAVES:
        tree.append(merkle.leaf_hash(leaf.data()))
    tree_head = Checkpoint(ORIGIN, size, tree.root(size))
    line = cosignature.cosign(tree_head, "witness.example", WITNESS, 1_700_000_000)
    return ProofFile(
        LEAVES[index].data(),
        index,
        tuple(merkle.inclusion_path(tree, index, size)),
        cosignature.attach(checkpoint.sign(tree_head, key), [line]),
    )


def test_proof_has_the_form_of_the_specification_and_reads_back() -> None:
    proof = proof_of(2)
    lines = proof.encode().decode().split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert lines[1] == f"extra {base64.b64encode(LEAVES[2].data()).decode()}"
    assert lines[2] == "index 2"
    assert lines[3:6] == [base64.b64encode(step).decode() for step in proof.path]
    assert lines[6:9] == ["", ORIGIN, "7"]
    assert ProofFile.parse(proof.encode()) == proof


def test_proof_proves_the_leaf_the_place_and_the_witness() -> None:
    proven = proof_file.verify(proof_of(2).encode(), VKEY, [COSIGNER], 1)
    assert (proven.leaf, proven.index, proven.checkpoint.size) == (LEAVES[2], 2, 7)
    assert proven.witnesses == ("witness.example",)
    assert proof_file.verify(proof_of(0, size=1).encode(), VKEY).witnesses == ()


def test_other_leaf_place_path_key_or_witness_is_refused() -> None:
    good = proof_of(2)
    for bad in (
        ProofFile(LEAVES[3].data(), good.index, good.path, good.checkpoint),
        ProofFile(good.leaf_data, 3, good.path, good.checkpoint),
        ProofFile(good.leaf_data, 2, good.path[:-1], good.checkpoint),
        ProofFile(good.leaf_data, 2, (bytes(32), *good.path[1:]), good.checkpoint),
    ):
        with pytest.raises(merkle.ProofInvalid):
            proof_file.verify(bad.encode(), VKEY)
    with pytest.raises(NoteSignatureInvalid):
        proof_file.verify(proof_of(2, key=WITNESS).encode(), VKEY)
    stranger = cosignature.cosigner_key("stranger.example", KEY)
    with pytest.raises(QuorumNotReached):
        proof_file.verify(good.encode(), VKEY, [stranger], 1)


def test_no_changed_byte_is_believed() -> None:
    whole = proof_of(2).encode()
    for at in range(len(whole)):
        changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        with pytest.raises(MeshError):
            proof_file.verify(changed, VKEY, [COSIGNER], 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"c2sp.org/tlog-proof@v1\nindex 1\n\n",
        b"c2sp.org/tlog-proof@v1\nextra AA==\nindex 01\n\nnote\n",
        b"c2sp.org/tlog-proof@v1\nextra AA==\nindex +1\n\nnote\n",
        b"c2sp.org/tlog-proof@v1\nextra AA==\nindex 1\nAA=\n\nnote\n",
        b"c2sp.org/tlog-proof@v2\nextra AA==\nindex 1\n\nnote\n",
        b"c2sp.org/tlog-proof@v1\nextra AA==\nindex 1\n" + b"AA==\n" * 65 + b"\nnote\n",
    ],
)
def test_other_forms_are_refused(data: bytes) -> None:
    with pytest.raises(ProofFileMalformed):
        ProofFile.parse(data)
