"""COSE receipts, and the strict CBOR that they are written in."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs.transparency import cbor, cose_receipt, merkle
from libs.transparency.cbor import CborMalformed, Tagged
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.cose_receipt import CoseReceipt, CoseReceiptInvalid
from libs.transparency.note import VerifierKey
from libs.transparency.tree import Tree

ORIGIN = "mesh.local/ledger/1"
KEY = Ed25519PrivateKey.from_private_bytes(b"\x06" * 32)
VKEY = VerifierKey(ORIGIN, KEY.public_key().public_bytes_raw())
OTHER = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)


@pytest.mark.parametrize(
    ("item", "encoded"),
    [
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (1000, "1903e8"),
        (1_000_000, "1a000f4240"),
        (2**64 - 1, "1bffffffffffffffff"),
        (-1, "20"),
        (-100, "3863"),
        (-1000, "3903e7"),
        (None, "f6"),
        (b"", "40"),
        (b"\x01\x02\x03\x04", "4401020304"),
        ("", "60"),
        ("\N{LATIN SMALL LETTER U WITH DIAERESIS}", "62c3bc"),
        ((), "80"),
        ((1, (2, 3), (4, 5)), "8301820203820405"),
        (tuple(range(1, 26)), "98190102030405060708090a0b0c0d0e0f101112131415161718181819"),
        ({}, "a0"),
        ({3: 4, 1: 2}, "a201020304"),
        (Tagged(1, 1_363_896_240), "c11a514b67b0"),
    ],
)
def test_items_are_those_of_the_rfcs_appendix(item: cbor.Item, encoded: str) -> None:
    """RFC 8949, appendix A."""
    assert cbor.encode(item).hex() == encoded
    assert cbor.decode(bytes.fromhex(encoded)) == item


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "1817",  # A longer form than needed.
        "190018",
        "5f42010243030405ff",  # Indefinite lengths.
        "9f0102ff",
        "bf0102ff",
        "f4",  # Simple values and floats.
        "f7",
        "f90000",
        "fb3ff0000000000000",
        "62c328",  # No UTF-8.
        "4401",
        "8201",
        "a101",
        "a203040102",  # Keys out of order.
        "a201020103",  # A key twice.
        "a1616101",  # A key of text.
        "0000",
        "9bffffffffffffffff",
        "bbffffffffffffffff",
        "1c",
        "81" * 200 + "00",
    ],
)
def test_other_forms_are_refused(encoded: str) -> None:
    with pytest.raises(CborMalformed):
        cbor.decode(bytes.fromhex(encoded))


def leaf(number: int) -> bytes:
    return b"leaf data %d" % number


def receipt_of(index: int, size: int = 7, key: Ed25519PrivateKey = KEY) -> CoseReceipt:
    tree = Tree()
    for number in range(size):
        tree.append(merkle.leaf_hash(leaf(number)))
    signature = cose_receipt.sign(Checkpoint(ORIGIN, size, tree.root()), key)
    return CoseReceipt(ORIGIN, size, index, tuple(merkle.inclusion_path(tree, index, size)), signature)


def encoded(
    receipt: CoseReceipt,
    *,
    tag: int = 18,
    protected: cbor.Item = None,
    proofs: cbor.Item = None,
    more: cbor.Item = None,
    payload: cbor.Item = None,
) -> bytes:
    """A receipt item by item, as the RFC has it."""
    proof = cbor.encode((receipt.size, receipt.index, receipt.path))
    unprotected = {396: {-1: (proof,)} if proofs is None else proofs}
    if more is not None:
        unprotected[4] = more
    header = cbor.encode({1: -19, 15: {1: ORIGIN}, 395: 1} if protected is None else protected)
    return cbor.encode(Tagged(tag, (header, unprotected, payload, receipt.signature)))


def test_receipt_has_the_rfcs_form_and_verifies() -> None:
    receipt = receipt_of(3)
    assert receipt.encode() == encoded(receipt)
    assert CoseReceipt.parse(receipt.encode()) == receipt
    root = cose_receipt.verify(receipt.encode(), leaf(3), VKEY)
    header = cbor.encode({1: -19, 15: {1: ORIGIN}, 395: 1})
    to_be_signed = cbor.encode(("Signature1", header, b"", root))
    Ed25519PublicKey.from_public_bytes(VKEY.public_key).verify(receipt.signature, to_be_signed)


def test_other_leaf_key_or_log_is_refused() -> None:
    good = receipt_of(3).encode()
    for data, entry, key in (
        (good, leaf(4), VKEY),
        (good, leaf(3), VerifierKey(ORIGIN, OTHER.public_key().public_bytes_raw())),
        (good, leaf(3), VerifierKey("other.example", VKEY.public_key)),
        (receipt_of(3, key=OTHER).encode(), leaf(3), VKEY),
    ):
        with pytest.raises(CoseReceiptInvalid):
            cose_receipt.verify(data, entry, key)


def test_no_changed_byte_proves_another_leaf_or_tree() -> None:
    """Size and index are not signed: changed so that they lead the same way, they prove what they did before."""
    good = receipt_of(3).encode()
    root, same = cose_receipt.verify(good, leaf(3), VKEY), 0
    for at in range(len(good)):
        for bit in (1, 0x20, 0x80):
            changed = good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :]
            with pytest.raises(CoseReceiptInvalid):
                cose_receipt.verify(changed, leaf(4), VKEY)
            try:
                assert cose_receipt.verify(changed, leaf(3), VKEY) == root
            except CoseReceiptInvalid:
                continue
            same += 1
        with pytest.raises(CoseReceiptInvalid):
            cose_receipt.verify(good[:at], leaf(3), VKEY)
    assert same <= 2


def test_other_forms_of_a_receipt_are_refused() -> None:
    receipt = receipt_of(3)
    proof = cbor.encode((7, 3, receipt.path))
    for data in (
        encoded(receipt, tag=17),
        encoded(receipt, payload=b""),
        encoded(receipt, more=b"key"),
        encoded(receipt, protected={1: -8, 15: {1: ORIGIN}, 395: 1}),
        encoded(receipt, protected={1: -19, 395: 1}),
        encoded(receipt, protected={1: -19, 15: {1: ORIGIN}, 395: 2}),
        encoded(receipt, proofs={-1: (proof, proof)}),
        encoded(receipt, proofs={-1: ()}),
        encoded(receipt, proofs={-2: (proof,)}),
        encoded(receipt, proofs={-1: (cbor.encode((7, 3, (1,))),)}),
        cbor.encode((7, 3, receipt.path)),
    ):
        with pytest.raises(CoseReceiptInvalid):
            CoseReceipt.parse(data)
