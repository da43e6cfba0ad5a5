"""Clients of a listener that serves somebody's application: some behave, others do not."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import replace

from tests.fakes.hostile_http import Hostile, hostile_requests

PATIENCE_SECONDS = 20.0


def unreadable_requests(path: str) -> Mapping[str, Hostile]:
    """The requests that nobody should send, whoever serves `path`: those that a router refuses for what they are as
    messages, and not for what it serves.
    """
    return {
        name: replace(hostile, data=hostile.data.replace(b"/health", path.encode()))
        for name, hostile in hostile_requests("sk-any", b"{}").items()
        if not hostile.keeps
    }


async def status_of(port: int, tls: ssl.SSLContext, data: bytes) -> int:
    """Send bytes as they are; return the status of the only answer, after which the connection is closed."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        try:
            writer.write(data)
            answer = await reader.read()
        finally:
            writer.transport.abort()
    assert answer.count(b"HTTP/1.") == 1, answer
    return int(answer.split(b" ", 2)[1])
