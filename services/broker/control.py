"""It is responsible for what the broker asks of its own nats-server: who it is, and over the system account the rest.

Every use makes a connection of its own: there is none to keep, and none that could be to the server before a restart.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client

from libs.errors import Code, MeshError
from libs.events.cancellation import heed_cancellation
from libs.events.connect import MeshClient
from libs.events.subjects import inbox_prefix

_HANDSHAKE_SECONDS = 5.0
_REQUEST_SECONDS = 5.0
_PAGE = 256
_ROUNDS = 3
"""How often it is looked whether those that were cut are gone."""

CONTROLS = ("RELOAD", "CONNZ", "KICK")
"""What is asked, and so what the broker's own user is granted."""

log = structlog.get_logger()


class ServerNotControlled(MeshError):
    """nats-server did not do as it was asked, or did not say so."""

    code = Code.UNAVAILABLE
    reason = "NATS_SERVER_NOT_CONTROLLED"


@dataclass(frozen=True, slots=True)
class Address:
    """One nats-server that answers. `id` is another one after every start."""

    host: str
    port: int
    server_name: str
    id: str


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection to nats-server. `spki_sha256` is empty for one that showed no key."""

    number: int
    user: str
    spki_sha256: bytes


class Control:
    """A connection to the system account."""

    def __init__(self, client: Client, server_id: str) -> None:
        self._client = client
        self._server_id = server_id

    async def reload(self) -> None:
        """Have the server read its files again. When this returns, it has. Raises `ServerNotControlled`."""
        answer = await self._ask("RELOAD", {})
        if "error" in answer:
            raise ServerNotControlled(f"nats-server refused its files: {answer['error']}")

    async def cut_all_but(self, keys: Collection[bytes]) -> int:
        """End every connection that shows another key; return how many. Raises `ServerNotControlled`.

        One that is still on its way in is not found: it takes another call, later.
        """
        cut = 0
        for _ in range(_ROUNDS):
            strangers = [found async for found in self._connections() if found.spki_sha256 not in keys]
            if not strangers:
                return cut
            for stranger in strangers:
                # One that has gone by itself is an error of this answer, and of nothing else.
                await self._ask("KICK", {"cid": stranger.number})
                log.warning("connection without a lease cut", user=stranger.user, key=stranger.spki_sha256.hex())
            cut += len(strangers)
        raise ServerNotControlled("connections without a lease stay")

    async def _connections(self) -> AsyncIterator[Connection]:
        """Those that were let in; the others have said nothing that counts."""
        offset, total = 0, 1
        while offset < total:
            answer = await self._ask("CONNZ", {"auth": True, "offset": offset, "limit": _PAGE})
            try:
                found, total = answer["data"]["connections"], int(answer["data"]["total"])
                for connection in found:
                    if "authorized_user" in connection:
                        yield _connection(connection)
            except (LookupError, TypeError, ValueError) as error:
                raise ServerNotControlled("nats-server does not say who is connected") from error
            offset += _PAGE

    async def _ask(self, what: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        subject = f"$SYS.REQ.SERVER.{self._server_id}.{what}"
        message = await self._client.request(subject, json.dumps(request).encode(), timeout=_REQUEST_SECONDS)
        answer = json.loads(message.data)
        if not isinstance(answer, dict):
            raise ServerNotControlled(f"nats-server did not answer {what}")
        return answer


@asynccontextmanager
async def open_control(address: Address, tls: ssl.SSLContext) -> AsyncIterator[Control]:
    """Connect to the system account. Whatever goes wrong, also in the body, is raised as `ServerNotControlled`."""
    client = MeshClient(lambda: tls)
    try:
        try:
            await client.connect(
                f"tls://{address.host}:{address.port}",
                tls=tls,
                tls_hostname=address.server_name,
                tls_handshake_first=True,
                allow_reconnect=False,
                connect_timeout=int(_HANDSHAKE_SECONDS),
                name="broker",
                inbox_prefix=inbox_prefix("broker"),
                error_cb=_note,
            )
            yield Control(client, address.id)
        finally:
            await _close(client)
    except (OSError, ValueError, nats.errors.Error) as error:
        raise ServerNotControlled(str(error) or type(error).__name__) from error


async def greeting(host: str, port: int, server_name: str, tls: ssl.SSLContext) -> str | None:
    """Return the id of the nats-server that shakes hands and greets there; None if none does."""
    try:
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=server_name)
            try:
                line = await reader.readline()
            finally:
                # Without the goodbye that TLS has: the server would not wait for it, and it says nothing here.
                writer.transport.abort()
        return str(json.loads(line.removeprefix(b"INFO "))["server_id"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _connection(said: Mapping[str, Any]) -> Connection:
    certificates = said.get("tls_peer_certs") or [{"spki_sha256": ""}]
    # The leaf comes first.
    return Connection(int(said["cid"]), str(said["authorized_user"]), bytes.fromhex(certificates[0]["spki_sha256"]))


async def _close(client: Client) -> None:
    try:
        await client.close()
    finally:
        heed_cancellation()


async def _note(error: Exception) -> None:
    log.info("nats-server's system account", error=str(error) or type(error).__name__)
