"""Strangers and greedy tenants at the router's gRPC door: over real TLS, frame by frame, and others are served."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hyperframe.frame import SettingsFrame
from teemesh.inference.v1 import aci_pb2
from teemesh.inference.v1 import inference_pb2 as pb

from libs.aci.encoding import digest
from libs.aci.receipt_events import Aborted
from libs.rpc.errors import reason_of
from libs.transparency.leaf import Kind
from services.router.admission.tenants import TTL_SECONDS
from services.router.face.door import INFER, LIST_MODELS
from tests.fakes.grpc_clients import Line, grpc_line
from tests.fakes.https_clients import KEY, OTHER_KEY
from tests.fakes.nodes import BUFFERED
from tests.fakes.raw_grpc import begin, bring, outcome
from tests.fakes.raw_http2 import Answered, RawHttp2, raw_http2
from tests.fakes.routers import CHAT, PATIENCE_SECONDS, prompt

REPORT = "/teemesh.inference.v1.AciService/GetAttestation"
RECEIPT = "/teemesh.inference.v1.AciService/GetReceipt"
OTHER = (("authorization", f"Bearer {OTHER_KEY}"),)
INVALID, LATE, EXHAUSTED, UNKNOWN_KEY = 3, 4, 8, 16
NO_WINDOW = {SettingsFrame.INITIAL_WINDOW_SIZE: 0}


def asked(stream: bool = False) -> bytes:
    return pb.InferRequest(endpoint=CHAT, body=prompt(stream=stream), request_id="req-1").SerializeToString()


async def outcomes(client: RawHttp2, *streams: int) -> list[tuple[int, str | None]]:
    return [outcome(await client.answer(stream_id)) for stream_id in streams]


async def assert_served(line: Line, **changes: Any) -> None:
    parts = await line.parts(**changes)
    assert (parts[0].head.status, b"".join(part.chunk for part in parts)) == (200, b"".join(BUFFERED))


async def report(line: Line) -> bytes | None:
    """What anybody may ask for, over a connection of somebody else's; None where there is no place for that."""
    try:
        response = await line.aci.GetAttestation(aci_pb2.GetAttestationRequest(), timeout=PATIENCE_SECONDS)
    except grpc.aio.AioRpcError as error:
        if reason_of(error) == "CALLS_BUSY":
            return None
        raise
    return bytes(response.report)


async def without_receipt(line: Line) -> dict[str, int]:
    """How many of each tenant's prompts were refused and only counted, by reason."""
    async with line.bench.usage.recording():
        pass
    counts: dict[str, int] = {}
    for body in line.bench.ledger.of(Kind.USAGE):
        counts |= body["without_receipt"]
    return counts


@pytest.mark.parametrize("method", [INFER, LIST_MODELS])
async def test_who_has_no_key_is_told_so_at_once_though_it_brings_nothing(tmp_path: Path, method: str) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        grpc_line(tmp_path, max_grpc_calls=1) as line,
        raw_http2(line.port, line.tls_h2) as stranger,
    ):
        streams = range(1, 101, 2)
        for stream_id in streams:
            begin(stranger, stream_id, method)
        assert set(await outcomes(stranger, *streams)) == {(UNKNOWN_KEY, "API_KEY_INVALID")}
        await assert_served(line)
        assert line.directory.refused.count("API_KEY_INVALID") == 50
        assert line.directory.asked == 1


async def test_keys_that_are_looked_up_are_few_at_a_time_and_keep_out_nobody_who_is_known(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        grpc_line(tmp_path, max_grpc_calls=8) as line,
        raw_http2(line.port, line.tls_h2) as stranger,
        raw_http2(line.port, line.tls_h2) as other,
    ):
        await assert_served(line)
        line.directory.answers.clear()
        for stream_id in (1, 3, 5):
            begin(stranger, stream_id, INFER, f"sk-{stream_id}")
        assert await outcomes(stranger, 3, 5) == [(EXHAUSTED, "CALLS_BUSY")] * 2
        begin(other, 1, INFER, "sk-other-stranger")
        begin(other, 3, INFER, "sk-other-stranger")
        assert await outcomes(other, 3) == [(EXHAUSTED, "CALLS_BUSY")]
        await assert_served(line)
        line.directory.answers.set()
        assert await outcomes(stranger, 1) + await outcomes(other, 1) == [(UNKNOWN_KEY, "API_KEY_INVALID")] * 2
        assert line.visitors_refused == ["CALLS_BUSY"] * 3
        await assert_served(line, metadata=OTHER)


