"""It is responsible for HTTP/1 on one connection: aiohttp's parser, and what it lets by and should not.

aiohttp answers unreadable requests by itself, in plain text, quoting them, with a stack trace in the log. Here whoever
serves says what they get, and there is one line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

import structlog
from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import ERROR, RequestHandler, _ErrInfo

from libs.errors import MeshError
from libs.https.connections import Claim, unsent
from libs.https.unreadable import HeadTooLarge, TargetTooLong, Unreadable, VersionNotSupported

_LINGERING_SECONDS = 1.0
"""For how long the rest of a refused body is read, so that the client can read why before the connection closes."""
_TARGET_BYTES = 256
"""How much of the beginning of a head tells what it asks for."""
_BUG_STATUS = 500
_LATE_STATUS = 504
"""What aiohttp makes of a `TimeoutError`."""
_TOO_MANY = "Too many headers received"
"""What aiohttp says of more fields than it reads, 128."""

log = structlog.get_logger()


class Http1Settings(Protocol):
    """Of one connection."""

    @property
    def max_head_bytes(self) -> int:
        """The largest request head, its line and all its fields together. Half of it is left for the target."""
        ...

    @property
    def max_connection_requests(self) -> int:
        """After how many requests it ends."""
        ...

    @property
    def idle_seconds(self) -> float:
        """How long it may take to a whole request head, the first or the next one."""
        ...

    @property
    def stall_seconds(self) -> float:
        """How long its client may take none of what is written to it. Whoever writes MUST keep to it."""
        ...


Respond = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
"""Answers a request. MUST tell the connection (`request.protocol`) of its `begin` and `end`."""
Refuse = Callable[[MeshError | None, str], web.StreamResponse]
"""Returns what is answered to what is no request, or where a bug is (None), for the path, as far as that is known."""


class Http1Server(web.Server):
    """Serves HTTP/1. `refuse` is asked about what cannot be read, what `respond` raises of `told`, and bugs.

    With `knowing`, `respond` tells connections that it knows whose they are (`keep`), and the requests of others
    may be ended for somebody to come in. With `cancelling` a client that leaves cancels what answers it: whatever
    that waits for stops at once.
    """

    def __init__(
        self,
        respond: Respond,
        refuse: Refuse,
        settings: Http1Settings,
        *,
        told: type[MeshError] = Unreadable,
        request: type[Request] | None = None,
        cancelling: bool = True,
        knowing: bool = False,
    ) -> None:
        super().__init__(
            respond,
            request_factory=self._request,
            handler_cancellation=cancelling,
            access_log=None,
            # What came over the wire is what is judged and hashed: nothing may unpack it on the way.
            auto_decompress=False,
            lingering_time=_LINGERING_SECONDS,
            keepalive_timeout=settings.idle_seconds,
            max_line_size=settings.max_head_bytes // 2,
            max_field_size=settings.max_head_bytes,
        )
        self._refuse = refuse
        self._settings = settings
        self._told = (Unreadable, told)
        self._request_type = request or Request
        self._knowing = knowing

    def __call__(self) -> Http1Connection:
        return Http1Connection(
            self, self._refuse, self._settings, self._told, knowing=self._knowing, loop=self._loop, **self._kwargs
        )

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        spoken = message.version in (HttpVersion10, HttpVersion11)
        if not spoken:
            # Or it would be answered in whatever version it claims.
            message = message._replace(version=HttpVersion11)
        request = self._request_type(message, payload, protocol, writer, task, self._loop)
        request.spoken = spoken
        return request


class Request(web.BaseRequest):
    """One request as it came."""

    spoken = True
    """Whether it is of a version that is spoken here."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        # Without a name of ours aiohttp gives its own and its version.
        response.headers.popall("Server", None)


