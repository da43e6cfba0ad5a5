"""What the broker asks of a real nats-server, and what becomes of one that does not do it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from nats.aio.client import Client

from libs.errors import MeshError
from libs.events.subjects import inbox_prefix
from services.broker.configuration import ServerSettings, render
from services.broker.control import Address, Control, greeting, open_control
from services.broker.supervision import private_folder
from tests.unit.services.broker.conftest import TRUST_DOMAIN, Mesh
from tests.unit.services.broker.test_supervision import Connection

SERVER_NAME = f"broker.{TRUST_DOMAIN}"


@asynccontextmanager
async def controlling(mesh: Mesh) -> AsyncIterator[Control]:
    tls = mesh.credentials.current.client_context()
    server_id = await greeting("127.0.0.1", mesh.broker.port, SERVER_NAME, tls)
    assert server_id is not None
    async with open_control(Address("127.0.0.1", mesh.broker.port, SERVER_NAME, server_id), tls) as control:
        yield control


async def until_closed(client: Client) -> None:
    async with asyncio.timeout(20):
        while not client.is_closed:  # noqa: ASYNC110 - nobody is told of it
            await asyncio.sleep(0.01)


async def test_a_connection_that_nats_server_keeps_without_a_lease_is_cut_and_no_other(mesh: Mesh) -> None:
    own = mesh.credentials.current.spki_sha256
    kept, stranger = mesh.ca.credential("ledger"), mesh.ca.credential("router")
    await mesh.let_in(kept)
    await mesh.let_in(stranger)
    ledger = await Connection().open(mesh, "ledger", kept.client_context())
    routers = [await Connection().open(mesh, "router", stranger.client_context()) for _ in range(3)]

    async with controlling(mesh) as control:
        assert await control.cut_all_but({own, kept.spki_sha256}) == 3
        assert await control.cut_all_but({own, kept.spki_sha256}) == 0

    for router in routers:
        await until_closed(router)
    await ledger.flush(timeout=5)
    await ledger.close()


async def test_more_connections_than_one_answer_holds_are_all_cut(mesh: Mesh) -> None:
    stranger = mesh.ca.credential("router")
    await mesh.let_in(stranger)
    # TLS contexts are dear; connections are not.
    context = stranger.client_context()
    routers = []
    for _ in range(12):  # All at once are more handshakes than a busy machine finishes before the server gives up.
        routers += await asyncio.gather(*(Connection().open(mesh, "router", context) for _ in range(25)))
    async with controlling(mesh) as control:
        assert await control.cut_all_but({mesh.credentials.current.spki_sha256}) == 300
    for router in routers:
        await until_closed(router)


async def test_who_is_let_in_no_more_is_cut_and_cannot_come_back(mesh: Mesh) -> None:
    shown = mesh.ca.credential("router")
    await mesh.let_in(shown)
    router = await Connection().open(mesh, "router", shown.client_context())
    await mesh.turn_away(shown)
    await until_closed(router)
    with pytest.raises(Exception, match="empty response"):
        await Connection().open(mesh, "router", shown.client_context())


async def test_a_key_is_refused_that_is_let_in_no_more(mesh: Mesh) -> None:
    shown = mesh.ca.credential("router")
    with pytest.raises(MeshError) as refused:
        await mesh.broker.until_admitted(shown.spki_sha256)
    assert refused.value.reason == "KEY_NOT_ADMITTED"


@pytest.mark.parametrize("subject", ["$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.x.KICK", "$SYS.REQ.SERVER.x.RELOAD"])
async def test_no_role_reaches_the_system_account(mesh: Mesh, subject: str) -> None:
    connection = Connection()
    router = await connection.open(mesh, "router")
    await router.publish(subject, b"{}")
    await router.flush(timeout=5)
    assert "permissions violation" in (await asyncio.wait_for(connection.complaint.get(), 5)).lower()
    await router.close()


@pytest.mark.parametrize("subject", ["$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.x.LDM", "$SYS.REQ.ACCOUNT.MESH.CONNZ"])
async def test_the_brokers_own_user_may_do_only_what_it_needs(mesh: Mesh, subject: str) -> None:
    connection = Connection()
    broker = await connection.open(mesh, "broker", mesh.credentials.current.client_context())
    await broker.publish(subject, b"{}")
    await broker.flush(timeout=5)
    assert "permissions violation" in (await asyncio.wait_for(connection.complaint.get(), 5)).lower()
    await broker.close()


async def test_a_server_that_does_not_take_its_files_is_ended(mesh: Mesh) -> None:
    """It would go on to let in whom it let in before."""
    shown = mesh.ca.credential("router")
    await mesh.let_in(shown)
    router = await Connection().open(mesh, "router", shown.client_context())
    ca = private_folder(mesh.state) / "ca.pem"
    good = ca.read_bytes()
    ca.write_bytes(b"no certificate")

    mesh.broker.admit(frozenset())

    await until_closed(router)
    await asyncio.wait_for(mesh.broker.until_ended(), 20)
    ca.write_bytes(good)
    await asyncio.wait_for(mesh.broker.until_ready(), 20)
    with pytest.raises(Exception, match="empty response"):
        await Connection().open(mesh, "router", shown.client_context())


async def test_a_server_that_does_not_answer_is_not_controlled(mesh: Mesh) -> None:

    async def reload() -> None:
        async with controlling(mesh) as control:
            mesh.signal(signal.SIGKILL)
            await control.reload()

    with pytest.raises(MeshError) as refused:
        await reload()
    assert refused.value.reason == "NATS_SERVER_NOT_CONTROLLED"


def test_there_is_no_configuration_that_lets_every_key_in(server: ServerSettings) -> None:
    with pytest.raises(ValueError, match="no keys"):
        render(server, ())


def test_the_broker_asks_under_an_inbox_of_its_own(server: ServerSettings) -> None:
    assert f"{inbox_prefix('broker')}.>" in render(server, (bytes(32),))
