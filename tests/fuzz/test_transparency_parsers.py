"""Hostile bytes raise only the parsers' own errors, and what is read has one form."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.errors import MeshError
from libs.transparency import cbor, checkpoint, cosignature, note, tiles
from libs.transparency.add_checkpoint import AddCheckpoint, AddKey
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.cose_receipt import CoseReceipt
from libs.transparency.cosignature import CosignerKey
from libs.transparency.leaf import Kind, Leaf
from libs.transparency.proof_file import ProofFile
from libs.transparency.tiles import Tile

Parser = Callable[[bytes], object]

KEY = Ed25519PrivateKey.from_private_bytes(b"\x06" * 32)
TREE = Checkpoint("mesh.local/ledger/1", 12, b"\x0a" * 32)
LINE = cosignature.cosign(TREE, "witness.example", KEY, 1)
SIGNED = cosignature.attach(checkpoint.sign(TREE, KEY), [LINE])
REQUEST = AddCheckpoint(5, (b"\x01" * 32, b"\x02" * 32), SIGNED)
LEAF = Leaf(Kind.POLICY, 1, b"\x01" * 32, b"\x02" * 16, b"\x03" * 32).data()

PARSERS: dict[str, tuple[Parser, bytes]] = {
    "request": (lambda data: AddCheckpoint.parse(data).encode() == data, REQUEST.encode()),
    "key": (AddKey.parse, AddKey(REQUEST, b"\x30", b"\x31", b"{}", (b"{}",), ()).encode()),
    "proof": (lambda data: ProofFile.parse(data).encode() == data, ProofFile(LEAF, 3, (LEAF[:32],), SIGNED).encode()),
    "receipt": (
        lambda data: CoseReceipt.parse(data).encode() == data,
        CoseReceipt(TREE.origin, 12, 3, (LEAF[:32],), bytes(64)).encode(),
    ),
    "cbor": (lambda data: cbor.encode(cbor.decode(data)) == data, cbor.encode({1: (2, b"x", "y", None)})),
    "lines": (note.parse_lines, LINE.line().encode()),
    "tile": (
        lambda data: tiles.parse_path(data.decode("latin-1")).path().encode("latin-1") == data,
        Tile(0, 1234, 5).path().encode(),
    ),
    "cosigner": (
        lambda data: CosignerKey.parse(data.decode("latin-1")),
        cosignature.cosigner_key("witness.example", KEY).text().encode(),
    ),
}


def refused_or_of_one_form(parse: Parser, data: bytes) -> None:
    with contextlib.suppress(MeshError):
        assert parse(data) is not False


@pytest.mark.parametrize("name", PARSERS)
def test_good_bytes_are_read(name: str) -> None:
    parse, good = PARSERS[name]
    assert parse(good)


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=60)
@given(data=st.binary(max_size=300))
def test_any_bytes(name: str, data: bytes) -> None:
    refused_or_of_one_form(PARSERS[name][0], data)


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=60)
@given(at=st.integers(0, 2000), byte=st.integers(0, 255), length=st.integers(0, 3))
def test_good_bytes_with_a_piece_replaced(name: str, at: int, byte: int, length: int) -> None:
    parse, good = PARSERS[name]
    at %= len(good)
    refused_or_of_one_form(parse, good[:at] + bytes([byte]) * length + good[at + 1 :])
