"""It is responsible for HTTP/2 connections: what their frames mean, what bounds them, and a task for each request.

The protocol itself is the `h2` library's, which does no I/O. What goes out does so by `wire`, and a request on a stream
is `streams.Stream`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import structlog
from h2 import events
from h2.errors import ErrorCodes
from h2.exceptions import NoSuchStreamError, ProtocolError

from libs.https.connections import Claim
from services.router.face.answers import Answer, Headers
from services.router.face.bodies import BodyRoom
from services.router.face.frames import Allowance, FramesRefused
from services.router.face.settings import HttpSettings
from services.router.face.streams import Answering, Stream
from services.router.face.wire import Wire

log = structlog.get_logger()


class Http2Connection(asyncio.Protocol):
    """One connection (`connections.Connection`). Requests run in `tasks`."""

    def __init__(
        self,
        answer: Answer,
        headers: Headers,
        settings: HttpSettings,
        room: BodyRoom,
        tasks: asyncio.TaskGroup,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._answering = Answering(answer, headers, room, settings.stall_seconds)
        self._wire = Wire(settings, Allowance(clock or self._loop.time))
        self._tasks = tasks
        self._streams: dict[int, tuple[Stream, asyncio.Task[None]]] = {}
        """What runs. The library forgets a stream that was reset before its task has ended."""
        self._served = 0
        self._draining = False
        self._stopped = False
        self._closed = False
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire.connect(cast(asyncio.Transport, transport))
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._wire.lost = self._wire.lost or not self._stopped
        self._rest()
        self._cancel_streams()
        self._settle()

    def pause_writing(self) -> None:
        self._wire.pause()

    def resume_writing(self) -> None:
        self._wire.resume()

    def eof_received(self) -> bool:
        return False

    def data_received(self, data: bytes) -> None:
        if self._wire.is_closing:
            return
        try:
            self._wire.allowance.pass_over(data)
            for event in self._wire.h2.receive_data(data):
                self._take(event)
        except FramesRefused as error:
            log.info("frames refused", detail=str(error), thinned=True)
            self._wire.go_away(error.code)
            self._give_up()
        except ProtocolError as error:
            log.info("unreadable frames", kind=type(error).__name__, thinned=True)
            self._wire.flush()  # The library has said why.
            self._give_up()
        else:
            self._wire.flush()

    @property
    def claim(self) -> Claim:
        if self._streams or self._wire.unsent:
            return Claim.KEPT if self._wire.kept else Claim.STRANGER
        return Claim.RESTING if self._wire.kept else Claim.NONE

    def drain(self) -> None:
        # Clients that many use take the word that a connection ends for the end of what still runs on it: so they hear
        # it when nothing does.
        self._draining = True
        self._end_if_drained()

    def abort(self) -> None:
        self._stopped = True
        self._wire.abort()

    def _take(self, event: events.Event) -> None:
        match event:
            case events.RequestReceived(stream_id=stream_id):
                self._begin(event)
            case events.DataReceived(stream_id=stream_id):
                if stream_id in self._streams:
                    self._streams[stream_id][0].feed(event.data, event.flow_controlled_length)
                else:
                    self._wire.h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
            case events.StreamEnded(stream_id=stream_id):
                if stream_id in self._streams:
                    self._streams[stream_id][0].feed_end()
            case events.StreamReset(stream_id=stream_id):
                if stream_id in self._streams:
                    stream, task = self._streams[stream_id]
                    stream.lost = True
                    task.cancel()
            case events.WindowUpdated() | events.RemoteSettingsChanged():
                self._wire.widened()
            case events.ConnectionTerminated():
                self._draining = True
                self._end_if_drained()

    def _begin(self, event: events.RequestReceived) -> None:
        self._served += 1
        if len(self._streams) >= self._settings.max_streams:
            # Nothing was done about it: a client may ask again (RFC 9113, section 8.7). It may have reset it itself by
            # now, in what was read together with its beginning.
            with suppress(NoSuchStreamError):
                self._wire.h2.reset_stream(event.stream_id, ErrorCodes.REFUSED_STREAM)
            return
        self._rest()
        stream = Stream(self._wire, self._answering, event.stream_id, event.headers, refused=self._draining)
        self._draining = self._draining or self._served >= self._settings.max_connection_requests
        task = self._tasks.create_task(stream.run())
        self._streams[event.stream_id] = stream, task
        # Not at the end of what it runs: a task that is cancelled at once runs nothing.
        task.add_done_callback(lambda done: self._forget(event.stream_id))

    def _forget(self, stream_id: int) -> None:
        stream, _ = self._streams.pop(stream_id)
        if not self._wire.is_closing:
            stream.give_back()
        if not self._streams and not self._wire.is_closing:
            self._await_request()
        self._end_if_drained()
        self._settle()

    def _give_up(self) -> None:
        """End at once, for what the client has done."""
        self._wire.lost = True
        self._cancel_streams()
        self._wire.close()

    def _cancel_streams(self) -> None:
        for _, task in self._streams.values():
            task.cancel()

    def _end_if_drained(self) -> None:
        if self._draining and not self._streams and not self._wire.is_closing:
            self._wire.go_away(ErrorCodes.NO_ERROR)
            self._wire.close()

    def _settle(self) -> None:
        if self._closed and not self._streams:
            self.over.set()

    def _await_request(self) -> None:
        self._rest()
        self._idle = self._loop.call_later(self._settings.idle_seconds, self.drain)

    def _rest(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
