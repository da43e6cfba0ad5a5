"""A log by its tiles: whatever does not lead to the signed root is named."""

from __future__ import annotations

import secrets

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.audit.log.findings import Status
from libs.audit.log.notes import Key, read_checkpoint
from libs.audit.log.promises import Held
from libs.audit.log.served import ServedQuestion, read_served
from libs.audit.log.tiles import TileTree
from libs.transparency import checkpoint, merkle
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.leaf import Kind, Leaf
from tests.fakes.served_log import tiles_of
from tests.fakes.written_log import ORIGIN, TAG_KEY, VAULT, tag_of

from .conftest import said

SIGNER = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
KEYS = (Key(ORIGIN, SIGNER.public_key().public_bytes_raw()),)
ISSUER = b"\x11" * 32


def leaf(number: int, kind: Kind = Kind.RECEIPT, tag_number: int | None = None) -> bytes:
    mark = tag_of(VAULT.vault_id, tag_number or number)
    return Leaf(kind, number, ISSUER, mark, secrets.token_bytes(32)).data()


def signed(leaves: list[bytes], key: Ed25519PrivateKey = SIGNER) -> bytes:
    return checkpoint.sign(Checkpoint(ORIGIN, len(leaves), merkle.root_of(map(merkle.leaf_hash, leaves))), key)


@pytest.fixture(scope="module")
def leaves() -> list[bytes]:
    return [leaf(number) for number in range(1, 601)]


@pytest.fixture
def served(leaves: list[bytes]) -> dict[str, bytes]:
    return tiles_of(signed(leaves), leaves)


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("asked", [{}, {"with_leaves": False}, {"sampled": [0, 255, 256, 599]}])
def test_served_log_holds(served: dict[str, bytes], asked: dict[str, object]) -> None:
    reading = read_served(served.get, ServedQuestion(KEYS, **asked))  # type: ignore[arg-type]
    assert (reading.findings.worst, said(reading), reading.size) == (Status.SOUND, "", 600)
    assert reading.newest is not None


def test_wrong_bit_in_any_tile_or_bundle_is_damage(served: dict[str, bytes]) -> None:
    names = ["tile/0/000", "tile/0/002.p/88", "tile/1/000.p/2", "tile/entries/001", "tile/entries/002.p/88"]
    for name in names:
        for at in range(0, len(served[name]), 97):
            reading = read_served({**served, name: changed(served[name], at)}.get, ServedQuestion(KEYS))
            assert reading.findings.worst is Status.DAMAGED, (name, at)


def test_sampled_entry_that_is_not_in_the_tree_is_damage(served: dict[str, bytes]) -> None:
    forged = {**served, "tile/entries/001": changed(served["tile/entries/001"], 200)}
    assert read_served(forged.get, ServedQuestion(KEYS, sampled=[300])).findings.worst is Status.SOUND
    assert read_served(forged.get, ServedQuestion(KEYS, sampled=[258])).findings.worst is Status.DAMAGED


def test_sampled_leaf_hash_that_the_upper_tiles_do_not_hold_is_damage(
    served: dict[str, bytes], leaves: list[bytes]
) -> None:
    other = leaf(999)
    bundle, tile = served["tile/entries/001"], served["tile/0/001"]
    at = 5 * 98 + 2
    forged = {
        **served,
        "tile/entries/001": bundle[:at] + other + bundle[at + 96 :],
        "tile/0/001": tile[: 5 * 32] + merkle.leaf_hash(other) + tile[6 * 32 :],
    }
    reading = read_served(forged.get, ServedQuestion(KEYS, sampled=[256 + 5]))
    assert "entry 261 is not in the signed tree" in said(reading)
    assert read_served(forged.get, ServedQuestion(KEYS)).findings.worst is Status.DAMAGED


def test_tile_that_is_missing_is_named(served: dict[str, bytes]) -> None:
    for name in ("checkpoint", "tile/0/001", "tile/1/000.p/2", "tile/entries/002.p/88"):
        reading = read_served({path: data for path, data in served.items() if path != name}.get, ServedQuestion(KEYS))
        assert (reading.findings.worst, reading.findings.wrong[0].file) == (Status.DAMAGED, name)


