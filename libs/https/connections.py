"""It is responsible for connections: how many are open, from the first one to the last, and that each ends in time.

Whoever holds a place and says nothing has to give it up when somebody else comes and there is none: silence costs its
sender nothing, and who is known has only shown once who they are. And whoever comes needs time to say who they are, so
those that nobody knows yet have some places that no others take from them. What is said on one is its protocol's
business; whoever accepts them knows none.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import partial
from itertools import islice
from typing import Protocol, cast

import structlog

H2, HTTP11 = "h2", "http/1.1"
"""The names of both versions in a TLS session's handshake (RFC 7301)."""
PROTOCOLS = (H2, HTTP11)
"""What a listener offers, what it prefers first."""

_CLOSING_SECONDS = 2.0
"""For how long the end of a TLS session waits for its client's."""
_UNSENT_BYTES = 64 << 10
"""How much of what is written may wait in this process for its client to read; beyond it, writers wait."""
_PAUSE_SECONDS = 1.0
"""Before the next attempt where the system has no descriptor left."""
_UNKNOWN_PART = 8
"""One of so many places is for those that are not known yet: they give way to each other there, and resting ones to
them."""
_ORDER_SECONDS = 1.0
"""For how long it is known who gives way next; to look at all of them each time would cost as much as who comes."""

log = structlog.get_logger()


class Claim(IntEnum):
    """What a connection has on its place. Where there is none left, one with less gives way first."""

    NONE = 0
    """No request runs on it, and none has shown whose it is."""
    STRANGER = 1
    """A request runs of nobody who is known, where whoever answers knows somebody."""
    RESTING = 2
    """It is somebody's who is known, and no request runs on it."""
    KEPT = 3
    """It gives way to nobody."""


class Connection(Protocol):
    """One client's connection. It is also the protocol of its transport (`asyncio.Protocol`)."""

    over: asyncio.Event
    """Set once it is lost and nothing runs on it any more."""

    @property
    def claim(self) -> Claim:
        """What it has on its place now."""
        ...

    def drain(self) -> None:
        """Take no new request, and end when those that run have ended."""
        ...

    def abort(self) -> None:
        """End now; what is cut off is cut off by this router."""
        ...


class Gauge(Protocol):
    """A number, or one for each label."""

    def add(self, value: str = "", amount: int = 1) -> None: ...


class Observed(Protocol):
    """What is counted of connections."""

    @property
    def open(self) -> Gauge:
        """Those that are open now."""
        ...

    @property
    def turned_away(self) -> Gauge:
        """Those that were not let in, by reason: `full`, or `handshake`; and `displaced`, those that gave way."""
        ...


class Unobserved:
    """Counts nothing."""

    @property
    def open(self) -> Gauge:
        return self

    @property
    def turned_away(self) -> Gauge:
        return self

    def add(self, value: str = "", amount: int = 1) -> None:
        pass


