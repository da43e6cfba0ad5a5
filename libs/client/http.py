"""Responsible for requests to one router: HTTPS only, no redirects, bounded answers, its errors as ours."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from libs.client.pinning import Admit, ServerKeyRefused, client_context
from libs.errors import Code, MeshError

MAX_DOCUMENT_BYTES = 4 << 20
_CONNECT_SECONDS = 10.0
_DOCUMENT_SECONDS = 30.0
_MAX_MESSAGE = 500
_NOT_FOUND = 404


class RouterUrlInvalid(MeshError):
    """The router's address is not a plain https:// origin."""

    code = Code.INVALID_ARGUMENT
    reason = "ROUTER_URL_INVALID"


class RouterUnreachable(MeshError):
    """The router cannot be reached, or broke off."""

    code = Code.UNAVAILABLE
    reason = "ROUTER_UNREACHABLE"


class TlsKeyNotPinned(MeshError):
    """A server answered with another key than the attested ones. Nothing was sent to it."""

    code = Code.PERMISSION_DENIED
    reason = "TLS_KEY_NOT_PINNED"


class AnswerTooLarge(MeshError):
    """The router sent more than this client reads."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "ANSWER_TOO_LARGE"


class AnswerUnreadable(MeshError):
    """The router's answer is not of the form that the API promises."""

    code = Code.DATA_LOSS
    reason = "ANSWER_UNREADABLE"


class RouterRefused(MeshError):
    """The router answered with an error. `status` and `type` are its own, and so is the receipt that it names."""

    reason = "ROUTER_REFUSED"

    def __init__(self, status: int, error_type: str, message: str, receipt_id: str | None = None) -> None:
        super().__init__(f"{status} {error_type}: {message}")
        self.status = status
        self.type = error_type
        self.receipt_id = receipt_id


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a router is."""

    url: str
    """Without a slash at the end."""
    host: str


def parse_origin(base_url: str) -> Origin:
    """Raises `RouterUrlInvalid`."""
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise RouterUrlInvalid(f"{base_url} is not a URL") from error
    if (
        parts.scheme != "https"
        or not host
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
    ):
        raise RouterUrlInvalid(f"the router's address must be like https://host:port, not {base_url}")
    shown = f"[{host}]" if ":" in host else host
    return Origin(f"https://{shown}" + (f":{port}" if port else ""), host)


class RouterHttp:
    """Connections to one router, all judged by one `admit`."""

    def __init__(self, origin: Origin, http: aiohttp.ClientSession) -> None:
        self._origin = origin
        self._http = http

    async def get(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        api_key: str | None = None,
        most_bytes: int = MAX_DOCUMENT_BYTES,
    ) -> bytes:
        """Return a document. Raises `RouterRefused`, `AnswerTooLarge` and what the connection fails with."""
        timeout = aiohttp.ClientTimeout(total=_DOCUMENT_SECONDS, sock_connect=_CONNECT_SECONDS)
        async with self._request("GET", path, timeout, api_key=api_key, query=query) as response:
            body = await read_bounded(response, most_bytes)
        if response.status != 200:
            raise refusal(response, body)
        return body

    async def get_once_there(
        self, path: str, *, api_key: str | None, settle: float, between: float, most_bytes: int = MAX_DOCUMENT_BYTES
    ) -> bytes:
        """Return what may need `settle` seconds to be there, asked for every `between`. Raises the last refusal."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + settle
        while True:
            try:
                return await self.get(path, api_key=api_key, most_bytes=most_bytes)
            except RouterRefused as error:
                if error.status != _NOT_FOUND or loop.time() + between > deadline:
                    raise
            await asyncio.sleep(between)

    @asynccontextmanager
    async def post(
        self,
        path: str,
        body: bytes | AsyncIterator[bytes],
        *,
        api_key: str | None,
        silence_seconds: float,
        total_seconds: float,
        size: int | None = None,
        headers: Mapping[str, str] | None = None,
        encoded: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a JSON body and yield the response as it comes, its body not read and never decoded.

        A body that is iterated over is asked for only once the connection stands; `size` is how many bytes it has. A
        response that is encoded is refused at once, unless its reader keeps it first and then calls `refuse_encoded`.
        """
        timeout = aiohttp.ClientTimeout(total=total_seconds, sock_connect=_CONNECT_SECONDS, sock_read=silence_seconds)
        async with self._request(
            "POST", path, timeout, api_key=api_key, body=body, size=size, more=headers, encoded=encoded
        ) as response:
            yield response

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        timeout: aiohttp.ClientTimeout,
        *,
        api_key: str | None,
        query: Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[bytes] | None = None,
        size: int | None = None,
        more: Mapping[str, str] | None = None,
        encoded: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        # What is hashed is what came off the wire, so nothing may be compressed on the way.
        headers = {**(more or {}), "Accept-Encoding": "identity"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        if size is not None:
            headers["Content-Length"] = str(size)
        try:
            async with self._http.request(
                method,
                self._origin.url + path,
                params=query,
                data=body,
                headers=headers,
                timeout=timeout,
                # Whoever the router points to is not the router.
                allow_redirects=False,
            ) as response:
                if not encoded:
                    refuse_encoded(response)
                yield response
        except aiohttp.ClientConnectorCertificateError as error:
            if isinstance(error.certificate_error, ServerKeyRefused):
                raise TlsKeyNotPinned("the router's address answers with a key that is not attested") from error
            raise RouterUnreachable(f"the router shows a certificate not to accept: {_why(error)}") from error
        except TimeoutError as error:
            raise RouterUnreachable("the router did not answer in time") from error
        except aiohttp.ClientError as error:
            raise RouterUnreachable(f"the router cannot be reached or broke off: {_why(error)}") from error


@asynccontextmanager
async def open_http(origin: Origin, ca_pem: bytes | None, admit: Admit) -> AsyncIterator[RouterHttp]:
    """Open connections whose server's key `admit` judges before anything is sent."""
    async with open_http_over(origin, client_context(ca_pem, admit)) as http:
        yield http


@asynccontextmanager
async def open_http_over(origin: Origin, context: ssl.SSLContext) -> AsyncIterator[RouterHttp]:
    """The same over a context that was made before: making one reads certificate authorities, which takes a while."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    ) as http:
        yield RouterHttp(origin, http)


def is_encoded(response: aiohttp.ClientResponse) -> bool:
    return response.headers.get("Content-Encoding", "identity") != "identity"


def refuse_encoded(response: aiohttp.ClientResponse) -> None:
    """Raises `AnswerUnreadable`."""
    if is_encoded(response):
        raise AnswerUnreadable("the router encoded its answer although it was asked not to")


async def read_bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return the whole body. Raises `AnswerTooLarge`."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise AnswerTooLarge(f"the answer is longer than {limit} bytes")
    return bytes(body)


def refusal(response: aiohttp.ClientResponse, body: bytes) -> RouterRefused:
    """Return the router's error as ours."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    error = value.get("error") if isinstance(value, dict) else None
    members = error if isinstance(error, dict) else {}
    message = str(members.get("message", "no reason given"))[:_MAX_MESSAGE]
    return RouterRefused(
        response.status, str(members.get("type", "unknown"))[:64], message, response.headers.get("X-Receipt-Id")
    )


def _why(error: Exception) -> str:
    return str(error)[:_MAX_MESSAGE] or type(error).__name__