async def test_wrong_keys_at_a_slow_registry_take_no_place_of_a_tenant_that_was_known(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        grpc_line(tmp_path, max_grpc_calls=8) as line,
        AsyncExitStack() as strangers,
    ):
        await assert_served(line)
        line.directory.now += TTL_SECONDS
        line.directory.answers.clear()
        for number in range(25):
            stranger = await strangers.enter_async_context(raw_http2(line.port, line.tls_h2))
            begin(stranger, 1, INFER, f"sk-wrong-{number}")
        while len(line.visitors_refused) < 23:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
        serving = asyncio.create_task(assert_served(line))
        while line.directory.asked < 4 and not serving.done():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        line.directory.answers.set()
        await serving


@pytest.mark.parametrize("method", [REPORT, RECEIPT])
async def test_visitors_that_bring_nothing_hold_their_own_places_and_not_for_long(tmp_path: Path, method: str) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        grpc_line(tmp_path, max_grpc_calls=8, body_seconds=0.5) as line,
        raw_http2(line.port, line.tls_h2) as stranger,
    ):
        for stream_id in (1, 3, 5, 7):
            begin(stranger, stream_id, method)
        assert await outcomes(stranger, 3, 5, 7) == [(EXHAUSTED, "CALLS_BUSY")] * 3
        assert await report(line) == b"{}"
        await assert_served(line)
        assert await outcomes(stranger, 1) == [(LATE, "MESSAGE_LATE")]
        begin(stranger, 9, REPORT)
        bring(stranger, 9, aci_pb2.GetAttestationRequest().SerializeToString())
        assert (await outcomes(stranger, 9))[0][0] == 0


async def test_visitors_that_read_nothing_hold_their_own_places_and_not_for_long(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        grpc_line(tmp_path, max_grpc_calls=4, visit_seconds=0.5) as line,
        raw_http2(line.port, line.tls_h2, settings=NO_WINDOW) as stranger,
    ):
        begin(stranger, 1, REPORT)
        bring(stranger, 1, b"")
        while 1 not in stranger.streams or not stranger.streams[1].headers:
            await stranger.next_frame()
        begin(stranger, 3, REPORT)
        assert await outcomes(stranger, 3) == [(EXHAUSTED, "CALLS_BUSY")]
        await assert_served(line)
        assert await report(line) is None
        while (found := await report(line)) is None:
            pass
        assert found == b"{}"


async def test_a_tenant_that_brings_nothing_holds_half_of_the_places_and_others_are_served(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        grpc_line(tmp_path, max_grpc_calls=8, body_seconds=1.0) as line,
        raw_http2(line.port, line.tls_h2) as greedy,
    ):
        await assert_served(line)
        streams = list(range(1, 41, 2))
        for stream_id in streams:
            begin(greedy, stream_id, INFER, KEY)
        assert await outcomes(greedy, *streams[4:]) == [(EXHAUSTED, "CALLS_BUSY")] * 16
        assert (await line.refused())[1] == "CALLS_BUSY"
        for _ in range(3):
            await assert_served(line, metadata=OTHER)
        assert await outcomes(greedy, *streams[:4]) == [(LATE, "MESSAGE_LATE")] * 4
        await assert_served(line)
        assert await without_receipt(line) == {"CALLS_BUSY": 17, "MESSAGE_LATE": 4}
        assert line.bench.metrics.refusals.numbers == {"CALLS_BUSY": 17, "MESSAGE_LATE": 4}


async def test_a_tenant_whose_answers_take_long_holds_half_of_the_places_and_others_are_served(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        grpc_line(tmp_path, max_grpc_calls=4) as line,
        raw_http2(line.port, line.tls_h2) as greedy,
    ):
        node = line.bench.nodes[0]
        node.waits_at = 1
        for stream_id in (1, 3, 5):
            begin(greedy, stream_id, INFER, KEY)
            bring(greedy, stream_id, asked())
        assert await outcomes(greedy, 5) == [(EXHAUSTED, "CALLS_BUSY")]
        other = asyncio.create_task(line.parts(metadata=OTHER))
        while len(node.requests) < 3:
            begin(greedy, stream_id := max(greedy.streams) + 2, INFER)
            await greedy.answer(stream_id)
        node.go_on.set()
        assert (await other)[0].head.status == 200
        assert {status for status, _ in await outcomes(greedy, 1, 3)} == {0}


