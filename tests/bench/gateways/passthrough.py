"""Responsible for the least that a gateway in Python can do: TLS ends here, and bytes go on. Run by granian."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

_ENGINE = os.environ.get("PASSTHROUGH_ENGINE", "")
_sessions: dict[str, aiohttp.ClientSession] = {}


async def app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """The ASGI application."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        event = await receive()
        body, more = body + event["body"], event.get("more_body", False)
    if scope["method"] != "POST":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})
        return
    if not _sessions:
        _sessions["engine"] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    async with _sessions["engine"].post(_ENGINE + scope["path"], data=body) as answer:
        headers = [(b"content-type", answer.headers["Content-Type"].encode())]
        if "Content-Length" in answer.headers:
            headers.append((b"content-length", answer.headers["Content-Length"].encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        async for chunk in answer.content.iter_any():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
