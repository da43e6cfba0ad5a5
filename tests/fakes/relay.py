"""Relays that pass everything on and keep a copy: outside TLS as anybody on the wire, inside with both ends' keys."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from libs.identity.certificate import MeshCertificate
from libs.identity.renewal import Credential
from libs.rpc.tls import load_client_context, load_server_context

_CHUNK = 65536
Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@dataclass(slots=True)
class Recording:
    """What passed a relay, connection by connection, each direction for itself."""

    address: str = ""
    streams: list[bytearray] = field(default_factory=list)

    @property
    def everything(self) -> bytes:
        """All streams; nothing spans the end of one."""
        return b"\n\n".join(bytes(stream) for stream in self.streams)


@asynccontextmanager
async def wire(target: str) -> AsyncIterator[Recording]:
    """Relay to host:port and keep what anybody on the way would see."""
    async with _relaying(_connecting(target, None), None) as recording:
        yield recording


@asynccontextmanager
async def inside_tls(target: str, server: Credential, client: Credential, ca_pem: bytes) -> AsyncIterator[Recording]:
    """Relay between two members whose keys are both known here, and keep what they say to each other inside TLS.

    Both see the certificate of the other, as without it: what each appraises is the other's own.
    """
    towards_client = load_server_context(key_pem=server.key_pem, certificate_pem=server.certificate.pem)
    towards_client.verify_mode = ssl.CERT_REQUIRED
    towards_client.load_verify_locations(cadata=ca_pem.decode())
    towards_server = load_client_context(ca_pem=ca_pem, key_pem=client.key_pem, certificate_pem=client.certificate.pem)
    for context in (towards_client, towards_server):
        context.set_alpn_protocols(["h2"])
    connect = _connecting(target, (towards_server, server.certificate))
    async with _relaying(connect, towards_client) as recording:
        yield recording


@asynccontextmanager
async def impersonating(
    target: str, towards_client: ssl.SSLContext, ca_pem: bytes, *, port: int = 0
) -> AsyncIterator[Recording]:
    """Relay HTTPS under a certificate of the relay's own, as one could who has an authority issue it for that name."""
    towards_server = load_client_context(ca_pem=ca_pem)
    host, _, theirs = target.rpartition(":")
    async with _relaying(
        lambda: asyncio.open_connection(host, int(theirs), ssl=towards_server, server_hostname=host),
        towards_client,
        port,
    ) as recording:
        yield recording


def _connecting(target: str, secured: tuple[ssl.SSLContext, MeshCertificate] | None) -> Connect:
    host, _, port = target.rpartition(":")
    if secured is None:
        return lambda: asyncio.open_connection(host, int(port))
    context, certificate = secured
    return lambda: asyncio.open_connection(host, int(port), ssl=context, server_hostname=certificate.server_name)


@asynccontextmanager
async def _relaying(connect: Connect, context: ssl.SSLContext | None, port: int = 0) -> AsyncIterator[Recording]:
    recording = Recording()
    running: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            theirs, out = await connect()
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass_on(reader, out, recording))
                both.create_task(_pass_on(theirs, writer, recording))
        except* (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            running.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", port, ssl=context)
    recording.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield recording
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, recording: Recording) -> None:
    stream = bytearray()
    recording.streams.append(stream)
    try:
        while chunk := await reader.read(_CHUNK):
            stream += chunk
            writer.write(chunk)
            await writer.drain()
    finally:
        writer.close()
