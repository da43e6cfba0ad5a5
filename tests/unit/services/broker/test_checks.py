"""What the broker itself does about who is connected: nats-server's word is not taken for it."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from services.broker.credentials import Shown
from services.broker.supervision import private_folder
from tests.unit.services.broker.conftest import Mesh, running_mesh
from tests.unit.services.broker.test_control import SERVER_NAME, controlling, until_closed
from tests.unit.services.broker.test_supervision import Connection

PATIENCE_SECONDS = 20


async def list_behind_the_brokers_back(mesh: Mesh, stranger: Shown) -> None:
    """Put a key into the file that nats-server reads, and have it read that."""
    file = private_folder(mesh.state) / "nats-server.conf"
    configuration = json.loads(file.read_bytes())
    configuration["tls"]["pinned_certs"].append(stranger.spki_sha256.hex())
    file.write_text(json.dumps(configuration))
    async with controlling(mesh) as control:
        await control.reload()


async def connect_until_cut(mesh: Mesh, shown: Shown) -> None:
    """Get in, and stay until the connection ends."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", mesh.broker.port, ssl=shown.client_context(), server_hostname=SERVER_NAME
    )
    try:
        writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
        said = await reader.readuntil(b"PONG")
        assert said.startswith(b"INFO")
        with suppress(OSError):
            await reader.read()
    finally:
        writer.transport.abort()


async def test_the_broker_cuts_a_stranger_that_nats_server_lets_in(tmp_path: Path) -> None:
    """Nothing changes on the broker's side: it looks by itself."""
    async with running_mesh(tmp_path / "state", check_seconds=0.1) as mesh:
        kept, stranger = mesh.ca.credential("ledger"), mesh.ca.credential("router")
        await mesh.let_in(kept)
        ledger = await Connection().open(mesh, "ledger", kept.client_context())
        await list_behind_the_brokers_back(mesh, stranger)

        await asyncio.wait_for(connect_until_cut(mesh, stranger), PATIENCE_SECONDS)

        await ledger.flush(timeout=5)
        await ledger.close()


async def test_a_stranger_that_stalls_its_handshake_does_not_keep_others_in(mesh: Mesh) -> None:
    """nats-server reads no change before the handshake is over."""
    shown = mesh.ca.credential("router")
    await mesh.let_in(shown)
    router = await Connection().open(mesh, "router", shown.client_context())
    _, stalling = await asyncio.open_connection("127.0.0.1", mesh.broker.port)
    mesh.broker.admit(frozenset())
    await until_closed(router)
    stalling.transport.abort()


async def test_the_end_of_a_lease_ends_its_connection_without_another_change(mesh: Mesh) -> None:
    shown = mesh.ca.credential("router")
    await mesh.let_in(shown)
    router = await Connection().open(mesh, "router", shown.client_context())
    mesh.broker.admit(frozenset())
    await until_closed(router)


async def test_a_server_that_comes_back_has_the_list_confirmed_though_nothing_changed(mesh: Mesh) -> None:
    shown = mesh.ca.credential("router")
    await mesh.let_in(shown)
    mesh.signal(signal.SIGKILL)
    await asyncio.wait_for(mesh.broker.until_ended(), PATIENCE_SECONDS)
    await asyncio.wait_for(mesh.broker.until_ready(), PATIENCE_SECONDS)

    await asyncio.wait_for(mesh.broker.until_admitted(shown.spki_sha256), PATIENCE_SECONDS)

    router = await Connection().open(mesh, "router", shown.client_context())
    await router.close()


async def test_what_changes_between_a_servers_start_and_its_answer_is_in_force(mesh: Mesh) -> None:
    gone, come = mesh.ca.credential("router"), mesh.ca.credential("router")
    await mesh.let_in(gone)
    before = mesh.broker.pid
    mesh.signal(signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await mesh.broker.until_ended()
        while mesh.broker.pid in (before, None):  # noqa: ASYNC110 - nobody is told of it
            await asyncio.sleep(0.001)
    mesh.signal(signal.SIGSTOP)
    mesh.broker.admit(frozenset({come.spki_sha256}))
    mesh.signal(signal.SIGCONT)

    await asyncio.wait_for(mesh.broker.until_admitted(come.spki_sha256), PATIENCE_SECONDS)

    router = await Connection().open(mesh, "router", come.client_context())
    await router.close()
    with pytest.raises(Exception, match="empty response"):
        await Connection().open(mesh, "router", gone.client_context())


async def test_a_change_that_a_server_did_not_take_is_taken_by_the_next(mesh: Mesh) -> None:
    shown = mesh.ca.credential("router")
    ca = private_folder(mesh.state) / "ca.pem"
    good = ca.read_bytes()
    ca.write_bytes(b"no certificate")
    mesh.broker.admit(frozenset({shown.spki_sha256}))
    await asyncio.wait_for(mesh.broker.until_ended(), PATIENCE_SECONDS)
    ca.write_bytes(good)
    await asyncio.wait_for(mesh.broker.until_admitted(shown.spki_sha256), PATIENCE_SECONDS)


async def test_a_lease_that_ended_while_the_list_could_not_be_written_ends_later(mesh: Mesh) -> None:
    shown = mesh.ca.credential("router")
    await mesh.let_in(shown)
    router = await Connection().open(mesh, "router", shown.client_context())
    file = private_folder(mesh.state) / "nats-server.conf"
    listed = file.read_bytes()
    file.unlink()
    # A folder in the way, as nothing else holds up a process that may write anywhere.
    file.mkdir()
    with pytest.raises(OSError, match="directory"):
        mesh.broker.admit(frozenset())
    file.rmdir()
    file.write_bytes(listed)

    mesh.broker.admit(frozenset())

    await until_closed(router)
    with pytest.raises(Exception, match="empty response"):
        await Connection().open(mesh, "router", shown.client_context())