class Connections:
    """The connections of one listener. `speak` has the protocols by their names in TLS; without TLS it is HTTP/1."""

    def __init__(
        self,
        speak: Callable[[str], Connection],
        context: ssl.SSLContext | None,
        *,
        limit: int,
        handshake_seconds: float,
        metrics: Observed,
    ) -> None:
        self._speak = speak
        self._context = context
        self._limit = limit
        self._handshake_seconds = handshake_seconds
        self._metrics = metrics
        self._serving: dict[socket.socket, asyncio.Task[None]] = {}
        """All connections, those too whose TLS session has not begun."""
        self._open: dict[socket.socket, Connection] = {}
        """Those of which it has."""
        self._leaving: set[socket.socket] = set()
        """Those that have given way, and are about to be gone."""
        self._order: deque[tuple[socket.socket, Claim]] = deque()
        """Those that may give way, in turn, and what their claims were when they were looked at."""
        self._ordered_at = -_ORDER_SECONDS
        self._closed = False

    def open(self, listening: socket.socket, tasks: asyncio.TaskGroup) -> None:
        """Serve whoever comes, in `tasks`. Beyond the limit the oldest connection that may gives way; if none does, the
        one that comes is closed, and its client learns it at once.
        """
        asyncio.get_running_loop().add_reader(listening, self._accept, listening, tasks)

    def close(self, listening: socket.socket) -> None:
        """Let nobody in any more."""
        self._closed = True
        asyncio.get_running_loop().remove_reader(listening)

    async def drain(self, seconds: float) -> None:
        """Let what runs end, for so long at most, and end the rest."""
        for accepted, task in self._serving.items():
            if accepted in self._open:
                self._open[accepted].drain()
            else:
                task.cancel()
        if self._serving:
            await asyncio.wait(self._serving.values(), timeout=seconds)
        for connection in self._open.values():
            connection.abort()
        if self._serving:
            await asyncio.wait(self._serving.values())

    def _accept(self, listening: socket.socket, tasks: asyncio.TaskGroup) -> None:
        try:
            accepted, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # Whoever it was has left.
        except OSError as error:
            log.error("cannot accept connections now", detail=error.strerror)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listening)
            loop.call_later(_PAUSE_SECONDS, self._resume, listening, tasks)
            return
        if len(self._serving) - len(self._leaving) >= self._limit and not self._make_place():
            self._metrics.turned_away.add("full")
            accepted.close()
            return
        accepted.setblocking(False)
        self._metrics.open.add()
        task = self._serving[accepted] = tasks.create_task(self._serve(accepted))
        task.add_done_callback(partial(self._forget, accepted))

    def _make_place(self) -> bool:
        """Have one end that may; say whether there was one."""
        now = asyncio.get_running_loop().time()
        accepted = self._next() if now - self._ordered_at < _ORDER_SECONDS else None
        if accepted is None:
            self._order, self._ordered_at = deque(self._in_turn()), now
            accepted = self._next()
        if accepted is None:
            return False
        self._leaving.add(accepted)
        self._metrics.turned_away.add("displaced")
        if accepted in self._open:
            self._open[accepted].abort()
        else:
            self._serving[accepted].cancel()
        return True

    def _next(self) -> socket.socket | None:
        while self._order:
            accepted, claim = self._order.popleft()
            if accepted in self._serving and accepted not in self._leaving and self._claim(accepted) is claim:
                return accepted
        return None

    def _in_turn(self) -> Iterator[tuple[socket.socket, Claim]]:
        """Yield those that may give way before it has to be looked again, who first, each kind by age, TLS or not. Of
        those that are not known, it is always one of the kind of which there are more: so neither silence nor requests
        without end, however many, leave whoever comes less time to say who they are than it takes to fill the places
        that are theirs. Each of them that gives way has another in its place, who is not known either.
        """
        kinds: dict[Claim, deque[socket.socket]] = {claim: deque() for claim in Claim}
        for accepted in self._serving:
            if accepted not in self._leaving:
                kinds[self._claim(accepted)].append(accepted)
        silent, asking, resting = kinds[Claim.NONE], kinds[Claim.STRANGER], kinds[Claim.RESTING]
        beyond = len(silent) + len(asking) - self._limit // _UNKNOWN_PART
        if beyond <= 0 and resting:
            for accepted in islice(resting, 1 - beyond):
                yield accepted, Claim.RESTING
            return
        for _ in range(max(beyond, min(len(silent) + len(asking), 1))):
            kind, claim = (silent, Claim.NONE) if len(silent) >= len(asking) else (asking, Claim.STRANGER)
            yield kind.popleft(), claim

    def _claim(self, accepted: socket.socket) -> Claim:
        return self._open[accepted].claim if accepted in self._open else Claim.NONE

    def _resume(self, listening: socket.socket, tasks: asyncio.TaskGroup) -> None:
        if not self._closed:
            self.open(listening, tasks)

    async def _serve(self, accepted: socket.socket) -> None:
        def begin(agreed: str) -> Connection:
            connection = self._open[accepted] = self._speak(agreed)
            return connection

        tls = self._context is not None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Doorway(begin),
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=self._handshake_seconds if tls else None,
                ssl_shutdown_timeout=_CLOSING_SECONDS if tls else None,
            )
        except OSError:
            # Also what is no TLS, is of another version of it, or takes too long.
            self._metrics.turned_away.add("handshake")
            return
        await self._open[accepted].over.wait()

    def _forget(self, accepted: socket.socket, task: asyncio.Task[None]) -> None:
        del self._serving[accepted]
        self._leaving.discard(accepted)
        if self._open.pop(accepted, None) is None:
            accepted.close()  # Its task may have been cancelled before it did anything.
        self._metrics.open.add(amount=-1)


def unsent(transport: asyncio.WriteTransport | None) -> int:
    """Return how many bytes of what was written the operating system has not taken yet."""
    if transport is None:
        return 0
    # asyncio's TLS tells of what it holds itself, and not of what waits below it.
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return transport.get_write_buffer_size() + (0 if below is None else int(below.get_write_buffer_size()))


class _Doorway(asyncio.Protocol):
    """Hands the connection to the protocol that both sides have agreed upon."""

    def __init__(self, begin: Callable[[str], Connection]) -> None:
        self._begin = begin

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=_UNSENT_BYTES)
        session = transport.get_extra_info("ssl_object")
        agreed = HTTP11 if session is None else session.selected_alpn_protocol() or HTTP11
        connection = cast(asyncio.Protocol, self._begin(agreed))
        transport.set_protocol(connection)
        connection.connection_made(transport)
