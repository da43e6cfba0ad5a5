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
        answer = _Answer(stream)
        record.sent += 1
        try:
            async with self._http.post(self._url + CHAT, data=request, headers=self._headers) as response:
                answer.begin(response)
                async for chunk in response.content.iter_any():
                    answer.take(chunk)
                answer.ended = True
        except TimeoutError:
            answer.trouble = "timeout"
        except aiohttp.ClientConnectionError as error:
            answer.trouble = f"connection: {type(error).__name__}"
        except aiohttp.ClientPayloadError:
            answer.trouble = "connection: cut within the answer"
        if answer.error is not None:
            record.errors[answer.error] += 1
        if not answer.is_answer:
            return None
        assert answer.receipt_id is not None, "an answer without a receipt"
        completion = Completion(
            number,
            answer.receipt_id,
            hashlib.sha256(request).hexdigest(),
            hashlib.sha256(answer.body).hexdigest() if answer.ended else None,
            time.time(),
        )
        record.completions.append(completion)
        return completion

    async def get(self, path: str) -> tuple[int, bytes]:
        """Fetch a document. Raises what the connection fails with."""
        async with self._http.get(self._url + path, headers=self._headers) as response:
            return response.status, await response.read()


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


class _Answer:
    """What has come of one answer."""

    def __init__(self, stream: bool) -> None:
        self._stream = stream
        self._status = 0
        self._body = bytearray()
        self.receipt_id: str | None = None
        self.ended = False
        self.trouble: str | None = None

    def begin(self, response: aiohttp.ClientResponse) -> None:
        self._status = response.status
        self._stream = self._stream and response.content_type == "text/event-stream"
        self.receipt_id = response.headers.get("X-Receipt-Id")

    def take(self, chunk: bytes) -> None:
        self._body += chunk

    @property
    def body(self) -> bytes:
        return bytes(self._body)

    @property
    def is_answer(self) -> bool:
        """Whether the client was told that its answer is whole, which MUST not happen before it is logged."""
        if self._status != 200:
            return False
        return not self._stream or any(_finishes(event) for event in self._events())

    @property
    def error(self) -> str | None:
        """One line for whatever is not a whole answer."""
        if self.trouble is not None:
            return self.trouble
        if self._status != 200:
            return f"{self._status} {_type_of(json.loads(self._body)['error'])}"
        if self._stream:
            for event in self._events():
                if "error" in event:
                    return f"in the stream: {_type_of(event['error'])}"
            if not self._body.endswith(b"data: [DONE]\n\n"):
                return "a stream that ended without its end"
        return None

    def _events(self) -> list[dict[str, Any]]:
        pieces = self.body.split(b"\n\n")[:-1]
        data = [piece.removeprefix(b"data: ") for piece in pieces if piece.startswith(b"data: {")]
        return [json.loads(one) for one in data]


def _finishes(event: Mapping[str, Any]) -> bool:
    return any(choice.get("finish_reason") for choice in event.get("choices", []))


def _type_of(error: Mapping[str, Any]) -> str:
    return str(error.get("type"))
