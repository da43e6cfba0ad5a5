"""Tiles over HTTPS: enough to rebuild a signed tree alone, and nothing that no signed tree has."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pymerkle
import pytest

from libs.identity.certificate import pem_of
from libs.transparency import checkpoint, merkle, tiles
from libs.transparency.note import VerifierKey
from libs.transparency.tiles import Tile
from services.ledger.checkpoints.auditing import NoCheckpoint, SignedTree, open_auditor
from services.ledger.serving.https import serving_https
from services.ledger.serving.public import application
from services.ledger.serving.tiles import Tiles
from services.ledger.storage.segments import Geometry
from services.ledger.storage.store import LogStore
from tests.fakes.joined_mesh import KmsCore

from .conftest import ORIGIN, SOURCE, candidate, open_store, sequencer
from .test_https import Authority

SIZE = 600
SIGNED = 520
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
            for tile in tiles.tiles_of(head.size):
                status, content, kind = await fetch(tile.path())
                assert (status, kind, len(content)) == (200, "application/octet-stream", 32 * tile.width)
                if tile.level == 0:
                    _, bundle, _ = await fetch(Tile(None, tile.index, tile.width).path())
                    leaves = tiles.parse_bundle(bundle)
                    assert [merkle.leaf_hash(leaf) for leaf in leaves] == tiles.parse_hashes(content, tile)
                    for leaf in leaves:
                        stranger.append_entry(leaf)
                else:
                    below = [stranger.get_root(256), stranger.get_root(512)]
                    assert merkle.node_hash(*tiles.parse_hashes(content, tile)) == below[1]
            assert stranger.get_size() == SIGNED
            assert stranger.get_root() == head.root


async def test_partial_tiles_of_every_earlier_size_stay(kms: KmsCore, grown_log: Path) -> None:
    with open_store(grown_log, WIDE) as store:
        async with serving(kms, store, SignedTree(SIGNED, bytes(32), b"")) as fetch:
            whole = (await fetch("tile/0/001"))[1]
            for width in (1, 24, 255):
                assert (await fetch(f"tile/0/001.p/{width}"))[1] == whole[: 32 * width]
            assert len(tiles.parse_bundle((await fetch("tile/entries/001.p/24"))[1])) == 24


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
