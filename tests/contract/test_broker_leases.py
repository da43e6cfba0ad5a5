"""NATS connections rest on leases: a real nats-server lets in who has one with the broker, and nobody else."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import nats.errors
import pytest
from nats.aio.client import Client
from teemesh.broker.v1 import broker_pb2, broker_pb2_grpc

from libs.events.connect import NatsLink, connect_nats
from libs.events.consume import ensure_stream, read_message
from libs.events.subjects import inbox_prefix, issuer_subject, stream_name
from libs.identity.freshness import MAX_SILENCE_SECONDS, PolicyKeeper
from libs.identity.member import Member
from libs.policy.revocation import RevocationKind
from libs.rpc.channel import open_channel
from libs.rpc.tls import load_client_context
from services.broker.supervision import private_folder
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore, hear
from tests.fakes.ports import free_port
from tests.fakes.refusals import refusal
from tests.fakes.revocations import value_of
from tests.fakes.running_broker import RunningBroker, running_broker

SUBJECT = issuer_subject(1, bytes(32))
STREAM = stream_name(1)
PATIENCE_SECONDS = 30.0
TRIES = 5


@pytest.fixture
async def broker(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[RunningBroker]:
    async with running_broker(mesh, kms, nats_port=free_port()) as running:
        yield running


@asynccontextmanager
async def using(broker: RunningBroker, member: Member) -> AsyncIterator[NatsLink]:
    """A member's way to NATS, as in every service."""
    async with connect_nats(
        broker.url,
        member.broker(broker.target),
        server_name=f"broker.{TRUST_DOMAIN}",
        name=f"{member.role}/{member.instance}",
        inbox_prefix=inbox_prefix(member.role),
    ) as link:
        yield link


