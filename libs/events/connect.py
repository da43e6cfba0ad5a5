"""Responsible for connections to NATS: mutual TLS 1.3 before the first protocol byte, and back again for ever.

When the certificate is renewed, another connection is made with it and takes over; what is under way on the one before
has time to end there.

Without the handshake first, a server that offers no TLS would be spoken to in plaintext. The broker is not trusted, yet
nobody but the broker shall be able to delay or drop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport
from nats.js import JetStreamContext

from libs.errors import Code, MeshError
from libs.events.admission import Admission, stay_admitted, until_admitted
from libs.events.cancellation import heeding_cancellation

_CONNECT_SECONDS = 3
_RETRY_SECONDS = 1
_PING_SECONDS = 10
_REQUEST_SECONDS = 5.0
_LINGER_SECONDS = _REQUEST_SECONDS
"""How long the connection before stays open: nothing that was asked on it is awaited any longer."""

log = structlog.get_logger()

TlsContext = Callable[[], ssl.SSLContext]


class BrokerUnavailable(MeshError):
    """No broker answers, or none that would let this service in."""

    code = Code.UNAVAILABLE
    reason = "BROKER_UNAVAILABLE"


class MeshClient(Client):
    """A client that asks for its TLS context at every handshake, as mesh certificates live for an hour.

    Whoever is cancelled while it connects or waits for an answer is cancelled.
    """

    def __init__(self, tls: TlsContext) -> None:
        super().__init__()
        self._tls = tls

    @property
    def ssl_context(self) -> ssl.SSLContext:
        context = self._tls()
        if context.minimum_version < ssl.TLSVersion.TLSv1_3:
            raise ssl.SSLError("the mesh speaks TLS 1.3 or nothing")
        return context

    async def connect(self, *servers: Any, **options: Any) -> None:
        with heeding_cancellation():
            await super().connect(*servers, **options)

    async def request(self, *what: Any, **options: Any) -> Msg:
        with heeding_cancellation():
            return await super().request(*what, **options)

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except BaseException:
            # nats-py would wait for the end of a connection whose handshake failed, which asyncio tells nobody.
            tcp = self._transport
            if isinstance(tcp, TcpTransport) and tcp._io_writer is tcp._bare_io_writer:
                tcp.close()  # type: ignore[no-untyped-call]
                self._transport = None
            raise

    async def close(self) -> None:
        if not self.is_connected:
            # nats-py would write what is pending to a TLS transport that is gone, and fail before it has cleaned up.
            self._pending, self._pending_data_size = [], 0
        await super().close()


class NatsLink:
    """A connection that is always being kept. The client behind it changes when the broker turned it away."""

    def __init__(self) -> None:
        self._client: MeshClient | None = None
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

    def _up(self, client: MeshClient) -> None:
        """Use a client that has just connected for the first time."""
        self._client = client
        self.connections += 1
        self._connected.set()
        self._next.set()
        self._next = asyncio.Event()

    def _up_again(self, client: MeshClient) -> None:
        """The same after the broker was away, unless another client has taken over since."""
        if client is self._client:
            self._up(client)

    def _down(self, client: MeshClient) -> None:
        """Another client may have taken over before this one ended: then nothing is lost."""
        if client is self._client:
            self._connected.clear()


@dataclass(frozen=True, slots=True)
class _Broker:
    """The broker to connect to, and as whom."""

    url: str
    admission: Admission
    server_name: str
    name: str
    inbox_prefix: str


@asynccontextmanager
async def connect_nats(
    url: str,
    admission: Admission,
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
    broker = _Broker(url, admission, server_name, name, inbox_prefix)
    async with asyncio.TaskGroup() as tasks:
        upkeep = [tasks.create_task(_keep(link, broker)), tasks.create_task(stay_admitted(link, admission))]
        try:
            yield link
        finally:
            for task in upkeep:
                task.cancel()


async def _keep(link: NatsLink, broker: _Broker) -> None:
    """Have one connection after another: a new certificate, or the end of the last connection, brings the next."""
    opened: list[_Connection] = []
    async with asyncio.TaskGroup() as tasks:
        try:
            while True:
                await until_admitted(broker.admission)
                # Begun before the handshake: a renewal during it must not be missed.
                renewal = asyncio.ensure_future(broker.admission.renewed())
                current = _Connection(link, broker)
                opened.append(current)
                try:
                    await current.open()
                    for earlier in opened[-2:-1]:
                        tasks.create_task(_close_later(earlier, opened))
                    await current.until_closed_or(renewal)
                finally:
                    renewal.cancel()
                if current.closed.is_set():
                    # nats-py gives up for good when the broker turns it away, for example a certificate that ran out.
                    await asyncio.sleep(_RETRY_SECONDS)
        finally:
            for connection in opened:
                await connection.close()


async def _close_later(connection: _Connection, opened: list[_Connection]) -> None:
    await asyncio.sleep(_LINGER_SECONDS)
    opened.remove(connection)
    await connection.close()


class _Connection:
    """One client of nats-py from its first handshake until it is closed, and what it reports in between."""

    def __init__(self, link: NatsLink, broker: _Broker) -> None:
        self._link = link
        self._broker = broker
        self._client = MeshClient(broker.admission.tls_context)
        self.closed = asyncio.Event()

    async def open(self) -> None:
        """Wait for the broker, and take over from the connection before."""
        broker = self._broker
        await self._client.connect(
            broker.url,
            tls=broker.admission.tls_context(),
            tls_hostname=broker.server_name,
            tls_handshake_first=True,
            name=broker.name,
            inbox_prefix=broker.inbox_prefix,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=_RETRY_SECONDS,
            connect_timeout=_CONNECT_SECONDS,
            ping_interval=_PING_SECONDS,
            max_outstanding_pings=2,
            error_cb=self._error,
            disconnected_cb=self._disconnected,
            reconnected_cb=self._reconnected,
            closed_cb=self._closed,
        )
        self._link._up(self._client)
        log.info("broker connected", url=broker.url)

    async def until_closed_or(self, event: asyncio.Future[object]) -> None:
        closing = asyncio.ensure_future(self.closed.wait())
        try:
            await asyncio.wait((closing, event), return_when=asyncio.FIRST_COMPLETED)
        finally:
            closing.cancel()

    async def close(self) -> None:
        self._link._down(self._client)
        await self._client.close()

    async def _error(self, error: Exception) -> None:
        log.warning("broker error", url=self._broker.url, error=str(error) or type(error).__name__)

    async def _disconnected(self) -> None:
        self._link._down(self._client)
        log.info("broker disconnected", url=self._broker.url)

    async def _reconnected(self) -> None:
        self._link._up_again(self._client)
        log.info("broker connected", url=self._broker.url)

    async def _closed(self) -> None:
        self._link._down(self._client)
        self.closed.set()
