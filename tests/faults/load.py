"""A client that asks at a steady rate whatever happens, and keeps its own record of what it was given."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

CHAT = "/v1/chat/completions"
_TIMEOUT_SECONDS = 40.0
_DATA = b"data: "
_END = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer as this side saw it."""

    number: int
    receipt_id: str
    request_sha256: str
    response_sha256: str | None
    """None when the answer was whole in meaning (status 200, or a finish reason) but its bytes were cut."""
    received_at: float


@dataclass(slots=True)
class Record:
    """Everything that came of the requests."""

    sent: int = 0
    completions: list[Completion] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    began_at: float = field(default_factory=time.monotonic)
    ended_at: float = 0.0

    @property
    def rate(self) -> float:
        return self.sent / (self.ended_at - self.began_at)


class Reply:
    """What has come of one request."""

    def __init__(self, *, stream: bool) -> None:
        self._stream = stream
        self._body = bytearray()
        self.status = 0
        self.receipt_id = ""
        self.ended = False
        self.begun = asyncio.Event()
        """Set with the first bytes."""
        self.trouble: str | None = None
        """Why it is not whole, where the router did not say so itself."""

    def begin(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self._stream = self._stream and response.content_type == "text/event-stream"
        self.receipt_id = response.headers.get("X-Receipt-Id", "")

    def take(self, chunk: bytes) -> None:
        self._body += chunk
        self.begun.set()

    @property
    def body(self) -> bytes:
        return bytes(self._body)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self._body).hexdigest()

    @property
    def json(self) -> Any:
        return json.loads(self._body)

    @property
    def is_answer(self) -> bool:
        """Whether the client was told that its answer is whole, which MUST not happen before it is logged."""
        if self.status != 200:
            return False
        return not self._stream or any(_finishes(event) for event in self._events())

    @property
    def error_type(self) -> str | None:
        """Type of the router's own error, as a body or as an event of the stream."""
        if not self.ended:
            return None
        if self.status != 200:
            return str(self.json["error"]["type"])
        if self._stream:
            return next((str(event["error"]["type"]) for event in self._events() if "error" in event), None)
        return None

    @property
    def lack(self) -> str | None:
        """What a stream that ended lacks: its end, or the error that stands for it."""
        if not self._stream or self.status != 200 or self.error_type or self._body.endswith(_END):
            return None
        return "a stream that ended without its end"

    def _events(self) -> list[dict[str, Any]]:
        pieces = self.body.split(b"\n\n")[:-1]
        return [json.loads(piece.removeprefix(_DATA)) for piece in pieces if piece.startswith(_DATA + b"{")]


def _finishes(event: Mapping[str, Any]) -> bool:
    return any(choice.get("finish_reason") for choice in event.get("choices", []))


class Client:
    """Requests of one API key to one router."""

    def __init__(self, http: aiohttp.ClientSession, mesh: Mapping[str, Any]) -> None:
        self._http = http
        self._url = mesh["router_url"]
        self._model = mesh["model"]
        self._headers = {"Authorization": f"Bearer {mesh['api_key']}", "Content-Type": "application/json"}

    def body(self, number: int, *, stream: bool, max_tokens: int = 2) -> bytes:
        """A prompt that is short and unlike every other."""
        messages = [{"role": "system", "content": ""}, {"role": "user", "content": str(number)}]
        document = {"model": self._model, "messages": messages, "max_tokens": max_tokens, "stream": stream}
        return json.dumps(document).encode()

    async def ask(self, number: int, record: Record, *, stream: bool) -> Completion | None:
        """Send one request and record what came of it; return the answer, if there was one."""
        request = self.body(number, stream=stream)
        record.sent += 1
        reply = await self.reply(request)
        if reply.trouble is not None or reply.error_type is not None:
            record.errors[reply.trouble or f"{reply.status} {reply.error_type}"] += 1
        if not reply.is_answer:
            return None
        completion = Completion(
            number,
            reply.receipt_id,
            hashlib.sha256(request).hexdigest(),
            reply.sha256 if reply.ended else None,
            time.time(),
        )
        record.completions.append(completion)
        return completion

    async def reply(self, request: bytes) -> Reply:
        """Send a chat request; return whatever came, also when nothing did."""
        return await self.follow(request, Reply(stream=json.loads(request)["stream"]))

    async def follow(self, request: bytes, reply: Reply, path: str = CHAT) -> Reply:
        """The same, into a reply that can be looked at meanwhile."""
        return await self._exchange("POST", path, request, reply)

    async def get(self, path: str) -> Reply:
        """Fetch a document."""
        return await self._exchange("GET", path, None, Reply(stream=False))

    async def _exchange(self, method: str, path: str, body: bytes | None, reply: Reply) -> Reply:
        try:
            async with self._http.request(method, self._url + path, data=body, headers=self._headers) as response:
                reply.begin(response)
                async for chunk in response.content.iter_any():
                    reply.take(chunk)
                reply.ended = True
        except TimeoutError:
            reply.trouble = "timeout"
        except aiohttp.ClientConnectionError as error:
            reply.trouble = f"connection: {type(error).__name__}"
        except aiohttp.ClientPayloadError:
            reply.trouble = "connection: cut within the answer"
        else:
            reply.trouble = reply.lack
        return reply


@asynccontextmanager
async def open_client(mesh: Mapping[str, Any]) -> AsyncIterator[Client]:
    context = ssl.create_default_context(cafile=mesh["router_ca"])
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context, limit=0), timeout=aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
    ) as http:
        yield Client(http, mesh)


@asynccontextmanager
async def loading(client: Client, per_second: float) -> AsyncIterator[Record]:
    """Send while the block runs, buffered and streamed in turn, without waiting for answers before the next one."""
    record = Record()
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(_send(client, record, per_second, tasks))
        try:
            yield record
        finally:
            sending.cancel()
            record.ended_at = time.monotonic()


async def _send(client: Client, record: Record, per_second: float, tasks: asyncio.TaskGroup) -> None:
    number, due = 0, time.monotonic()
    while True:
        tasks.create_task(client.ask(number, record, stream=number % 2 == 1))
        number += 1
        due += 1 / per_second
        await asyncio.sleep(due - time.monotonic())
