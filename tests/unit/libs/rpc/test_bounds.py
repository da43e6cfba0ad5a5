"""What gRPC itself bounds, as options say it: seen by a client that speaks frames."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from hyperframe.frame import GoAwayFrame, RstStreamFrame, SettingsFrame

from libs.rpc.bounds import Bounds
from libs.rpc.health import Health
from libs.rpc.middleware import public_middleware
from libs.rpc.policies import ANY_ROLE, MethodRule, ServiceBinding
from libs.rpc.server import serving
from libs.rpc.tls import load_client_context
from tests.fakes.pki import ThrowawayCa
from tests.fakes.raw_grpc import begin, bring, outcome
from tests.fakes.raw_http2 import RawHttp2, raw_http2
from tests.fakes.small_mesh import SERVER_NAME, SmallMesh

WATCH = "/grpc.health.v1.Health/Watch"
PATIENCE_SECONDS = 20.0
OK = "0"
BOUNDS = Bounds(connections=10, calls=3, idle_seconds=PATIENCE_SECONDS, message_seconds=1.0, call_seconds=1.0)


@asynccontextmanager
async def served(bounds: Bounds) -> AsyncIterator[tuple[int, ssl.SSLContext]]:
    """A server's port, and how to reach it."""
    ca = ThrowawayCa()
    server = grpc.aio.server(options=bounds.options())
    health_pb2_grpc.add_HealthServicer_to_server(Health([]), server)  # type: ignore[no-untyped-call]
    credentials = grpc.ssl_server_credentials([ca.leaf(None, "localhost", ip="127.0.0.1")])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    tls = load_client_context(ca_pem=ca.pem)
    tls.set_alpn_protocols(["h2"])
    try:
        yield port, tls
    finally:
        await server.stop(None)


@asynccontextmanager
async def connected(bounds: Bounds) -> AsyncIterator[RawHttp2]:
    async with served(bounds) as (port, tls), asyncio.timeout(PATIENCE_SECONDS), raw_http2(port, tls) as client:
        yield client


async def test_a_connection_that_is_old_ends_and_its_calls_have_their_time() -> None:
    async with connected(replace(BOUNDS, age_seconds=0.3)) as client:
        begin(client, 1, WATCH)
        bring(client, 1, b"")
        seen: list[str] = []
        while (frame := await client.next_frame()) is not None:
            if isinstance(frame, GoAwayFrame):
                seen.append("told")
            elif frame.stream_id == 1 and ("END_STREAM" in frame.flags or isinstance(frame, RstStreamFrame)):
                seen.append("ended")
        assert seen[0] == "told", "what runs goes on"
        assert client.streams[1].body, "it was answered"


async def test_calls_beyond_those_that_may_run_at_once_are_refused_and_the_others_go_on() -> None:
    async with connected(BOUNDS) as client:
        while not isinstance(frame := await client.next_frame(), SettingsFrame):
            pass
        assert frame.settings[SettingsFrame.MAX_CONCURRENT_STREAMS] == 3
        for stream_id in (1, 3, 5, 7):
            begin(client, stream_id, WATCH)
            bring(client, stream_id, b"")
        assert (await client.answer(7)).reset is not None
        while not all(client.streams.get(each) and client.streams[each].body for each in (1, 3, 5)):
            assert await client.next_frame() is not None


async def test_calls_that_nobody_has_taken_yet_are_so_many_and_the_next_is_refused() -> None:
    flood, waiting = 40, 5

    async def refusals(port: int, tls: ssl.SSLContext) -> set[str]:
        async with asyncio.timeout(PATIENCE_SECONDS), raw_http2(port, tls) as client:
            while not isinstance(await client.next_frame(), SettingsFrame):
                pass
            streams = range(1, 2 * flood, 2)
            for stream_id in streams:
                begin(client, stream_id, WATCH)
            # The server's own loop takes one at most, which it has asked for before.
            return {(await client.answer(stream_id)).headers["grpc-status"] for stream_id in streams[waiting + 1 :]}

    async with served(replace(BOUNDS, calls=100, waiting=waiting)) as (port, tls):
        with ThreadPoolExecutor(1) as stranger:
            # It blocks this loop, and so the server: nobody takes a call.
            assert OK not in stranger.submit(lambda: asyncio.run(refusals(port, tls))).result()


async def test_callers_that_bring_nothing_are_counted_and_told_in_time() -> None:
    """The rate of an address, and the time for a message: neither waits for a message."""
    mesh = SmallMesh()
    binding = ServiceBinding(
        "grpc.health.v1.Health", lambda server: None, {WATCH: MethodRule(roles=ANY_ROLE, lease=False)}
    )
    middleware = public_middleware(binding.methods, calls_per_second=0.25)  # One call, then none for seconds.
    credentials = grpc.ssl_server_credentials([(mesh.server_key, mesh.server_certificate)])
    tls = load_client_context(ca_pem=mesh.ca.pem)
    tls.set_alpn_protocols(["h2"])
    bounds = replace(BOUNDS, message_seconds=0.3)
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        serving("127.0.0.1:0", credentials, [binding], middleware, bounds=bounds) as server,
        raw_http2(server.port, tls, name=SERVER_NAME) as client,
    ):
        for stream_id in (1, 3):
            begin(client, stream_id, WATCH)
        assert outcome(await client.answer(3)) == (8, "RATE_LIMITED")
        assert outcome(await client.answer(1)) == (4, "MESSAGE_LATE")
