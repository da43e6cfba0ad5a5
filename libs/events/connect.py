"""Responsible for connections to NATS: mutual TLS 1.3 before the first protocol byte, and back again for ever.

Without the handshake first, a server that offers no TLS would be spoken to in plaintext. The broker is not trusted, yet
nobody but the broker shall be able to delay or drop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext

from libs.errors import Code, MeshError

_CONNECT_SECONDS = 3
_RETRY_SECONDS = 1
_PING_SECONDS = 10
_REQUEST_SECONDS = 5.0

log = structlog.get_logger()

TlsContext = Callable[[], ssl.SSLContext]


class BrokerUnavailable(MeshError):
    """No broker answers, or none that would let this service in."""

    code = Code.UNAVAILABLE
    reason = "BROKER_UNAVAILABLE"


class _MeshClient(Client):
    """A client that asks for its TLS context at every handshake, as mesh certificates live for an hour."""

    def __init__(self, tls: TlsContext) -> None:
        super().__init__()
        self._tls = tls

    @property
    def ssl_context(self) -> ssl.SSLContext:
        context = self._tls()
        if context.minimum_version < ssl.TLSVersion.TLSv1_3:
            raise ssl.SSLError("the mesh speaks TLS 1.3 or nothing")
        return context

    async def close(self) -> None:
        if not self.is_connected:
            # nats-py would write what is pending to a TLS transport that is gone, and fail before it has cleaned up.
            self._pending, self._pending_data_size = [], 0
        await super().close()


class NatsLink:
    """A connection that is always being kept. The client behind it changes when the broker turned it away."""

    def __init__(self) -> None:
        self._client: _MeshClient | None = None
        self._connected = asyncio.Event()
        self._next = asyncio.Event()
        self.connections = 0
        """How often a connection was made: whoever must compare positions at each connect compares this first."""

    @property
    def is_connected(self) -> bool:
        return self._connected.is_set()

    async def client(self, timeout: float) -> Client:
        """Return the connected client. Raises `BrokerUnavailable` when there is none in time."""
        try:
            async with asyncio.timeout(timeout):
                while self._client is None or not self._connected.is_set():
                    await self._connected.wait()
        except TimeoutError as error:
            raise BrokerUnavailable("the broker cannot be reached") from error
        return self._client

    async def jetstream(self, timeout: float) -> JetStreamContext:
        """Return a JetStream context on the connected client. Raises `BrokerUnavailable`."""
        return (await self.client(timeout)).jetstream(timeout=_REQUEST_SECONDS)

    async def connected_after(self, seen: int) -> int:
        """Wait for a connection later than number `seen`, and return its number."""
        while self.connections <= seen:
            await self._next.wait()
        return self.connections

    def _up(self, client: _MeshClient) -> None:
        self._client = client
        self.connections += 1
        self._connected.set()
        self._next.set()
        self._next = asyncio.Event()

    def _down(self) -> None:
        self._connected.clear()


@asynccontextmanager
async def connect_nats(
    url: str,
    tls_context: TlsContext,
    *,
    server_name: str,
    name: str,
    inbox_prefix: str,
) -> AsyncIterator[NatsLink]:
    """Keep a connection until the body ends. It is entered at once, whether or not a broker is there.

    `server_name` is what the broker's certificate must be for; `inbox_prefix` is the one this role may subscribe under.
    """
    if urlsplit(url).scheme != "tls":
        raise ValueError("the broker's url must begin with tls://")
    link = NatsLink()
    async with asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(_keep(link, url, tls_context, server_name, name, inbox_prefix))
        try:
            yield link
        finally:
            keeping.cancel()


async def _keep(
    link: NatsLink, url: str, tls_context: TlsContext, server_name: str, name: str, inbox_prefix: str
) -> None:
    while True:
        closed = asyncio.Event()
        client = _MeshClient(tls_context)
        told = _Callbacks(link, client, closed, url)
        try:
            await client.connect(
                url,
                tls=tls_context(),
                tls_hostname=server_name,
                tls_handshake_first=True,
                name=name,
                inbox_prefix=inbox_prefix,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RETRY_SECONDS,
                connect_timeout=_CONNECT_SECONDS,
                ping_interval=_PING_SECONDS,
                max_outstanding_pings=2,
                error_cb=told.error,
                disconnected_cb=told.disconnected,
                reconnected_cb=told.reconnected,
                closed_cb=told.closed,
            )
            await told.reconnected()
            # nats-py gives up for good when the broker turns it away, for example while its certificate is renewed.
            await closed.wait()
            await asyncio.sleep(_RETRY_SECONDS)
        finally:
            link._down()
            await client.close()


class _Callbacks:
    """What nats-py reports, logged and passed on."""

    def __init__(self, link: NatsLink, client: _MeshClient, closed: asyncio.Event, url: str) -> None:
        self._link = link
        self._client = client
        self._closed = closed
        self._url = url

    async def error(self, error: Exception) -> None:
        log.warning("broker error", url=self._url, error=str(error) or type(error).__name__)

    async def disconnected(self) -> None:
        self._link._down()
        log.warning("broker disconnected", url=self._url)

    async def reconnected(self) -> None:
        self._link._up(self._client)
        log.info("broker connected", url=self._url)

    async def closed(self) -> None:
        self._link._down()
        self._closed.set()
