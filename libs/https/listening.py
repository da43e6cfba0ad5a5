"""It is responsible for the life of a listener: its address, and what still runs when it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.errors import Code, MeshError
from libs.https.connections import Connections
from libs.rpc.address import parse_address

_BACKLOG = 1024


class PortTaken(MeshError):
    """A listener's address cannot be listened on."""

    code = Code.UNAVAILABLE
    reason = "PORT_TAKEN"


@asynccontextmanager
async def listening(address: str, connections: Connections, drain_seconds: float) -> AsyncIterator[int]:
    """Let connections in while the body runs, then let what runs on them end, for `drain_seconds` at most. Yields the
    port; raises `PortTaken`, `AddressMalformed`.
    """
    parsed = parse_address(address)
    try:
        door = socket.create_server((parsed.host, parsed.port), family=parsed.family, backlog=_BACKLOG)
    except OSError as error:
        raise PortTaken(f"cannot listen on {address}: {error.strerror}") from error
    door.setblocking(False)
    async with asyncio.TaskGroup() as tasks:
        connections.open(door, tasks)
        try:
            yield door.getsockname()[1]
        finally:
            connections.close(door)
            door.close()
            await connections.drain(drain_seconds)