@pytest.mark.parametrize(
    ("message", "ends"),
    [(b"\xff\xff\xff", (INVALID, "MESSAGE_MALFORMED")), (None, (INVALID, "MESSAGE_MISSING"))],
    ids=["malformed", "missing"],
)
async def test_a_message_that_is_none_is_refused_and_counted(
    tmp_path: Path, message: bytes | None, ends: tuple[int, str]
) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        grpc_line(tmp_path) as line,
        raw_http2(line.port, line.tls_h2) as client,
    ):
        begin(client, 1, INFER, KEY)
        if message is None:
            client.end(1)
        else:
            bring(client, 1, message)
        assert await outcomes(client, 1) == [ends]
        assert await without_receipt(line) == {ends[1]: 1}


async def test_what_nobody_reads_yet_is_little(tmp_path: Path) -> None:
    """Of a message, before its sender has been asked who it is."""
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        grpc_line(tmp_path) as line,
        raw_http2(line.port, line.tls_h2) as client,
    ):
        while not isinstance(frame := await client.next_frame(), SettingsFrame):
            pass
        assert frame.settings[SettingsFrame.INITIAL_WINDOW_SIZE] < 1 << 16


async def test_a_connection_beyond_the_limit_is_closed_at_once_and_the_others_go_on(tmp_path: Path) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), grpc_line(tmp_path, max_connections=2) as line:
        await assert_served(line)
        _, silent = await asyncio.open_connection("127.0.0.1", line.port)
        with pytest.raises(OSError):  # noqa: PT011  # Cut off in the middle of the handshake, one way or another.
            await asyncio.open_connection("127.0.0.1", line.port, ssl=line.tls_h2)
        await assert_served(line)
        silent.transport.abort()


@pytest.mark.parametrize("tls", [False, True])
async def test_a_connection_that_says_nothing_is_closed_in_time(tmp_path: Path, tls: bool) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), grpc_line(tmp_path, idle_seconds=0.5) as line:
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port, ssl=line.tls_h2 if tls else None)
        await reader.read()
        writer.close()
        await assert_served(line)


async def test_a_connection_without_calls_is_closed_in_time(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        grpc_line(tmp_path, idle_seconds=0.5) as line,
        raw_http2(line.port, line.tls_h2) as client,
    ):
        begin(client, 1, INFER)
        assert await outcomes(client, 1) == [(UNKNOWN_KEY, "API_KEY_INVALID")]
        assert await client.ended() is not None
        await assert_served(line)


async def test_a_tenant_that_reads_nothing_is_said_to_be_slow_and_gives_its_place_back(tmp_path: Path) -> None:
    event = b'data: {"choices":[{"delta":{"content":"' + b"a" * (1 << 17) + b'"}}]}\n\n'
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        grpc_line(tmp_path, max_grpc_calls=1, request_seconds=1.0, delivery_seconds=0.5) as line,
        raw_http2(line.port, line.tls_h2, settings=NO_WINDOW) as client,
    ):
        line.bench.nodes[0].stream(*[event] * 4)
        begin(client, 1, INFER, KEY)
        bring(client, 1, asked(stream=True))
        await line.bench.logged()
        receipt = line.bench.only_receipt()
        assert [each for each in receipt.events if isinstance(each, Aborted)] == [Aborted("client_too_slow")]
        assert receipt.returned.body_hash == digest(b"")
        line.bench.nodes[0].chunks = list(BUFFERED)
        line.bench.nodes[0].content_type = "application/json"
        while (served := await line.answered(metadata=OTHER)) is None:
            pass
        assert served[0].head.status == 200


async def test_a_tenant_that_does_not_read_how_its_call_is_concluded_gives_its_place_back(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        grpc_line(tmp_path, max_grpc_calls=1, request_seconds=1.0, delivery_seconds=0.5) as line,
        raw_http2(line.port, line.tls_h2, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 512}) as client,
    ):
        begin(client, 1, INFER, KEY)
        bring(client, 1, asked())
        while BUFFERED[-1] not in client.streams.get(1, Answered()).body:
            await client.next_frame()
        while (served := await line.answered(metadata=OTHER)) is None:
            pass
        assert served[0].head.status == 200
