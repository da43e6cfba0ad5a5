"""It is responsible for the witness's HTTPS listener: C2SP's paths, bounded bodies, one judgement at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import structlog
from aiohttp import web

from libs.errors import Code, MeshError
from libs.https.application import serving_application
from libs.https.listening import PortTaken
from libs.rpc.tls import load_server_context
from libs.transparency.add_checkpoint import (
    ADD_CHECKPOINT,
    ADD_KEY,
    MAX_KEY_REQUEST_BYTES,
    MAX_REQUEST_BYTES,
    SIZE_TYPE,
    WitnessRequestMalformed,
)
from libs.transparency.note import Signature
from services.witness.book import BookBroken
from services.witness.config import Config
from services.witness.cosigning import Cosigning, OldSizeStale, WitnessRefusal

_BODY_SECONDS = 10.0
_WAITING = 64
"""How many bodies may be read or wait for their judgement."""
_OF_ONE_ADDRESS = 4
"""How many of these one address may have: a log sends one at a time, and nobody alone keeps another's from its turn."""

G = TypeVar("G")
T = TypeVar("T")

log = structlog.get_logger()


class CannotListen(MeshError):
    """The listener's address, certificate or key cannot be used."""

    code = Code.UNAVAILABLE
    reason = "CANNOT_LISTEN"


class Submissions:
    """What comes over HTTPS, handed to the one thread that judges."""

    def __init__(self, cosigning: Cosigning, thread: ThreadPoolExecutor) -> None:
        self._cosigning = cosigning
        self._thread = thread
        self._waiting: Counter[str] = Counter()
        """Requests by the address that they come from."""
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def watch(self) -> None:
        """Raise `BookBroken` once a write has failed: nothing is cosigned after it."""
        await asyncio.shield(self._broken)

    def application(self) -> web.Application:
        served = web.Application()
        cosigning = self._cosigning
        served.router.add_post(ADD_CHECKPOINT, self._taking(cosigning.add_checkpoint, MAX_REQUEST_BYTES))
        served.router.add_post(ADD_KEY, self._taking(cosigning.add_key, MAX_KEY_REQUEST_BYTES))
        served.router.add_get("/{log:[0-9a-f]{64}}/checkpoint", self._newest)
        return served

    def _taking(
        self, judge: Callable[[bytes], Sequence[Signature]], most: int
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            address = request.remote or ""
            is_full = self._waiting.total() >= _WAITING or self._waiting[address] >= _OF_ONE_ADDRESS
            if is_full or self._broken.done():
                return web.Response(status=503, text="BUSY\n")
            self._waiting[address] += 1
            try:
                body = await _read(request, most)
                lines = await self._on_thread(judge, body)
            except (WitnessRequestMalformed, WitnessRefusal) as error:
                return _refusal(error)
            finally:
                self._waiting.subtract((address,))
                self._waiting = +self._waiting  # Without those that have none.
            return web.Response(text="".join(line.line() for line in lines))

        return handle

    async def _newest(self, request: web.Request) -> web.Response:
        note = await self._on_thread(self._cosigning.newest, request.path)
        if note is None:
            return web.Response(status=404, text="NO_CHECKPOINT\n")
        return web.Response(
            body=note, content_type="text/plain", charset="utf-8", headers={"Cache-Control": "no-cache"}
        )

    async def _on_thread(self, work: Callable[[G], T], given: G) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, given)
        except BookBroken as error:
            if not self._broken.done():
                self._broken.set_exception(error)
            raise web.HTTPServiceUnavailable(text="BROKEN\n") from error


@asynccontextmanager
async def serving_witness(config: Config, submissions: Submissions) -> AsyncIterator[int]:
    """Serve while the body runs. Yields the port. Raises `CannotListen` or `AddressMalformed`."""
    try:
        context = load_server_context(
            key_pem=config.private_key.read_bytes(), certificate_pem=config.certificate.read_bytes()
        )
    except (OSError, ValueError) as error:
        raise CannotListen(f"{config.certificate} and {config.private_key} are no certificate and its key") from error
    async with AsyncExitStack() as listening:
        try:
            port = await listening.enter_async_context(
                serving_application(config.listen, submissions.application(), context)
            )
        except PortTaken as error:
            raise CannotListen(str(error)) from error
        yield port


async def _read(request: web.Request, most: int) -> bytes:
    """Return the body. Raises `WitnessRequestMalformed` for one that is too large or too slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > most:
                    raise WitnessRequestMalformed(f"the body has more than {most} bytes")
    except TimeoutError as error:
        raise WitnessRequestMalformed("the body did not come in time") from error
    return bytes(body)


def _refusal(error: WitnessRequestMalformed | WitnessRefusal) -> web.Response:
    log.info("not cosigned", reason=error.reason, detail=str(error))
    if isinstance(error, OldSizeStale):
        return web.Response(status=error.status, body=f"{error.size}\n".encode(), headers={"Content-Type": SIZE_TYPE})
    status = error.status if isinstance(error, WitnessRefusal) else 400
    return web.Response(status=status, text=f"{error.reason}: {error}\n")
