"""`teemesh ledger check-proof`: what it prints of a proof, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.transparency import checkpoint, cose_receipt, cosignature, merkle
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.cose_receipt import CoseReceipt
from libs.transparency.cosignature import QuorumNotReached
from libs.transparency.leaf import Kind, Leaf
from libs.transparency.note import NoteSignatureInvalid, VerifierKey
from libs.transparency.proof_file import ProofFile
from libs.transparency.quorum import Quorum, WitnessesTooFew
from services.cli.__main__ import main
from services.cli.ledger.prove import check_proof

ORIGIN = "mesh.local/ledger/1"
KEY, WITNESS, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (6, 7, 8))
VKEY = VerifierKey(ORIGIN, KEY.public_key().public_bytes_raw()).text()
WITNESS_KEY = cosignature.cosigner_key("witness.example", WITNESS).text()
STRANGER_KEY = cosignature.cosigner_key("stranger.example", STRANGER).text()
OTHER_KEY = cosignature.cosigner_key("witness.example", STRANGER).text()
LEAF = Leaf(Kind.POLICY, 1, b"\x01" * 32, b"\x02" * 16, b"\x03" * 32)


def proof() -> bytes:
    tree = Checkpoint(ORIGIN, 1, merkle.leaf_hash(LEAF.data()))
    line = cosignature.cosign(tree, "witness.example", WITNESS, 1_700_000_000)
    return ProofFile(LEAF.data(), 0, (), cosignature.attach(checkpoint.sign(tree, KEY), [line])).encode()


def test_it_says_what_is_proven_and_by_whom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "0.tlog-proof"
    path.write_bytes(proof())
    assert main(["ledger", "check-proof", str(path), "--vkey", VKEY, "--witness", WITNESS_KEY]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"entry 0 of {ORIGIN}: policy, number 1 of its issuer"
    assert said[2] == f"commitment {'03' * 32}"
    assert said[-1] == "cosigned by witness.example"
    path.write_bytes(proof().replace(b"index 0", b"index 1"))
    assert main(["ledger", "check-proof", str(path), "--vkey", VKEY]) == 1
    assert "PROOF_INVALID" in capsys.readouterr().err


def test_a_witness_that_did_not_cosign_is_missed() -> None:
    with pytest.raises(QuorumNotReached):
        check_proof(proof(), VKEY, Quorum.of([WITNESS_KEY, STRANGER_KEY], None))
    one = Quorum.of([WITNESS_KEY, STRANGER_KEY], 1)
    assert check_proof(proof(), VKEY, one)[-1] == "cosigned by witness.example"
    assert check_proof(proof(), VKEY)[-1] == "cosigned by none that was asked for"
    with pytest.raises(WitnessesTooFew):
        check_proof(proof(), VKEY, Quorum.of([WITNESS_KEY], 2))
    with pytest.raises(WitnessesTooFew):  # One witness by two of its keys.
        Quorum.of([WITNESS_KEY, OTHER_KEY], 2)


def test_another_logs_key_is_refused() -> None:
    other = VerifierKey(ORIGIN, STRANGER.public_key().public_bytes_raw()).text()
    with pytest.raises(NoteSignatureInvalid):
        check_proof(proof(), other)


def test_a_cose_receipt_is_checked_with_its_leaf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Leaf(Kind.POLICY, 2, b"\x01" * 32, b"\x02" * 16, b"\x03" * 32)
    left, right = (merkle.leaf_hash(leaf.data()) for leaf in (LEAF, other))
    signature = cose_receipt.sign(Checkpoint(ORIGIN, 2, merkle.node_hash(left, right)), KEY)
    receipt, leaf = tmp_path / "0.cose", tmp_path / "0.cose.leaf"
    receipt.write_bytes(CoseReceipt(ORIGIN, 2, 0, (right,), signature).encode())
    leaf.write_bytes(LEAF.data())
    command = ["ledger", "check-proof", str(receipt), "--vkey", VKEY, "--leaf", str(leaf)]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith(f"an entry of {ORIGIN}: policy, number 1 of its issuer\n")
    assert main([*command, "--witness", WITNESS_KEY]) == 1
    assert "WITNESSES_TOO_FEW" in capsys.readouterr().err
    leaf.write_bytes(other.data())
    assert main(command) == 1
    assert "COSE_RECEIPT_INVALID" in capsys.readouterr().err
