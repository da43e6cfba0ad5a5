"""HTTP to an engine: what it answers where it is asked, and nowhere else."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from libs.aci.endpoints import CHAT
from tests.fakes.engine_channels import channel_to


async def test_an_engine_that_sends_a_request_elsewhere_is_not_followed(tmp_path: Path) -> None:
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.path)
        status = 200 if request.path == "/elsewhere" else 307
        return web.json_response({}, status=status, headers={"Location": "/elsewhere"})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", elsewhere)
    async with channel_to(tmp_path, application) as channel:
        async with channel.post(CHAT, b"{}", 30.0) as answer:
            assert answer.status == 307
        assert await channel.metrics() is None
        await channel.greet()
    assert asked == [CHAT.path, "/metrics", "/v1/models"]