def test_full_tile_stands_in_for_a_partial_one(leaves: list[bytes]) -> None:
    grown = [*leaves, *[leaf(number) for number in range(601, 800)]]
    served = {**tiles_of(b"", grown), "checkpoint": signed(leaves)}
    served["tile/1/000.p/2"] = served["tile/1/000.p/3"][:64]
    assert read_served(served.get, ServedQuestion(KEYS)).findings.worst is Status.SOUND


def test_signed_head_by_another_key_is_not_proven(served: dict[str, bytes], leaves: list[bytes]) -> None:
    forged = {**served, "checkpoint": signed(leaves, Ed25519PrivateKey.generate())}
    assert read_served(forged.get, ServedQuestion(KEYS)).findings.worst is Status.UNPROVEN
    assert read_served(served.get, ServedQuestion(())).findings.worst is Status.UNPROVEN


def test_older_head_is_held_against_the_tiles(served: dict[str, bytes], leaves: list[bytes]) -> None:
    for size in (1, 256, 300, 600):
        old = Held("old", None, read_checkpoint(signed(leaves[:size])))
        assert read_served(served.get, ServedQuestion(KEYS, outside=[old])).findings.worst is Status.SOUND
        other = Held("old", None, read_checkpoint(signed([*leaves[: size - 1], leaf(1000)])))
        reading = read_served(served.get, ServedQuestion(KEYS, outside=[other]))
        assert reading.findings.worst is Status.DIVERGED
    longer = Held("old", None, read_checkpoint(signed([*leaves, leaf(601)])))
    assert read_served(served.get, ServedQuestion(KEYS, outside=[longer])).findings.worst is Status.ROLLED_BACK


def test_numbers_that_are_missing_or_stand_twice_are_told(leaves: list[bytes]) -> None:
    holed = [*leaves[:5], *leaves[6:10], leaf(3)]
    reading = read_served(tiles_of(signed(holed), holed).get, ServedQuestion(KEYS))
    assert "number 3 stands for a second entry" in said(reading)
    assert any("number 6 missing" in remark for remark in reading.findings.remarks)


def test_tenants_entries_are_not_counted_where_not_every_leaf_is_read(leaves: list[bytes]) -> None:
    for asked in ({"with_leaves": False}, {"sampled": (1, 2)}):
        served = tiles_of(signed(leaves), leaves)
        reading = read_served(served.get, ServedQuestion(KEYS, tag_key=TAG_KEY, **asked))
        assert (reading.findings.worst, reading.tenant_entries) == (Status.SOUND, None)
        assert "the tenant's entries are not counted: not every leaf was read" in reading.findings.remarks


def test_tenant_misses_its_number_in_served_leaves(leaves: list[bytes]) -> None:
    assert (
        read_served(tiles_of(signed(leaves), leaves).get, ServedQuestion(KEYS, tag_key=TAG_KEY)).tenant_entries == 600
    )
    holed = [*leaves[:5], *leaves[6:]]
    reading = read_served(tiles_of(signed(holed), holed).get, ServedQuestion(KEYS, tag_key=TAG_KEY))
    assert "numbers 6 to 6 of the vault are on no leaf before number 7" in said(reading)
    holed = [*leaves[:5], leaf(30_001)]
    reading = read_served(tiles_of(signed(holed), holed).get, ServedQuestion(KEYS, tag_key=TAG_KEY))
    assert "numbers 6 to 30000 of the vault are on no leaf before number 30001" in said(reading)


def test_paths_have_groups_of_three_digits() -> None:
    asked: list[str] = []

    def fetch(path: str) -> bytes | None:
        asked.append(path)
        return bytes(256 * 32)

    tree = TileTree(fetch, 2**40)
    for number in (0, 999, 1_234, 1_234_067):
        tree.root_over(number << 8, (number << 8) + 1)
    assert asked == ["tile/0/000", "tile/0/999", "tile/0/x001/234", "tile/0/x001/x234/067"]


def test_leaf_of_another_form_is_damage(leaves: list[bytes]) -> None:
    odd = [*leaves[:3], b"TML2" + leaves[3][4:]]
    assert "entry 3 has no leaf of version 1" in said(read_served(tiles_of(signed(odd), odd).get, ServedQuestion(KEYS)))
