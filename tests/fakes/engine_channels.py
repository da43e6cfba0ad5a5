"""The node's way to an engine whose server is an application of a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web

from services.node.channel import EngineChannel


@asynccontextmanager
async def channel_to(folder: Path, application: web.Application) -> AsyncIterator[EngineChannel]:
    """Serve it on a socket in the folder, and connect."""
    socket = folder / "e.sock"
    async with AsyncExitStack() as stack:
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.UnixSite(runner, str(socket)).start()
        yield await stack.enter_async_context(EngineChannel(socket, "key"))
