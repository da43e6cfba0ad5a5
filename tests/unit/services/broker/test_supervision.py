"""A real nats-server under a throwaway CA: who gets in, what each may do, and that it comes back."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import ssl
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.aio.client import Client

from libs.events.connect import connect_nats
from libs.events.consume import StreamMessage, ensure_stream, read_message, read_stream
from libs.events.subjects import inbox_prefix, issuer_subject, stream_name
from services.broker.configuration import REGISTRY_BUCKETS
from services.broker.supervision import (
    NatsSettings,
    PortTaken,
    RuntimeFolderRefused,
    open_broker,
    private_folder,
    verify_port_free,
)
from tests.unit.services.broker.conftest import TRUST_DOMAIN, Credentials, Mesh, ThrowawayCa

SUBJECT = issuer_subject(1, bytes(32))
STREAM = stream_name(1)


class Connection:
    """A client that keeps what the server complains of."""

    def __init__(self) -> None:
        self.client = Client()
        self.complaint: asyncio.Queue[str] = asyncio.Queue()

    async def open(self, mesh: Mesh, role: str, context: ssl.SSLContext | None = None) -> Client:
        async def keep(error: Exception) -> None:
            self.complaint.put_nowait(str(error))

        await self.client.connect(
            mesh.url,
            tls=context or mesh.context(role),
            tls_hostname=f"broker.{TRUST_DOMAIN}",
            tls_handshake_first=True,
            allow_reconnect=False,
            connect_timeout=5,
            inbox_prefix=inbox_prefix(role),
            error_cb=keep,
        )
        return self.client


async def test_a_router_publishes_what_the_ledger_consumes(mesh: Mesh) -> None:
    ledger = await Connection().open(mesh, "ledger")
    router = await Connection().open(mesh, "router")
    stream = ledger.jetstream()
    await stream.add_stream(name=STREAM, subjects=["teemesh.ledger.1.*"])

    acknowledged = await router.jetstream().publish(SUBJECT, b"entry", stream=STREAM)

    subscription = await stream.pull_subscribe(SUBJECT, durable="intake", stream=STREAM)
    (message,) = await subscription.fetch(1, timeout=5)
    await message.ack_sync()
    assert (acknowledged.stream, acknowledged.seq, message.data) == (STREAM, 1, b"entry")
    await ledger.close()
    await router.close()


async def test_the_ledger_sets_up_and_reads_its_stream_as_it_will(mesh: Mesh) -> None:
    async with connect_nats(
        mesh.url,
        lambda: mesh.context("ledger"),
        server_name=f"broker.{TRUST_DOMAIN}",
        name="ledger",
        inbox_prefix=inbox_prefix("ledger"),
    ) as link:
        await ensure_stream(link, 1, max_bytes=1 << 20, replicas=1, timeout=10)
        router = await Connection().open(mesh, "router")
        for data in (b"one", b"two"):
            await router.jetstream().publish(SUBJECT, data, stream=STREAM)
        async with read_stream(link, 1, after=1, timeout=10) as reader:
            async for event in reader.events():
                assert isinstance(event, StreamMessage)
                assert event.data == b"two"
                await reader.ack_all(event.sequence)
                break
        earlier = await read_message(link, 1, 1, timeout=10)
        assert earlier is not None
        assert earlier.data == b"one"
        await router.close()


@pytest.mark.parametrize("name", REGISTRY_BUCKETS)
async def test_the_registry_keeps_and_watches_its_buckets(mesh: Mesh, name: str) -> None:
    registry = await Connection().open(mesh, "registry")
    bucket = await registry.jetstream().create_key_value(bucket=name, history=1)
    opened = await registry.jetstream().key_value(name)

    revision = await bucket.create("node.1", b"lease")
    await bucket.update("node.1", b"renewed", last=revision)
    watcher = await opened.watchall()
    first = await watcher.updates(timeout=5)  # type: ignore[no-untyped-call]
    await bucket.delete("node.1")
    await watcher.stop()  # type: ignore[no-untyped-call]

    assert first is not None
    assert first.value == b"renewed"
    await registry.close()


@pytest.mark.parametrize(
    "subject",
    ["teemesh.ledger.2.00", "$JS.API.STREAM.DELETE.LEDGER_1", "$KV.registry_providers.x", "_INBOX_ledger.x", "other"],
)
async def test_a_subject_that_is_not_granted_is_refused(mesh: Mesh, subject: str) -> None:
    connection = Connection()
    router = await connection.open(mesh, "router")

    await router.publish(subject, b"x")
    await router.flush(timeout=5)

    complaint = await asyncio.wait_for(connection.complaint.get(), 5)
    assert "permissions violation for publish" in complaint.lower()
    await router.close()


async def test_another_roles_inbox_cannot_be_read(mesh: Mesh) -> None:
    connection = Connection()
    router = await connection.open(mesh, "router")

    await router.subscribe("_INBOX_ledger.>")
    await router.flush(timeout=5)

    complaint = await asyncio.wait_for(connection.complaint.get(), 5)
    assert "permissions violation for subscription" in complaint.lower()
    await router.close()


async def test_a_role_without_a_user_is_refused(mesh: Mesh) -> None:
    with pytest.raises(nats.errors.Error, match="Authorization Violation"):
        await Connection().open(mesh, "node")


async def test_no_certificate_is_refused(mesh: Mesh) -> None:
    with pytest.raises((nats.errors.Error, OSError)):
        await Connection().open(mesh, "router", mesh.context(None))


async def test_a_certificate_of_another_ca_is_refused(mesh: Mesh) -> None:
    with pytest.raises((nats.errors.Error, OSError)):
        await Connection().open(mesh, "router", mesh.context("router", ThrowawayCa()))


async def test_tls_1_2_is_refused(mesh: Mesh) -> None:
    context = mesh.context("router")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        await asyncio.open_connection(
            "127.0.0.1", mesh.broker.port, ssl=context, server_hostname=f"broker.{TRUST_DOMAIN}"
        )


async def test_plaintext_gets_no_greeting_and_no_answer(mesh: Mesh) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.broker.port)
    writer.write(b'CONNECT {"verbose":true}\r\nPING\r\n')
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    # At most a TLS alert record (type 21).
    assert answer[:1] in (b"", b"\x15")


async def test_a_renewed_certificate_is_shown_and_open_connections_go_on(mesh: Mesh) -> None:
    router = await Connection().open(mesh, "router")
    before, pid = await _shown(mesh), mesh.broker.pid

    mesh.credentials.renew()

    async with asyncio.timeout(10):
        while await _shown(mesh) == before:
            pass
    await router.flush(timeout=5)
    assert mesh.broker.pid == pid
    await router.close()


async def test_a_killed_server_comes_back_with_what_it_acknowledged(mesh: Mesh) -> None:
    ledger = await Connection().open(mesh, "ledger")
    await ledger.jetstream().add_stream(name=STREAM, subjects=["teemesh.ledger.1.*"])
    await ledger.jetstream().publish(SUBJECT, b"entry")
    await ledger.close()
    pid = mesh.broker.pid
    assert pid is not None

    os.kill(pid, signal.SIGKILL)
    await asyncio.wait_for(mesh.broker.until_ended(), 10)
    await asyncio.wait_for(mesh.broker.until_ready(), 20)

    again = await Connection().open(mesh, "ledger")
    assert (await again.jetstream().stream_info(STREAM)).state.messages == 1
    assert mesh.broker.pid != pid
    await again.close()


async def test_a_taken_port_is_reported_with_the_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=str(port)):
            async with open_broker("b", NatsSettings(port=port), Credentials(ThrowawayCa()), tmp_path):
                pass


def test_a_free_port_is_accepted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    verify_port_free(NatsSettings(port=port))


def test_a_runtime_folder_that_lets_others_in_is_refused(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "state", memory=tmp_path)
    assert folder.parent == tmp_path
    folder.chmod(0o755)
    with pytest.raises(RuntimeFolderRefused):
        private_folder(tmp_path / "state", memory=tmp_path)


def test_without_a_memory_file_system_the_key_lies_below_the_state(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "state", memory=tmp_path / "absent")
    assert folder == tmp_path / "state" / "runtime"
    assert folder.stat().st_mode & 0o777 == 0o700


async def test_a_key_that_a_killed_broker_left_half_written_is_removed_by_the_next(tmp_path: Path) -> None:
    draft = private_folder(tmp_path / "state") / ".credential.pem.0123456789abcdef"
    draft.write_bytes(b"half of a key")
    credentials = Credentials(ThrowawayCa())
    async with open_broker("b", NatsSettings(port=-1), credentials, tmp_path / "state") as broker:
        await broker.until_ready()
        assert not draft.exists()


async def _shown(mesh: Mesh) -> bytes:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", mesh.broker.port, ssl=mesh.context("router"), server_hostname=f"broker.{TRUST_DOMAIN}"
    )
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    await reader.readline()
    writer.transport.abort()
    return hashlib.sha256(certificate).digest()
