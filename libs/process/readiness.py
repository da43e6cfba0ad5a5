"""It is responsible for hearing what a supervised process says of itself (the other end of `libs.process.notify`)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DATAGRAM_BYTES = 4096


class Readiness:
    """What the process said last. `channel` is where it speaks, or None for one that never does."""

    def __init__(self, channel: socket.socket | None = None) -> None:
        self._channel = channel
        self._ready = asyncio.Event()
        self.status = ""

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    async def until_ready(self) -> None:
        await self._ready.wait()

    def forget(self) -> None:
        """Begin anew for another process: what the last one sent and nobody heard yet is dropped too."""
        self.receive()
        self._ready.clear()
        self.status = ""

    def receive(self) -> None:
        """Take every datagram that is there."""
        if self._channel is None:
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                self.hear(self._channel.recv(_DATAGRAM_BYTES).decode("utf-8", "replace"))

    def hear(self, message: str) -> None:
        """Take one datagram: lines of NAME=value; names that do not matter here are passed over."""
        for line in message.splitlines():
            name, _, value = line.partition("=")
            if (name, value) == ("READY", "1"):
                self._ready.set()
            elif (name, value) == ("STOPPING", "1"):
                self._ready.clear()
            elif name == "STATUS":
                self.status = value


@contextmanager
def listening(path: Path) -> Iterator[Readiness]:
    """Listen on a datagram socket at `path`, which only this user may write to."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel:
        path.unlink(missing_ok=True)  # Left over from a killed supervisor.
        channel.bind(str(path))
        path.chmod(0o600)
        readiness = Readiness(channel)
        loop.add_reader(channel, readiness.receive)
        try:
            yield readiness
        finally:
            loop.remove_reader(channel)
            path.unlink(missing_ok=True)
