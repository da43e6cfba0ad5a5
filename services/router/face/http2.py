"""It is responsible for HTTP/2 connections: frames in and out, what bounds them, and a task for each request.

The protocol itself is the `h2` library's, which does no I/O. A request on a stream is `streams.Stream`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import structlog
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import NoSuchStreamError, ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from services.router.face.answers import Answer, Headers
from services.router.face.bodies import BodyRoom
from services.router.face.frames import Allowance, FramesRefused
from services.router.face.settings import HttpSettings
from services.router.face.streams import Stream

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
        self.settings = settings
        self.headers = headers
        self.room = room
        self.answer = answer
        self.over = asyncio.Event()
        self.lost = False
        """Whether the other side is gone."""
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._limit_library()
        self._loop = asyncio.get_running_loop()
        self.allowance = Allowance(clock or self._loop.time)
        self._tasks = tasks
        self._streams: dict[int, tuple[Stream, asyncio.Task[None]]] = {}
        """What runs. The library forgets a stream that was reset before its task has ended."""
        self._served = 0
        self._draining = False
        self._stopped = False
        self._closed = False
        self._clogged = False
        """Whether the operating system takes no more of what is written."""
        self._room_to_send = asyncio.Event()
        self._idle: asyncio.TimerHandle | None = None

    def _limit_library(self) -> None:
        """Windows stay what they are without any setting: 64 KiB of bodies that nobody has read yet, for each
        connection.
        """
        local = {
            SettingCodes.MAX_CONCURRENT_STREAMS: self.settings.max_streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: self.settings.max_head_bytes,
        }
        self.h2.local_settings = Settings(client=False, initial_values=local)
        # The limit is told to clients, and has to hold for those too that have not listened yet.
        self.h2.decoder.max_header_list_size = self.settings.max_head_bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.h2.initiate_connection()
        self.flush()
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self.lost = self.lost or not self._stopped
        self._rest()
        self._cancel_streams()
        self._settle()

    def pause_writing(self) -> None:
        # Answers to frames are written at once, whoever reads them: so no more frames are read until somebody does.
        self._clogged = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._clogged = False
        self.transport.resume_reading()
        self._room_to_send.set()

    def eof_received(self) -> bool:
        return False

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        try:
            self.allowance.pass_over(data)
            for event in self.h2.receive_data(data):
                self._take(event)
        except FramesRefused as error:
            log.info("frames refused", detail=str(error))
            self._go_away(error.code)
            self._give_up()
        except ProtocolError as error:
            log.info("unreadable frames", kind=type(error).__name__)
            self.flush()  # The library has said why.
            self._give_up()
        else:
            self.flush()

    def drain(self) -> None:
        # Clients that many use take the word that a connection ends for the end of what still runs on it: so they hear
        # it when nothing does.
        self._draining = True
        self._end_if_drained()

    def abort(self) -> None:
        self._stopped = True
        self.transport.abort()

    def flush(self) -> None:
        """Write what the library has for the client."""
        if data := self.h2.data_to_send():
            self.transport.write(data)

    async def sendable(self, stream_id: int, wanted: int) -> int:
        """Return how much data may go out now, once any may; for none, once it would not have to wait."""
        while True:
            window = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size)
            if not self._clogged and (window > 0 or not wanted):
                return min(window, wanted)
            self._room_to_send.clear()
            await self._room_to_send.wait()

    def _take(self, event: events.Event) -> None:
        match event:
            case events.RequestReceived(stream_id=stream_id):
                self._begin(event)
            case events.DataReceived(stream_id=stream_id):
                if stream_id in self._streams:
                    self._streams[stream_id][0].feed(event.data, event.flow_controlled_length)
                else:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
            case events.StreamEnded(stream_id=stream_id):
                if stream_id in self._streams:
                    self._streams[stream_id][0].feed_end()
            case events.StreamReset(stream_id=stream_id):
                if stream_id in self._streams:
                    stream, task = self._streams[stream_id]
                    stream.lost = True
                    task.cancel()
            case events.WindowUpdated() | events.RemoteSettingsChanged():
                self._room_to_send.set()
            case events.ConnectionTerminated():
                self._draining = True
                self._end_if_drained()

    def _begin(self, event: events.RequestReceived) -> None:
        self._served += 1
        if len(self._streams) >= self.settings.max_streams:
            # Nothing was done about it: a client may ask again (RFC 9113, section 8.7). It may have reset it itself by
            # now, in what was read together with its beginning.
            with suppress(NoSuchStreamError):
                self.h2.reset_stream(event.stream_id, ErrorCodes.REFUSED_STREAM)
            return
        self._rest()
        stream = Stream(self, event.stream_id, event.headers, refused=self._draining)
        self._draining = self._draining or self._served >= self.settings.max_connection_requests
        task = self._tasks.create_task(stream.run())
        self._streams[event.stream_id] = stream, task
        # Not at the end of what it runs: a task that is cancelled at once runs nothing.
        task.add_done_callback(lambda done: self._forget(event.stream_id))

    def _forget(self, stream_id: int) -> None:
        stream, _ = self._streams.pop(stream_id)
        if not self.transport.is_closing():
            stream.give_back()
        if not self._streams and not self.transport.is_closing():
            self._await_request()
        self._end_if_drained()
        self._settle()

    def _give_up(self) -> None:
        """End at once, for what the client has done."""
        self.lost = True
        self._cancel_streams()
        self.transport.close()

    def _cancel_streams(self) -> None:
        for _, task in self._streams.values():
            task.cancel()

    def _go_away(self, code: ErrorCodes) -> None:
        """Say that there will be no further stream. The library would end those that run, too."""
        self.flush()
        frame = GoAwayFrame(0, last_stream_id=self.h2.highest_inbound_stream_id, error_code=code)
        self.transport.write(frame.serialize())

    def _end_if_drained(self) -> None:
        if self._draining and not self._streams and not self.transport.is_closing():
            self._go_away(ErrorCodes.NO_ERROR)
            self.transport.close()

    def _settle(self) -> None:
        if self._closed and not self._streams:
            self.over.set()

    def _await_request(self) -> None:
        self._rest()
        self._idle = self._loop.call_later(self.settings.idle_seconds, self.drain)

    def _rest(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
