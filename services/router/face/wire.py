"""It is responsible for what goes out on one HTTP/2 connection: the library's frames, and when a client takes more.

A connection and the streams on it all write here; neither needs to know the other for that.
"""

from __future__ import annotations

import asyncio

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from libs.https.connections import unsent
from libs.rpc.tls import served_hosts
from services.router.face.frames import Allowance
from services.router.face.settings import HttpSettings


class Wire:
    """The way to one client. Whoever has `h2` say something to it MUST `flush`."""

    def __init__(self, settings: HttpSettings, allowance: Allowance) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self.allowance = allowance
        """What the client may still send."""
        self.lost = False
        """Whether the other side is gone."""
        self.kept = False
        """Whether it is known whose it is."""
        self._limit_library(settings)
        self._clogged = False
        """Whether the operating system takes no more of what is written."""
        self._room_to_send = asyncio.Event()

    def _limit_library(self, settings: HttpSettings) -> None:
        """Windows stay what they are without any setting: 64 KiB of bodies that nobody has read yet, for each
        connection.
        """
        local = {
            SettingCodes.MAX_CONCURRENT_STREAMS: settings.max_streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: settings.max_head_bytes,
        }
        self.h2.local_settings = Settings(client=False, initial_values=local)
        # The limit is told to clients, and has to hold for those too that have not listened yet.
        self.h2.decoder.max_header_list_size = settings.max_head_bytes

    def connect(self, transport: asyncio.Transport) -> None:
        """Begin. MUST come before all else."""
        self._transport = transport
        self.h2.initiate_connection()
        self.flush()

    def keep(self) -> None:
        """Take note that it is known whose it is."""
        self.kept = True

    @property
    def hosts(self) -> frozenset[str] | None:
        """The hosts that requests may be for; None for every one."""
        return served_hosts(self._transport)

    @property
    def is_closing(self) -> bool:
        """Whether nothing goes out any more."""
        return self._transport.is_closing()

    @property
    def unsent(self) -> int:
        """How many bytes of what was written the operating system has not taken yet."""
        return unsent(self._transport)

    def flush(self) -> None:
        """Write what the library has for the client."""
        if data := self.h2.data_to_send():
            self._transport.write(data)

    async def sendable(self, stream_id: int, wanted: int) -> int:
        """Return how much data may go out now, once any may; for none, once it would not have to wait."""
        while True:
            window = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size)
            if not self._clogged and (window > 0 or not wanted):
                return min(window, wanted)
            self._room_to_send.clear()
            await self._room_to_send.wait()

    def widened(self) -> None:
        """The client may have given room for more."""
        self._room_to_send.set()

    def pause(self) -> None:
        """Let no data go out: what was written waits. Answers to frames are written at once, whoever reads them: so no
        more frames are read either, until somebody does.
        """
        self._clogged = True
        self._transport.pause_reading()

    def resume(self) -> None:
        self._clogged = False
        self._transport.resume_reading()
        self._room_to_send.set()

    def go_away(self, code: ErrorCodes) -> None:
        """Say that there will be no further stream. The library would end those that run, too."""
        self.flush()
        frame = GoAwayFrame(0, last_stream_id=self.h2.highest_inbound_stream_id, error_code=code)
        self._transport.write(frame.serialize())

    def close(self) -> None:
        """End once what was written is out."""
        self._transport.close()

    def abort(self) -> None:
        """End now."""
        self._transport.abort()
