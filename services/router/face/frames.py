"""Responsible for what HTTP/2 frames a client may send, before anything is done about them.

A frame costs its sender next to nothing, and its receiver some work, a place in a table or an answer. Streams reset as
soon as they are opened (CVE-2023-44487), header blocks that never end (CVE-2024-27316), settings, pings, priorities,
empty data: each client has an allowance of frames for all of them, which fills up again with time and with what the
client is given to acknowledge. The `h2` library keeps to the protocol and counts none of them; it also waits for the
whole of a frame before it says that the frame is too long.
"""

from __future__ import annotations

from collections.abc import Callable

from h2.errors import ErrorCodes

_PREFACE_BYTES = 24
_HEAD_BYTES = 9
"""Length (3 bytes), type, flags, stream (RFC 9113, section 4.1)."""
MAX_FRAME_BYTES = 16 << 10
"""The largest frame that nobody has to agree upon (section 4.2)."""

_DATA, _RST_STREAM = 0x0, 0x3
_USEFUL_BYTES = 256
"""Data frames from this length on are worth their cost."""
_RESET_COST = 10.0
_ALLOWANCE = 1000.0
"""How many frames may come at once."""
_PER_SECOND = 100.0
"""How many more may come each second."""


class FramesRefused(Exception):
    """The client sends what it may not; the connection has to end with this code (RFC 9113, section 7)."""

    def __init__(self, message: str, code: ErrorCodes) -> None:
        super().__init__(message)
        self.code = code


class Allowance:
    """What one connection may still send."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = _ALLOWANCE
        self._counted_at = clock()
        self._skip = _PREFACE_BYTES
        """How many of the next bytes are no frame's head."""
        self._head = bytearray()

    def pass_over(self, data: bytes) -> None:
        """Charge for the frames that begin in the next bytes that came. Raises `FramesRefused`."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            step = _HEAD_BYTES - len(self._head)
            self._head += data[at : at + step]
            at += step
            if len(self._head) == _HEAD_BYTES:
                self._skip = length = int.from_bytes(self._head[:3], "big")
                kind = self._head[3]
                self._head.clear()
                if length > MAX_FRAME_BYTES:
                    raise FramesRefused("a frame is too long", ErrorCodes.FRAME_SIZE_ERROR)
                self._charge(kind, length)

    def earn(self) -> None:
        """Give a frame back: the client was sent data, and will say how much of it it has taken."""
        self._left = min(_ALLOWANCE, self._left + 1)

    def _charge(self, kind: int, length: int) -> None:
        if kind == _DATA and length >= _USEFUL_BYTES:
            return
        now = self._clock()
        self._left = min(_ALLOWANCE, self._left + (now - self._counted_at) * _PER_SECOND)
        self._counted_at = now
        self._left -= _RESET_COST if kind == _RST_STREAM else 1.0
        if self._left < 0:
            raise FramesRefused("too many frames that carry nothing", ErrorCodes.ENHANCE_YOUR_CALM)
