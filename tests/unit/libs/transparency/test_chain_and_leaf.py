"""Names, chain and leaves, against the format's published vector."""

from __future__ import annotations

import pytest

from libs.transparency import chain, leaf, merkle
from libs.transparency.leaf import Kind, Leaf, LeafMalformed

ISSUER = "f362a6338ea6e401a3dfa38cfc79d7b652701cc2823a153743a1ea62e42abb00"
LEAF = Leaf(
    Kind.RECEIPT,
    7,
    bytes.fromhex(ISSUER),
    bytes.fromhex("135206c2872b5114a69ec47742d9a660"),
    bytes.fromhex("b3507bee86730499f87999ee332af16bb48a8691e87e445e3caec2ed39614a40"),
)


def test_vector() -> None:
    assert chain.issuer_id(b"\x30" * 44, b"\x01" * 16).hex() == ISSUER
    assert chain.entry_id(LEAF.issuer, 7).hex() == "87983847229772b2a65ead425c9f6b605e0c4410cd2c48e13421b761a1900723"
    start = chain.chain_start("example.org/ledger/1")
    assert start.hex() == "c631595ae2dc3378648551d5afc349506708721d9caf3ec60580cce0935cbd5e"
    hashed = merkle.leaf_hash(LEAF.data())
    assert hashed.hex() == "d3ae01757b3251881c51b256cbcf52637600a67c1c1d3c8291a25a3f82394d39"
    following = chain.chain_next(start, 0, hashed)
    assert following.hex() == "0924cfbf48ab0f7e8daa9d9f0e5395343051c6834101864e7241df0b8b073097"


def test_leaf_reads_back() -> None:
    assert leaf.parse(LEAF.data()) == LEAF
    assert len(LEAF.data()) == leaf.LEAF_SIZE


@pytest.mark.parametrize(
    "data",
    [
        LEAF.data()[:-1],
        b"TML2" + LEAF.data()[4:],
        LEAF.data()[:4] + b"\x0e" + LEAF.data()[5:],
        LEAF.data()[:5] + b"\x01" + LEAF.data()[6:],
        LEAF.data()[:8] + bytes(8) + LEAF.data()[16:],
    ],
    ids=["length", "magic", "kind", "reserved", "sequence zero"],
)
def test_other_bytes_are_no_leaf(data: bytes) -> None:
    with pytest.raises(LeafMalformed) as caught:
        leaf.parse(data)
    assert caught.value.reason == "LEAF_MALFORMED"


def test_only_receipt_amendment_and_usage_are_a_tenants() -> None:
    assert {kind.value for kind in Kind if kind.is_tenants} == {1, 9, 10}
    assert {kind.value for kind in Kind if kind.is_ledgers} == set(range(16, 23))


def test_boot_number_has_sixteen_bytes() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        chain.issuer_id(b"spki", b"short")
