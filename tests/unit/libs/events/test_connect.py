"""A new certificate brings a new connection first: nothing fails, is lost or comes twice while it takes over."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from libs.events.connect import NatsLink, connect_nats
from libs.events.consume import StreamInterrupted, StreamMessage, ensure_stream, read_stream
from libs.events.subjects import issuer_subject, stream_name
from tests.fakes.cuttable import Way, way_to
from tests.fakes.let_in import LetIn
from tests.fakes.nats_broker import NatsBroker
from tests.fakes.throwaway_ca import Files, ThrowawayCa

SUBJECT = issuer_subject(1, b"\x07" * 16)


@dataclass(slots=True)
class Renewals:
    """A certificate that is renewed when the test says so."""

    ca: ThrowawayCa
    role: str
    shown: list[Files] = field(default_factory=list)
    _renewed: asyncio.Event = field(default_factory=asyncio.Event)

    def context(self) -> ssl.SSLContext:
        return self.ca.client_context(self.shown[-1])

    def renew(self) -> None:
        self.shown.append(self.ca.issue(f"{self.role}.mesh.test", self.role))
        renewed, self._renewed = self._renewed, asyncio.Event()
        renewed.set()

    async def renewed(self) -> None:
        await self._renewed.wait()


@asynccontextmanager
async def renewing(broker: NatsBroker, ca: ThrowawayCa, role: str) -> AsyncIterator[tuple[NatsLink, Renewals]]:
    renewals = Renewals(ca, role)
    renewals.renew()
    async with (
        asyncio.timeout(60),
        connect_nats(
            broker.url,
            LetIn(renewals.context, renewals.renewed),
            server_name="broker.mesh.test",
            name=f"{role}/one",
            inbox_prefix=f"_INBOX_{role}",
        ) as link,
    ):
        await link.client(10)
        yield link, renewals


@pytest.fixture
async def stream(link: NatsLink) -> NatsLink:
    await ensure_stream(link, 1, max_bytes=1 << 20, replicas=1, timeout=10)
    return link


@pytest.mark.usefixtures("stream")
async def test_a_renewal_brings_another_connection_and_what_is_under_way_ends_on_the_one_before(
    broker: NatsBroker, ca: ThrowawayCa
) -> None:
    async with renewing(broker, ca, "router") as (link, renewals):
        before = await link.client(10)
        seen = link.connections
        renewals.renew()
        await link.connected_after(seen)
        after = await link.client(0)
        assert after is not before
        for client in (before, after):
            answer = await client.jetstream().publish(SUBJECT, b"entry", stream=stream_name(1))
            assert answer.stream == stream_name(1)
        await before.close()
        assert link.is_connected
        assert await link.client(0) is after


@pytest.mark.usefixtures("stream")
async def test_nothing_published_or_read_through_renewals_fails_or_is_lost(broker: NatsBroker, ca: ThrowawayCa) -> None:
    entries = 300
    read: list[bytes] = []

    async def publish(link: NatsLink, renewals: Renewals) -> None:
        for number in range(entries):
            if number % 60 == 30:
                renewals.renew()
            jetstream = await link.jetstream(0.0)
            await jetstream.publish(SUBJECT, str(number).encode(), stream=stream_name(1))

    async def consume(link: NatsLink, renewals: Renewals) -> None:
        """Read on, each time from where the last reading ended, as the ledger does."""
        while len(read) < entries:
            try:
                async with read_stream(link, 1, after=len(read), timeout=10) as reader:
                    async for event in reader.events():
                        assert isinstance(event, StreamMessage)
                        read.append(event.data)
                        if len(read) % 50 == 25:
                            renewals.renew()
                        if len(read) == entries:
                            return
            except StreamInterrupted:
                assert link.is_connected

    async with (
        renewing(broker, ca, "router") as publishing,
        renewing(broker, ca, "ledger") as consuming,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(consume(*consuming))
        tasks.create_task(publish(*publishing))
    assert read == [str(number).encode() for number in range(entries)]
    assert publishing[0].connections > 1
    assert consuming[0].connections > 1


async def test_a_renewal_while_the_broker_is_away_shows_the_new_certificate_when_it_is_back(
    broker: NatsBroker, ca: ThrowawayCa
) -> None:
    async with renewing(broker, ca, "router") as (link, renewals):
        seen = link.connections
        await broker.kill()
        renewals.renew()
        await broker.start()
        await link.connected_after(seen)
        client = await link.client(10)
        assert client.is_connected


@asynccontextmanager
async def failing(broker: NatsBroker, ca: ThrowawayCa, *, was_connected: bool) -> AsyncIterator[tuple[NatsLink, Way]]:
    """Something listens and takes no handshake any more: asyncio tells nobody that such a connection has ended."""
    files, contexts = ca.issue("router.mesh.test", "router"), asyncio.Queue[None]()

    def context() -> ssl.SSLContext:
        contexts.put_nowait(None)
        return ca.client_context(files)

    async with asyncio.timeout(20), way_to(f"127.0.0.1:{broker.port}") as way:
        if not was_connected:
            way.cut()
        async with connect_nats(
            f"tls://{way.address}",
            LetIn(context),
            server_name="broker.mesh.test",
            name="router/one",
            inbox_prefix="_INBOX_router",
        ) as link:
            if was_connected:
                await link.client(10)
                way.cut()
            for _ in range(contexts.qsize() + 3):  # One is asked for before the first handshake, one for each.
                await contexts.get()
            yield link, way


@pytest.mark.parametrize("was_connected", [True, False])
async def test_who_stops_while_every_handshake_fails_stops(
    broker: NatsBroker, ca: ThrowawayCa, was_connected: bool
) -> None:
    async with failing(broker, ca, was_connected=was_connected) as (link, _):
        assert not link.is_connected


@pytest.mark.parametrize("was_connected", [True, False])
async def test_handshakes_that_failed_keep_nobody_from_connecting(
    broker: NatsBroker, ca: ThrowawayCa, was_connected: bool
) -> None:
    async with failing(broker, ca, was_connected=was_connected) as (link, way):
        way.mend()
        assert (await link.client(10)).is_connected
