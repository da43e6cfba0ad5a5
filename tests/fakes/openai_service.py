"""A plain OpenAI-compatible service over HTTPS: it proves nothing, and answers what it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from libs.rpc.tls import load_server_context
from tests.fakes.pki import ThrowawayCa


@dataclass(slots=True)
class OpenAiTwin:
    """What it was asked, and what it answers."""

    ca: ThrowawayCa = field(default_factory=ThrowawayCa)
    status: int = 200
    pieces: tuple[bytes, ...] = (b'{"id":"chatcmpl-9","choi', b'ces":[{"finish_reason":"stop"}]}')
    content_type: str = "application/json"
    breaks: bool = False
    location: str | None = None
    """Where it says to go, if its status is one of those that say so."""
    paths: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    port: int = 0

    @property
    def origin(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)
        self.bodies.append(await request.read())
        self.keys.append(request.headers.get("Authorization"))
        headers = {"Content-Type": self.content_type, **({} if self.location is None else {"Location": self.location})}
        response = web.StreamResponse(status=self.status, headers=headers)
        await response.prepare(request)
        for piece in self.pieces:
            await response.write(piece)
        if self.breaks and request.transport is not None:
            request.transport.abort()
        return response


@asynccontextmanager
async def openai_service() -> AsyncIterator[OpenAiTwin]:
    twin = OpenAiTwin()
    application = web.Application()
    application.router.add_route("*", "/v1/{path:.*}", twin.answer)
    key, certificate = twin.ca.leaf(None, "localhost", ip="127.0.0.1")
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        context = load_server_context(key_pem=key, certificate_pem=certificate)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        twin.port = runner.addresses[0][1]
        yield twin
    finally:
        await runner.cleanup()
