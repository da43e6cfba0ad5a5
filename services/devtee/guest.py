"""The guest agent's sockets: responsible for serving one TD's methods over HTTP on one Unix socket.

Whoever can open the socket is that TD's workload, so the socket is mode 0600 from the moment it exists.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import structlog
from aiohttp import web

from libs import jcs
from libs.errors import Code, MeshError
from services.devtee.methods import GuestMethods

_BODY_LIMIT = 10 << 20
_logger = structlog.get_logger()


class SocketUnavailable(MeshError):
    """A guest socket cannot be bound: its path is taken by something else, too long, or not writable."""

    code = Code.FAILED_PRECONDITION
    reason = "SOCKET_UNAVAILABLE"


@asynccontextmanager
async def serving_guest(path: Path, methods: GuestMethods) -> AsyncIterator[None]:
    """Serve on `path` until the context ends. Raises `SocketUnavailable`."""
    with _bound(path) as listener:
        runner = web.AppRunner(_application(methods), access_log=None, shutdown_timeout=2)
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            yield
        finally:
            await runner.cleanup()


def _application(methods: GuestMethods) -> web.Application:
    # One call at a time, as behind a real agent's lock; signatures in pure Python must not hold up the loop.
    turn = asyncio.Lock()

    async def call(request: web.Request) -> web.Response:
        name = request.match_info["method"]
        method = methods.table.get(name)
        if method is None:
            return web.json_response({"error": f"Service not found: {name}"}, status=404)
        try:
            arguments = jcs.loads_object(await request.read() or b"{}")
            async with turn:
                answer = await asyncio.to_thread(method, arguments)
        except MeshError as error:
            _logger.info("guest call refused", method=name, reason=error.reason)
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(answer)

    application = web.Application(client_max_size=_BODY_LIMIT)
    application.router.add_post("/{method:(v1/)?[A-Za-z]+}", call)
    return application


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        except OSError as error:
            raise SocketUnavailable(f"cannot bind the guest socket {path}: {error.strerror or error}") from error
        finally:
            os.umask(mask)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody answers on; a killed predecessor leaves one behind."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketUnavailable(f"{path} exists and is not a socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise SocketUnavailable(f"cannot tell who owns {path}: {error.strerror or error}") from error
        else:
            raise SocketUnavailable(f"another process answers on {path}; stop it first")
