"""Reading the stream of a real broker: contiguity, holes, redelivery, and the end of a connection."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable

import pytest
from nats.js.api import StreamConfig

from libs.errors import MeshError
from libs.events.connect import NatsLink, connect_nats
from libs.events.consume import (
    StreamGap,
    StreamInterrupted,
    StreamMessage,
    StreamReader,
    ensure_stream,
    make_room,
    read_message,
    read_stream,
)
from libs.events.subjects import issuer_subject, message_id, stream_name
from tests.fakes.let_in import LetIn
from tests.fakes.nats_broker import NatsBroker
from tests.fakes.throwaway_ca import ThrowawayCa

ISSUER = b"\x11" * 32


async def publish(link: NatsLink, count: int, first: int = 1) -> None:
    stream = await link.jetstream(10)
    for number in range(first, first + count):
        headers = {"Nats-Msg-Id": message_id(ISSUER, number)}
        await stream.publish(issuer_subject(1, ISSUER), b"%d" % number, stream=stream_name(1), headers=headers)


async def take(reader: StreamReader, count: int) -> list[tuple[int, int] | tuple[int, bytes]]:
    found: list[tuple[int, int] | tuple[int, bytes]] = []
    async for event in reader.events():
        if isinstance(event, StreamGap):
            found.append((event.first, event.last))
        else:
            found.append((event.sequence, event.data))
        if len(found) == count:
            break
    return found


async def test_messages_come_in_order_from_the_logs_position(link: NatsLink) -> None:
    await publish(link, 5)
    async with read_stream(link, 1, after=2, timeout=10) as reader:
        assert await take(reader, 3) == [(3, b"3"), (4, b"4"), (5, b"5")]
        assert (reader.facts.first_seq, reader.facts.last_seq) == (1, 5)


async def test_more_messages_than_one_pull_holds_are_read(link: NatsLink) -> None:
    await publish(link, 300)
    async with read_stream(link, 1, after=0, timeout=10, max_ack_pending=64) as reader:
        seen = []
        async for event in reader.events():
            assert isinstance(event, StreamMessage)
            seen.append(event.sequence)
            await reader.ack_all(event.sequence)
            if len(seen) == 300:
                break
    assert seen == list(range(1, 301))


async def test_what_the_stream_lost_is_a_gap(link: NatsLink) -> None:
    await publish(link, 6)
    stream = await link.jetstream(10)
    await stream.purge_stream(stream_name(1), seq=4)
    async with read_stream(link, 1, after=1, timeout=10) as reader:
        assert await take(reader, 3) == [(2, 3), (4, b"4"), (5, b"5")]
    async with read_stream(link, 1, after=0, timeout=10) as reader:
        assert await take(reader, 2) == [(1, 3), (4, b"4")]


async def test_room_is_made_below_a_number_only_where_half_of_it_is_taken(link: NatsLink) -> None:
    stream = await link.jetstream(10)
    await publish(link, 4)
    assert await make_room(link, 1, below=4, timeout=10) == 0
    info = await stream.stream_info(stream_name(1))
    await stream.update_stream(dataclasses.replace(info.config, max_bytes=2 * info.state.bytes - 1))
    assert await make_room(link, 1, below=1, timeout=10) == 0
    assert await make_room(link, 1, below=4, timeout=10) == 3
    assert (await stream.stream_info(stream_name(1))).state.first_seq == 4


async def test_a_resend_under_the_same_id_is_stored_once(link: NatsLink) -> None:
    await publish(link, 1)
    await publish(link, 2)
    async with read_stream(link, 1, after=0, timeout=10) as reader:
        assert await take(reader, 2) == [(1, b"1"), (2, b"2")]


async def test_a_message_is_read_by_its_number(link: NatsLink) -> None:
    await publish(link, 1)
    found = await read_message(link, 1, 1, 10)
    assert found is not None
    assert found.data == b"1"
    assert await read_message(link, 1, 2, 10) is None


async def test_a_reader_ends_with_its_connection(link: NatsLink, broker: NatsBroker) -> None:
    await publish(link, 1)
    seen = link.connections
    async with read_stream(link, 1, after=0, timeout=10) as reader:
        await take(reader, 1)
        await broker.kill()
        await broker.start()
        await link.connected_after(seen)
        with pytest.raises(StreamInterrupted):
            await take(reader, 1)
    async with read_stream(link, 1, after=0, timeout=10) as again:
        assert await take(again, 1) == [(1, b"1")]


@pytest.mark.parametrize("change", [{"max_age": 60.0}, {"deny_delete": False}, {"max_msgs": 10}])
async def test_a_stream_that_would_forget_is_refused(link: NatsLink, change: dict[str, object]) -> None:
    stream = await link.jetstream(10)
    config = (await stream.stream_info(stream_name(1))).config
    await stream.delete_stream(stream_name(1))
    await stream.add_stream(StreamConfig(**{**_essentials(config), **change}))  # type: ignore[arg-type]
    with pytest.raises(MeshError) as refusal:
        await ensure_stream(link, 1, max_bytes=1024 * 1024, replicas=1, timeout=10)
    assert refusal.value.reason == "STREAM_MISCONFIGURED"


def _essentials(config: StreamConfig) -> dict[str, object]:
    names = ("name", "subjects", "storage", "retention", "discard", "deny_delete", "max_bytes", "max_msg_size")
    return {name: getattr(config, name) for name in names}


async def test_a_broker_under_another_name_is_not_spoken_to(
    broker: NatsBroker, ledger_tls: Callable[[], ssl.SSLContext]
) -> None:
    async with connect_nats(
        broker.url, LetIn(ledger_tls), server_name="other.mesh.test", name="ledger/one", inbox_prefix="_INBOX_ledger"
    ) as link:
        with pytest.raises(MeshError) as refusal:
            await link.client(0.5)
    assert refusal.value.reason == "BROKER_UNAVAILABLE"


async def test_a_client_that_would_speak_less_than_tls_1_3_is_refused(
    broker: NatsBroker, ledger_tls: Callable[[], ssl.SSLContext]
) -> None:
    def weaker() -> ssl.SSLContext:
        context = ledger_tls()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    async with connect_nats(
        broker.url, LetIn(weaker), server_name="broker.mesh.test", name="ledger/one", inbox_prefix="_INBOX_ledger"
    ) as link:
        with pytest.raises(MeshError) as refusal:
            await link.client(0.5)
    assert refusal.value.reason == "BROKER_UNAVAILABLE"


async def test_a_caller_that_the_broker_does_not_know_is_not_let_in(broker: NatsBroker, ca: ThrowawayCa) -> None:
    files = ca.issue("stranger.mesh.test", "stranger")
    async with connect_nats(
        broker.url,
        LetIn(lambda: ca.client_context(files)),
        server_name="broker.mesh.test",
        name="stranger/one",
        inbox_prefix="_INBOX_stranger",
    ) as link:
        with pytest.raises(MeshError) as refusal:
            await link.client(0.5)
    assert refusal.value.reason == "BROKER_UNAVAILABLE"


async def test_a_url_without_tls_is_refused() -> None:
    with pytest.raises(ValueError, match="tls://"):
        async with connect_nats(
            "nats://127.0.0.1:1", LetIn(ssl.create_default_context), server_name="x", name="x", inbox_prefix="_INBOX_x"
        ):
            pass
