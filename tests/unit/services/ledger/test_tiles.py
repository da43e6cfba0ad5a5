"""Tiles over HTTPS: enough to rebuild a signed tree alone, or for others' code to verify it, and nothing that no signed
tree has.
"""

from __future__ import annotations

import importlib
import platform
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pymerkle
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.identity.certificate import pem_of
from libs.transparency import checkpoint, cosignature, merkle
from libs.transparency.note import VerifierKey
from libs.transparency.tiles import Tile
from services.ledger.checkpoints.auditing import NoCheckpoint, SignedTree, open_auditor
from services.ledger.serving.https import serving_https
from services.ledger.serving.public import application
from services.ledger.serving.tiles import Tiles
from services.ledger.storage.segments import Geometry
from services.ledger.storage.store import LogStore
from tests.fakes.joined_mesh import KmsCore
from tests.fakes.tile_reader import TileNodes, hashes_in, leaves_in, tiles_in

from .conftest import ORIGIN, SOURCE, candidate, open_store, sequencer
from .test_https import Authority

SIZE = 600
SIGNED = 520
OLDER = 280
HAVE_WHEELS = ("aarch64", "x86_64")
"""Of metamorphic-log, as pyproject.toml says: elsewhere it is not installed."""

WIDE = Geometry()


class Signed:
    """Checkpoints of one signed tree, as the ledger has them."""

    def __init__(self, tree: SignedTree | None) -> None:
        self._tree = tree

    @property
    def newest(self) -> SignedTree:
        if self._tree is None:
            raise NoCheckpoint("nothing was signed yet")
        return self._tree

    witnessed = newest


@pytest.fixture
def grown_log(empty_log: Path) -> Path:
    with open_store(empty_log, WIDE) as store:
        writer = sequencer(store)
        for number, first in enumerate(range(1, SIZE + 1, 40), 1):
            writer.append([candidate(each) for each in range(first, first + 40)], SOURCE, number, number)
    return empty_log


@asynccontextmanager
async def serving(kms: KmsCore, store: LogStore, tree: SignedTree | None) -> AsyncIterator[Fetch]:
    signed = Signed(tree)
    context = ssl.create_default_context(cadata=pem_of(kms.ca.certificate).decode())
    public = application(signed, Tiles(store, signed))  # type: ignore[arg-type]
    async with (
        serving_https("127.0.0.1:0", Authority(kms), public) as port,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
    ):
        yield Fetch(session, f"https://127.0.0.1:{port}")


class Fetch:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def __call__(self, path: str) -> tuple[int, bytes, str]:
        async with self._session.get(f"{self._url}/{path}") as response:
            return response.status, await response.read(), response.headers["Content-Type"]


async def test_a_stranger_verifies_a_signed_tree_from_its_tiles_and_bundles_alone(
    kms: KmsCore, grown_log: Path
) -> None:
    """The stranger is pymerkle: it has the leaf data of the bundles, and comes to the root that the auditor signed."""
    with open_store(grown_log, WIDE) as store:
        async with open_auditor(grown_log, ORIGIN) as auditor:
            tree = await auditor.sign(SIGNED, store.index.tree.root(SIGNED))
        async with serving(kms, store, tree) as fetch:
            status, note, _ = await fetch("checkpoint")
            head = checkpoint.verify(note, VerifierKey(ORIGIN, auditor.checkpoint_key))
            assert (status, head.size) == (200, SIGNED)
            stranger = pymerkle.InmemoryTree(algorithm="sha256")  # type: ignore[no-untyped-call]
            for tile in tiles_in(head.size):
                status, content, kind = await fetch(tile.path())
                assert (status, kind, len(content)) == (200, "application/octet-stream", 32 * tile.width)
                if tile.level == 0:
                    _, bundle, _ = await fetch(Tile(None, tile.index, tile.width).path())
                    leaves = leaves_in(bundle)
                    assert [merkle.leaf_hash(leaf) for leaf in leaves] == hashes_in(content, tile)
                    for leaf in leaves:
                        stranger.append_entry(leaf)
                else:
                    below = [stranger.get_root(256), stranger.get_root(512)]
                    assert merkle.node_hash(*hashes_in(content, tile)) == below[1]
            assert stranger.get_size() == SIGNED
            assert stranger.get_root() == head.root


@dataclass(frozen=True, slots=True)
class Others:
    """What the ledger serves of its log, in the hands of an implementation that shares nothing with this one."""

    code: Any
    """`metamorphic_log`, a verifier in Rust."""
    vkey: str
    older: str
    newest: str
    contents: dict[tuple[int, int], bytes]
    """Tiles, by level and index."""

    def refuses(self) -> pytest.RaisesExc[Exception]:
        return pytest.raises(self.code.VerifyError.Verification)

    def verify_inclusion(self, index: int, contents: dict[tuple[int, int], bytes]) -> None:
        """Prove a leaf by what lies in these tiles."""
        nodes = TileNodes(contents)
        path = merkle.inclusion_path(nodes, index, SIGNED)
        self.code.checkpoint_verify_inclusion(self.newest, [self.vkey], index, nodes.node(0, index), path)

    def verify_consistency(self, contents: dict[tuple[int, int], bytes]) -> None:
        path = merkle.consistency_path(TileNodes(contents), OLDER, SIGNED)
        self.code.checkpoint_verify_consistency(self.older, self.newest, [self.vkey], path)


