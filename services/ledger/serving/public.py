"""It is responsible for what the log shows to anyone over HTTPS: signed notes, tiles, and bundles of leaf data.

The paths are those of https://c2sp.org/tlog-tiles. Leaf data names no tenant, time or content.
"""

from __future__ import annotations

from typing import Protocol

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from libs.errors import MeshError
from libs.transparency.tiles import Tile, TileMalformed, parse_path
from services.ledger.checkpoints.auditing import NoCheckpoint, SignedTree
from services.ledger.serving.tiles import TileNotSigned

_MUTABLE = {"Cache-Control": "no-cache"}
_IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}
_ABSENT = (NoCheckpoint, TileMalformed, TileNotSigned)

log = structlog.get_logger()


class Notes(Protocol):
    """Who knows the newest signed trees."""

    @property
    def newest(self) -> SignedTree: ...

    @property
    def witnessed(self) -> SignedTree: ...


class TileReader(Protocol):
    """Who reads tiles."""

    async def read(self, tile: Tile) -> bytes: ...


def application(notes: Notes, tiles: TileReader) -> web.Application:
    """Return what is served."""

    async def newest(request: web.Request) -> web.Response:
        return _note(notes.newest)

    async def witnessed(request: web.Request) -> web.Response:
        return _note(notes.witnessed)

    async def tile(request: web.Request) -> web.Response:
        # The path as it was sent: another spelling of it names nothing.
        content = await tiles.read(parse_path(request.rel_url.raw_path.removeprefix("/")))
        return web.Response(body=content, content_type="application/octet-stream", headers=_IMMUTABLE)

    served = web.Application(client_max_size=1024, middlewares=[_absent])
    served.router.add_get("/checkpoint", newest)
    served.router.add_get("/checkpoint.witnessed", witnessed)
    served.router.add_get("/tile/{path:.+}", tile)
    return served


@web.middleware
async def _absent(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except _ABSENT as error:
        return _refusal(404, error)
    except MeshError as error:
        log.error("not served", path=request.path, reason=error.reason, detail=str(error))
        return _refusal(503, error)


def _note(signed: SignedTree) -> web.Response:
    return web.Response(body=signed.note, content_type="text/plain", charset="utf-8", headers=_MUTABLE)


def _refusal(status: int, error: MeshError) -> web.Response:
    return web.Response(status=status, text=f"{error.reason}\n", headers=_MUTABLE)
