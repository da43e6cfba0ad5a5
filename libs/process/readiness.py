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
    """What the process said last. Forget it when the process is restarted."""

    def __init__(self) -> None:
        self._ready = asyncio.Event()
        self.status = ""

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    async def until_ready(self) -> None:
        await self._ready.wait()

    def forget(self) -> None:
        self._ready.clear()
        self.status = ""

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
    readiness = Readiness()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel:
        path.unlink(missing_ok=True)  # Left over from a killed supervisor.
        channel.bind(str(path))
        path.chmod(0o600)

        def receive() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    readiness.hear(channel.recv(_DATAGRAM_BYTES).decode("utf-8", "replace"))

        loop.add_reader(channel, receive)
        try:
            yield readiness
        finally:
            loop.remove_reader(channel)
            path.unlink(missing_ok=True)