@asynccontextmanager
async def stream(broker: RunningBroker, mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[NatsLink]:
    """The ledger's way to NATS, once it has made its stream."""
    async with mesh.member("ledger", kms) as ledger, using(broker, ledger) as link:
        await ensure_stream(link, 1, max_bytes=1 << 20, replicas=1, timeout=PATIENCE_SECONDS)
        yield link


async def publish(link: NatsLink, timeout: float = PATIENCE_SECONDS) -> int:
    """Publish one entry; return its place in the stream."""
    return (await (await link.jetstream(timeout)).publish(SUBJECT, b"entry", stream=STREAM)).seq


def shown_by(member: Member) -> ssl.SSLContext:
    """What a member shows, whether or not anybody lets it in."""
    current = member.identity.current
    return load_client_context(ca_pem=member.ca_pem, key_pem=current.key_pem, certificate_pem=current.certificate.pem)


async def connected(broker: RunningBroker, member: Member) -> Client:
    """A connection of a member who asks nobody first, and does not come back."""
    client = Client()
    await client.connect(
        broker.url,
        tls=shown_by(member),
        tls_hostname=f"broker.{TRUST_DOMAIN}",
        tls_handshake_first=True,
        allow_reconnect=False,
        connect_timeout=5,
    )
    return client


async def is_turned_away(broker: RunningBroker, member: Member) -> bool:
    """Whether NATS refuses a member who shows its certificate and waits to be greeted."""
    try:
        client = await connected(broker, member)
    except (OSError, nats.errors.Error):
        return True
    await client.close()
    return False


async def shout(broker: RunningBroker, member: Member) -> None:
    """Publish without waiting for a greeting: everything is sent before the server can turn anybody away."""
    _, writer = await asyncio.open_connection(
        "127.0.0.1", broker.nats.port, ssl=shown_by(member), server_hostname=f"broker.{TRUST_DOMAIN}"
    )
    writer.write(b'CONNECT {"verbose":false}\r\nPUB ' + SUBJECT.encode() + b" 5\r\nentry\r\nPING\r\n")
    try:
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    except OSError:
        """Cut off in the middle."""


async def until_cut(link: NatsLink) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while link.is_connected:  # noqa: ASYNC110 - nobody is told of it
            await asyncio.sleep(0.02)


async def revoke(keeper: PolicyKeeper, mesh: JoinedMesh, kind: RevocationKind, value: str) -> None:
    keeper.accept_revocations([mesh.revocation(kind, value)])
    hear(keeper, time.time())


async def test_a_certificate_alone_gets_nobody_in_and_nothing_published(
    broker: RunningBroker, mesh: JoinedMesh, kms: KmsCore
) -> None:
    async with stream(broker, mesh, kms) as ledger, mesh.member("router", kms) as stranger:
        for _ in range(TRIES):
            assert await is_turned_away(broker, stranger)
            await shout(broker, stranger)
        async with using(broker, stranger) as link:
            # What comes after its evidence is the first entry that there is.
            assert await publish(link) == 1
        assert await read_message(ledger, 1, 2, timeout=PATIENCE_SECONDS) is None


@pytest.mark.parametrize("kind", [RevocationKind.MEASUREMENT, RevocationKind.KEY, RevocationKind.NODE])
async def test_a_revocation_ends_an_open_connection_for_good_and_no_other(
    broker: RunningBroker, mesh: JoinedMesh, kms: KmsCore, kind: RevocationKind
) -> None:
    async with (
        stream(broker, mesh, kms) as ledger,
        mesh.member("router", kms) as revoked,
        using(broker, revoked) as link,
    ):
        assert await publish(link) == 1
        lease = broker.member.leases.of(revoked.identity.current.certificate.spki_sha256)
        others = ledger.connections

        await revoke(broker.member.policy, mesh, kind, value_of(kind, lease))

        await until_cut(link)
        for _ in range(TRIES):
            assert await is_turned_away(broker, revoked)
            await shout(broker, revoked)
        assert await refusal(link.client(3.0)) == "BROKER_UNAVAILABLE"
        assert await read_message(ledger, 1, 2, timeout=PATIENCE_SECONDS) is None
        assert (ledger.is_connected, ledger.connections) == (True, others)


async def test_who_was_revoked_before_it_came_is_not_let_in(
    broker: RunningBroker, mesh: JoinedMesh, kms: KmsCore
) -> None:
    async with mesh.member("router", kms) as revoked, using(broker, revoked) as link:
        digest = mesh.tds["router"].compose_hash.hex()
        await revoke(broker.member.policy, mesh, RevocationKind.MEASUREMENT, digest)
        assert await refusal(revoked.broker(broker.target).admit(10.0)) == "MEASUREMENT_REVOKED"
        assert await is_turned_away(broker, revoked)
        await until_cut(link)


async def test_nobody_is_cut_or_turned_away_while_all_renew_but_who_stays_on_an_old_key(mesh: JoinedMesh) -> None:
    """Each publish needs a connection there and then, and its answer."""
    kms = mesh.kms(service_seconds=12)
    async with (
        running_broker(mesh, kms) as broker,
        stream(broker, mesh, kms) as ledger,
        mesh.member("router", kms) as router,
        using(broker, router) as link,
    ):
        await link.client(PATIENCE_SECONDS)
        staying = await connected(broker, router)
        shown: dict[str, set[bytes]] = {"broker": set(), "router": set()}
        published, pid = 0, broker.nats.pid
        async with asyncio.timeout(120):
            while link.connections < 4 or ledger.connections < 4 or min(map(len, shown.values())) < 4:
                published += 1
                assert await publish(link, timeout=0) == published
                assert ledger.is_connected
                for member in (broker.member, router):
                    shown[member.role].add(member.identity.current.certificate.spki_sha256)
                await asyncio.sleep(0.005)
        assert (broker.nats.cut, broker.nats.pid) == (0, pid)
        # One connection for each key, and no more than that.
        assert link.connections <= len(shown["router"])
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not staying.is_closed:  # noqa: ASYNC110 - nobody is told of it
                await asyncio.sleep(0.02)


async def test_a_broker_that_cannot_know_of_revocations_lets_nobody_in_or_stay(mesh: JoinedMesh, kms: KmsCore) -> None:
    clock = Clock()
    keeper = PolicyKeeper(mesh.folder / "stale", mesh.seed, mesh.anchors("broker"), clock)
    hear(keeper, clock.now)
    async with (
        running_broker(mesh, kms, keeper=keeper) as broker,
        mesh.member("router", kms) as router,
        using(broker, router) as link,
    ):
        await link.client(PATIENCE_SECONDS)
        seen = link.connections

        clock.now += MAX_SILENCE_SECONDS + 1
        await until_cut(link)
        assert await is_turned_away(broker, router)
        assert await refusal(router.broker(broker.target).admit(10.0)) == "POLICY_STALE"

        hear(keeper, clock.now)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await link.connected_after(seen)


async def test_a_broker_that_was_restarted_is_shown_the_evidence_again(mesh: JoinedMesh, kms: KmsCore) -> None:
    listen, port = f"127.0.0.1:{free_port()}", free_port()
    async with mesh.member("router", kms) as router, AsyncExitStack() as running:
        before = await running.enter_async_context(running_broker(mesh, kms, listen=listen, nats_port=port))
        async with using(before, router) as link:
            await link.client(PATIENCE_SECONDS)
            seen = link.connections
            await running.aclose()
            async with running_broker(mesh, kms, listen=listen, nats_port=port) as after:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await link.connected_after(seen)
                assert after.nats.cut == 0


async def test_a_killed_nats_server_lets_the_same_keys_in_again(
    broker: RunningBroker, mesh: JoinedMesh, kms: KmsCore
) -> None:
    async with (
        stream(broker, mesh, kms),
        mesh.member("router", kms) as router,
        mesh.member("registry", kms) as stranger,
        using(broker, router) as link,
    ):
        assert await publish(link) == 1
        seen = link.connections
        assert broker.nats.pid is not None
        os.kill(broker.nats.pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await link.connected_after(seen)
        assert await publish(link) == 2
        assert await is_turned_away(broker, stranger)


async def test_another_broker_has_no_way_into_this_ones_system_account(
    broker: RunningBroker, mesh: JoinedMesh, kms: KmsCore
) -> None:
    async with mesh.member("broker", kms, instance="2") as other, mesh.member("router", kms) as router:
        await other.peer("broker", broker.target).channel(10)
        broker.member.leases.of(other.identity.current.certificate.spki_sha256)
        # From here on nats-server has everybody who has a lease by now.
        await router.broker(broker.target).admit(PATIENCE_SECONDS)
        assert await is_turned_away(broker, other)


async def test_a_role_that_nats_has_no_user_for_is_refused(
    broker: RunningBroker, mesh: JoinedMesh, kms: KmsCore
) -> None:
    async with mesh.member("node", kms, claims={"models": []}) as node:
        assert await refusal(node.broker(broker.target).admit(10.0)) == "ROLE_NOT_ALLOWED"


async def test_without_evidence_there_is_no_answer(broker: RunningBroker, mesh: JoinedMesh, kms: KmsCore) -> None:
    async with mesh.member("router", kms) as router:
        current = router.identity.current
        async with open_channel(
            broker.target,
            root_pem=router.ca_pem,
            server_name=f"broker.{TRUST_DOMAIN}",
            key_pem=current.key_pem,
            certificate_pem=current.certificate.pem,
        ) as channel:
            stub = broker_pb2_grpc.BrokerServiceStub(channel)
            assert await refusal(stub.Admit(broker_pb2.AdmitRequest(), timeout=10)) == "EVIDENCE_REQUIRED"


async def test_a_list_that_cannot_be_written_ends_the_broker(mesh: JoinedMesh, kms: KmsCore) -> None:
    """It would let in whom it let in before, for as long as its disk says so."""

    async def run() -> None:
        async with running_broker(mesh, kms) as broker:
            file = private_folder(broker.member.settings.state_dir) / "nats-server.conf"
            file.unlink()
            file.mkdir()
            async with mesh.member("router", kms) as router, using(broker, router):
                await asyncio.wait_for(asyncio.Event().wait(), PATIENCE_SECONDS)

    with pytest.raises(BaseExceptionGroup) as ended:
        await run()
    assert ended.value.subgroup(IsADirectoryError) is not None
