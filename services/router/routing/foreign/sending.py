"""It is responsible for the moment between a connection and a prompt: the prompt waits until the other side is known.

The connection's TLS key is judged inside the handshake. Only after it, and after the caller was told, does a byte of
the prompt leave; so whoever records where prompts went records it before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import aiohttp

from libs.client.http import RouterHttp
from services.router.errors import UpstreamFailed

_SILENCE_SECONDS = 120.0


class Sending:
    """One request whose body is held back."""

    def __init__(self, http: RouterHttp, body: bytes, headers: Mapping[str, str]) -> None:
        self._http = http
        self._body = body
        self._headers = headers
        self._connected = asyncio.Event()
        self._released = asyncio.Event()
        self._posting: asyncio.Task[aiohttp.ClientResponse] | None = None
        self._open = AsyncExitStack()

    async def reach(self, path: str, api_key: str | None, timeout: float) -> None:
        """Return once the connection stands. Raises what it fails with; nothing of the body was sent then."""
        self._posting = posting = asyncio.create_task(self._post(path, api_key, timeout))
        waiting = asyncio.create_task(self._connected.wait())
        try:
            await asyncio.wait({waiting, posting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not self._connected.is_set():
            await posting

    async def answer(self) -> aiohttp.ClientResponse:
        """Send the body and return the response's head. Raises what the connection fails with."""
        if self._posting is None:
            raise RuntimeError("nothing is reached yet")
        self._released.set()
        return await self._posting

    async def close(self) -> None:
        if self._posting is not None:
            self._posting.cancel()
            await asyncio.wait({self._posting})
        await self._open.aclose()

    async def _post(self, path: str, api_key: str | None, timeout: float) -> aiohttp.ClientResponse:
        return await self._open.enter_async_context(
            self._http.post(
                path,
                self._held_back(),
                size=len(self._body),
                api_key=api_key,
                headers=self._headers,
                silence_seconds=_SILENCE_SECONDS,
                total_seconds=timeout,
            )
        )

    async def _held_back(self) -> AsyncIterator[bytes]:
        self._connected.set()
        await self._released.wait()
        yield self._body


@asynccontextmanager
async def sending(http: RouterHttp, body: bytes, headers: Mapping[str, str]) -> AsyncIterator[Sending]:
    """Hold a body until it is asked for. Leaving early closes the connection, so the other side stops."""
    request = Sending(http, body, headers)
    try:
        yield request
    finally:
        await request.close()


@contextmanager
def breaking_off() -> Iterator[None]:
    """Tell a provider that breaks off as `UpstreamFailed`."""
    try:
        yield
    except (aiohttp.ClientError, TimeoutError) as error:
        raise UpstreamFailed(f"the provider broke off: {type(error).__name__}") from error
