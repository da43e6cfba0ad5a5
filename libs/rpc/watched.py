"""It is responsible for noticing on a channel that the server no longer knows the caller.

A server may forget a caller before the caller's own reckoning ends, for example when a policy refused it for a while.
Nobody but the one call that fails then hears of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio


class WatchedChannel(grpc.aio.Channel):
    """A channel that hands every call, once it is over, to `on_end`."""

    def __init__(self, channel: grpc.aio.Channel, on_end: Callable[[grpc.aio.Call], None]) -> None:
        self._channel = channel
        self._on_end = on_end

    async def __aenter__(self) -> WatchedChannel:
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        await self._channel.__aexit__(kind, error, trace)

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    def unary_unary(self, *given: Any, **named: Any) -> Any:
        return self._watched(self._channel.unary_unary(*given, **named))

    def unary_stream(self, *given: Any, **named: Any) -> Any:
        return self._watched(self._channel.unary_stream(*given, **named))

    def stream_unary(self, *given: Any, **named: Any) -> Any:
        return self._watched(self._channel.stream_unary(*given, **named))

    def stream_stream(self, *given: Any, **named: Any) -> Any:
        return self._watched(self._channel.stream_stream(*given, **named))

    def _watched(self, begin: Callable[..., Any]) -> Callable[..., Any]:
        # The call itself stays gRPC's own, which an interceptor's would not.
        def begin_watched(*given: Any, **named: Any) -> Any:
            call = begin(*given, **named)
            call.add_done_callback(self._on_end)
            return call

        return begin_watched