class Http1Connection(RequestHandler):
    """One connection (`connections.Connection`)."""

    __slots__ = (
        "_beginning",
        "_body",
        "_closed",
        "_draining",
        "_head_bytes",
        "_kept",
        "_knowing",
        "_refuse",
        "_refused",
        "_running",
        "_served",
        "_stopped",
        "_told",
        "lost",
        "over",
        "settings",
        "stalled",
    )

    def __init__(
        self,
        server: web.Server,
        refuse: Refuse,
        settings: Http1Settings,
        told: tuple[type[MeshError], ...],
        *,
        knowing: bool,
        **options: Any,
    ) -> None:
        super().__init__(server, **options)
        self._refuse = refuse
        self.settings = settings
        self._told = told
        self._knowing = knowing
        self.over = asyncio.Event()
        self.lost = False
        """Whether the other side is gone."""
        self.stalled = False
        """Whether the other side is there and does not read."""
        self._body: Any = EMPTY_PAYLOAD
        """Of the request that was read last."""
        self._beginning = b""
        """Of the head that came last: aiohttp does not say for which path it was what it cannot read."""
        self._head_bytes = 0
        """How much of the next head has come."""
        self._refused = False
        self._closed = False
        """Whether all that was written has gone out, or never will. aiohttp lets go of its transport before."""
        self._draining = False
        self._kept = False
        self._stopped = False
        self._running = 0
        self._served = 0

    def connection_lost(self, exc: BaseException | None) -> None:
        self._closed = True
        self.lost = not self._stopped
        super().connection_lost(exc)
        self._settle()

    def data_received(self, data: bytes) -> None:
        """Read on. aiohttp bounds each field and their number, which together is too much for a head."""
        if self._refused:
            return
        before, in_body = self._request_count, not self._body.is_eof()
        if not in_body:
            begun = self._beginning if self._head_bytes else b""
            self._beginning = begun + data[: _TARGET_BYTES - len(begun)]
        super().data_received(data)
        if in_body and self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._break_body()
        elif self._request_count != before and self._messages:
            self._body, self._head_bytes = self._messages[-1][1], 0
        elif not in_body:
            self._head_bytes += len(data)
            if self._head_bytes > self.settings.max_head_bytes:
                self._refuse_head()

    @property
    def claim(self) -> Claim:
        # aiohttp has taken a request from the queue before anything of it runs.
        runs = self._running or self._messages or self._current_request is not None or unsent(self.transport)
        if not runs:
            return Claim.RESTING if self._kept else Claim.NONE
        return Claim.KEPT if self._kept or not self._knowing else Claim.STRANGER

    def keep(self) -> None:
        """Take note that whoever answers knows whose it is: what runs on it gives way to nobody any more."""
        self._kept = True

    def drain(self) -> None:
        self._draining = True
        if self._running or self._messages:
            self.close()
        else:
            self.force_close()

    def abort(self) -> None:
        self._stopped = True
        if self.transport is not None:
            self.transport.abort()

    def begin(self) -> None:
        """Take note of a request that runs."""
        self._running += 1
        self._served += 1

    def end(self) -> None:
        """Take note of its end."""
        self._running -= 1
        self._settle()

    @property
    def ends(self) -> bool:
        """Whether the request that runs is the last one."""
        return self._draining or self._refused or self._served >= self.settings.max_connection_requests

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = _BUG_STATUS,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no request. Raises `ConnectionError` where an answer has begun already, or nobody reads it."""
        if status == _LATE_STATUS or isinstance(exc, ConnectionResetError):
            log.info("the client left, or does not read", thinned=True)  # Closing the body has told who made it.
            raise ConnectionError("nobody reads this answer")
        why = self._why(status, exc)
        response = self._refuse(why, self._path(request))
        if why is None:
            log.error("bug in the listener", exc_info=exc)
        else:
            log.info("unreadable request", status=response.status, kind=type(exc).__name__, thinned=True)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        response.force_close()
        return response

    def _why(self, status: int, exc: BaseException | None) -> MeshError | None:
        """Return why a request is refused, None for a bug."""
        if isinstance(exc, self._told):
            return exc
        if status == _BUG_STATUS:
            return None
        limit = self.settings.max_head_bytes
        if isinstance(exc, LineTooLong) and exc.args[1] == limit // 2:
            return TargetTooLong(f"the request's target is over {limit // 2} bytes")
        if isinstance(exc, LineTooLong) or (isinstance(exc, BadHttpMessage) and _TOO_MANY in exc.message):
            return HeadTooLarge(f"the request's head has too many fields, or is over {limit} bytes")
        return Unreadable("this cannot be read as an HTTP request")

    def _path(self, request: web.BaseRequest) -> str:
        """Return the path that is asked for, as far as it is known."""
        if request._message is not ERROR:
            target = request.raw_path
        else:
            line = self._beginning.lstrip(b"\r\n").partition(b"\n")[0].decode("latin-1").split(" ")
            target = line[1] if len(line) > 1 else ""
        return target.partition("?")[0]

    def _break_body(self) -> None:
        """Tell whoever reads the body that the rest is none: aiohttp has them wait for it, and would answer twice."""
        self._refused = True
        self._messages.pop()
        self._body.set_exception(web.RequestPayloadError("the rest of the body cannot be read"))
        self._body.feed_eof()

    def _refuse_head(self) -> None:
        self._refused = True
        error = HeadTooLarge(f"the request's head is over {self.settings.max_head_bytes} bytes")
        self._messages.append((_ErrInfo(error.status, error, str(error)), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _settle(self) -> None:
        if self._closed and not self._running:
            self.over.set()


def require_one_reading(request: web.BaseRequest, limit: int) -> None:
    """Refuse what aiohttp takes for a request and nobody should. Raises `Unreadable`."""
    if not cast(Request, request).spoken:
        raise VersionNotSupported("HTTP/1.0, HTTP/1.1 and, agreed upon in TLS, HTTP/2 are spoken here")
    codings = request.headers.getall("Transfer-Encoding", [])
    if codings and (request.version < HttpVersion11 or [coding.strip().lower() for coding in codings] != ["chunked"]):
        # RFC 9112, section 6.1: HTTP/1.0 has none, and of more than one somebody on the way may have read another.
        raise Unreadable("the only transfer coding is chunked, once, of HTTP/1.1")
    lines = (len(name) + len(value) + len(": \r\n") for name, value in request._message.raw_headers)
    if len(request.raw_path) + sum(lines) > limit:
        raise HeadTooLarge(f"the request's head is over {limit} bytes")
