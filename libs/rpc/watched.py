"""It is responsible for knowing of a channel how many calls run on it, whether its server serves, and whom it forgot.

The connection to a process that was stopped, or to a host that vanished, is there for a while: only what gets no answer
shows it. A server may also be there and say that it cannot serve, as one does that is cut off from what it needs. And
it may forget a caller before the caller's own reckoning ends, for example when a policy refused it for a while; nobody
but the one call that fails then hears of it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import grpc
import grpc.aio

_GIVEN_UP = frozenset({None, grpc.StatusCode.CANCELLED})
"""How calls end of which nobody awaits the answer any more, so that nothing is known of the server."""

_AWAY = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE})


class WatchedChannel(grpc.aio.Channel):
    """A channel that counts its calls and tells `unauthenticated` when one was answered so."""

    def __init__(self, channel: grpc.aio.Channel, unauthenticated: Callable[[], None]) -> None:
        self._channel = channel
        self._unauthenticated = unauthenticated
        self._known: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self.running = 0
        """How many calls are not over yet."""
        self.is_away = False
        """The last that is known of the server is that it did not serve: a call ran into its deadline, or ended as one
        does whose server cannot be had, or a stream with signs of life gave none, of which whoever reads it MUST tell
        here.
        """

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

    def unary_unary(self, method: str, *given: Any, **named: Any) -> Any:
        return self._watched(self._channel.unary_unary, method, given, named)

    def unary_stream(self, method: str, *given: Any, **named: Any) -> Any:
        return self._watched(self._channel.unary_stream, method, given, named)

    def stream_unary(self, method: str, *given: Any, **named: Any) -> Any:
        return self._watched(self._channel.stream_unary, method, given, named)

    def stream_stream(self, method: str, *given: Any, **named: Any) -> Any:
        return self._watched(self._channel.stream_stream, method, given, named)

    def _watched(
        self, make: Callable[..., Any], method: str, given: tuple[Any, ...], named: Mapping[str, Any]
    ) -> Callable[..., Any]:
        """Return what begins a call. Stubs are made anew for each call; what they are made of is kept here."""
        key = (make, method, *given, *named.values())
        if (known := self._known.get(key)) is None:
            known = self._known[key] = self._begin_watched(make(method, *given, **named))
        return known

    def _begin_watched(self, begin: Callable[..., Any]) -> Callable[..., Any]:
        # The call itself stays gRPC's own, which an interceptor's would not.
        def begin_watched(*given: Any, **named: Any) -> Any:
            call = begin(*given, **named)
            self.running += 1
            call.add_done_callback(self._over)
            return call

        return begin_watched

    def _over(self, call: grpc.aio.Call) -> None:
        self.running -= 1
        code = _code_of(call)
        if code not in _GIVEN_UP:
            self.is_away = code in _AWAY
        if code is grpc.StatusCode.UNAUTHENTICATED:
            self._unauthenticated()


def _code_of(call: grpc.aio.Call) -> grpc.StatusCode | None:
    """The code of a call that is over: the coroutine has nothing to wait for, and a task for each call would cost."""
    asking: Coroutine[Any, Any, grpc.StatusCode] = call.code()
    try:
        asking.send(None)
    except StopIteration as answered:
        code: grpc.StatusCode = answered.value
        return code
    asking.close()
    return None