@pytest.fixture
async def others(kms: KmsCore, grown_log: Path) -> Others:
    if platform.machine() not in HAVE_WHEELS:
        pytest.skip("metamorphic-log has no wheel for this machine")
    code = importlib.import_module("metamorphic_log")
    with open_store(grown_log, WIDE) as store:
        async with open_auditor(grown_log, ORIGIN) as auditor:
            trees = [await auditor.sign(size, store.index.tree.root(size)) for size in (OLDER, SIGNED)]
        notes = []
        for tree in trees:
            async with serving(kms, store, tree) as fetch:
                notes.append((await fetch("checkpoint"))[1].decode())
        async with serving(kms, store, trees[-1]) as fetch:
            contents = {(tile.level or 0, tile.index): (await fetch(tile.path()))[1] for tile in tiles_in(SIGNED)}
    return Others(code, VerifierKey(ORIGIN, auditor.checkpoint_key).text(), notes[0], notes[1], contents)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


async def test_an_implementation_of_others_verifies_checkpoint_and_tiles(others: Others) -> None:
    head = others.code.checkpoint_verify(others.newest, [others.vkey])
    assert (head.origin, head.size, len(others.contents)) == (ORIGIN, SIGNED, 4)
    assert head.root == merkle.root(TileNodes(others.contents), SIGNED)
    for index in range(SIGNED):
        others.verify_inclusion(index, others.contents)
    others.verify_consistency(others.contents)


async def test_cosignatures_do_not_keep_an_implementation_of_others_from_a_checkpoint(others: Others) -> None:
    note, witness = others.newest.encode(), Ed25519PrivateKey.generate()
    line = cosignature.cosign(checkpoint.parse(note), "w1.example", witness, 1_700_000_000)
    witnessed = cosignature.attach(note, [line]).decode()
    assert others.code.checkpoint_verify(witnessed, [others.vkey]).size == SIGNED
    with others.refuses():
        others.code.checkpoint_verify(witnessed, [cosignature.cosigner_key("w1.example", witness).text()])


async def test_an_implementation_of_others_refuses_a_flipped_bit_at_any_byte_of_a_checkpoint(others: Others) -> None:
    note = others.newest.encode()
    for at in range(len(note)):
        with others.refuses():
            others.code.checkpoint_verify(flipped(note, at).decode(), [others.vkey])
    stranger = VerifierKey(ORIGIN, Ed25519PrivateKey.generate().public_key().public_bytes_raw()).text()
    with others.refuses():
        others.code.checkpoint_verify(others.newest, [stranger])


async def test_an_implementation_of_others_refuses_a_flipped_bit_in_any_hash_of_a_tile(others: Others) -> None:
    """Each hash by a leaf whose proof needs it: those of the lowest tiles by their own, those above by the last."""
    for (level, number), content in others.contents.items():
        for place in range(len(content) // merkle.HASH_SIZE):
            index = SIGNED - 1 if level else Tile(0, number).start + place
            changed = others.contents | {(level, number): flipped(content, place * merkle.HASH_SIZE + place % 32)}
            with others.refuses():
                others.verify_inclusion(index, changed)
    with others.refuses():
        others.verify_consistency(others.contents | {(1, 0): flipped(others.contents[1, 0], 0)})


async def test_an_implementation_of_others_refuses_a_flipped_bit_at_any_byte_of_a_proof(others: Others) -> None:
    nodes, index = TileNodes(others.contents), 300
    leaf, path = nodes.node(0, index), merkle.inclusion_path(nodes, index, SIGNED)
    changes = [[*path[:at], flipped(step, byte), *path[at + 1 :]] for at, step in enumerate(path) for byte in range(32)]
    for changed in (*changes, path[:-1], [*path, leaf], []):
        with others.refuses():
            others.code.checkpoint_verify_inclusion(others.newest, [others.vkey], index, leaf, changed)
    with others.refuses():
        others.code.checkpoint_verify_inclusion(others.newest, [others.vkey], index + 1, leaf, path)


async def test_partial_tiles_of_every_earlier_size_stay(kms: KmsCore, grown_log: Path) -> None:
    with open_store(grown_log, WIDE) as store:
        async with serving(kms, store, SignedTree(SIGNED, bytes(32), b"")) as fetch:
            whole = (await fetch("tile/0/001"))[1]
            for width in (1, 24, 255):
                assert (await fetch(f"tile/0/001.p/{width}"))[1] == whole[: 32 * width]
            assert len(leaves_in((await fetch("tile/entries/001.p/24"))[1])) == 24


async def test_what_no_signed_tree_has_is_not_served(kms: KmsCore, grown_log: Path) -> None:
    """The log itself is longer: its leaves are nobody's business before they are signed."""
    unsigned = ("tile/0/002", "tile/0/002.p/9", "tile/entries/002.p/9", "tile/1/000.p/3", "tile/2/000.p/1")
    distant = ("tile/63/000", "tile/0/x999/x999/x999/x999/999")
    malformed = ("tile/0/2", "tile/0/000/", "tile/entries/000.p/300", "tile/leaves/000")
    with open_store(grown_log, WIDE) as store:
        async with serving(kms, store, SignedTree(SIGNED, bytes(32), b"")) as fetch:
            for path in (*unsigned, *distant):
                assert (await fetch(path))[:2] == (404, b"TILE_NOT_SIGNED\n")
            for path in malformed:
                assert (await fetch(path))[:2] == (404, b"TILE_MALFORMED\n")


async def test_nothing_is_served_before_something_was_signed(kms: KmsCore, grown_log: Path) -> None:
    with open_store(grown_log, WIDE) as store:
        async with serving(kms, store, None) as fetch:
            for path in ("checkpoint", "checkpoint.witnessed", "tile/0/000", "tile/entries/000"):
                assert (await fetch(path))[:2] == (404, b"NO_CHECKPOINT\n")
