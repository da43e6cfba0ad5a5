"""It is responsible for HTTP to the engine: one session over its unix socket, with its key, and answers as bytes.

What the engine sends is handed on as it comes and not held as a whole here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp

from libs.aci.endpoints import CHAT, EVENT_STREAM, Endpoint
from libs.aci.sse import Protocol
from libs.errors import Code, MeshError
from services.node.questions import SHORT, question

SILENT_SECONDS = 45.0
"""Below what routers grant a node, so that it is the node that says why."""

_CONNECT_SECONDS = 5.0
_PROBE_SECONDS = 60.0
_METRICS_SECONDS = 15.0
"""Some engines answer between two steps of the model, and a step over a long prompt takes some."""
_MAX_METRICS_BYTES = 1024 * 1024
_SUCCESS = 200
_REFUSALS = (400, 422)
"""What servers answer to a member that is not of its form."""


class EngineUnavailable(MeshError):
    """The engine is not there, is starting, or broke off in the middle of an answer."""

    code = Code.UNAVAILABLE
    reason = "ENGINE_UNAVAILABLE"


class EngineTooSlow(MeshError):
    """The engine did not finish within the time that was left for the request."""

    code = Code.DEADLINE_EXCEEDED
    reason = "ENGINE_TOO_SLOW"


class EngineSilent(MeshError):
    """The engine began a stream and then gave no byte for too long, nor did its model anything else."""

    code = Code.UNAVAILABLE
    reason = "ENGINE_SILENT"


class SaltIgnored(MeshError):
    """The engine would look into one cache for all tenants."""

    code = Code.FAILED_PRECONDITION
    reason = "SALT_IGNORED"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine answers: its status, and its body while it comes."""

    status: int
    content_type: str
    chunks: AsyncIterator[bytes]
    """None is empty but for a stream that gave nothing for long while the engine's work went on: it goes on, too.

    Raises `EngineUnavailable` when the engine breaks off, `EngineSilent` when its stream stops without an end,
    `EngineTooSlow` when time runs out."""


class EngineChannel:
    """The one way to the engine. Leaving an answer early closes its connection, which ends the generation."""

    def __init__(self, socket: Path, api_key: str, silent_seconds: float = SILENT_SECONDS) -> None:
        """A stream may be silent for so long, and on where signs of life come meanwhile."""
        self._silent_seconds = silent_seconds
        self.signs_of_life = 0
        """How often its model was heard of: pieces of answers that it made, and what others `hear` of its work."""
        self._session = aiohttp.ClientSession(
            # A connection per request: by its end the engine notices a lost client, and a new one costs nothing here.
            connector=aiohttp.UnixConnector(path=str(socket), limit=0, force_close=True),
            headers={"Authorization": f"Bearer {api_key}"},
            # The engine's bytes are hashed as they are: no decompression may come between.
            auto_decompress=False,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @asynccontextmanager
    async def post(self, endpoint: Endpoint, body: bytes, timeout_seconds: float) -> AsyncIterator[Answer]:
        """Send a request and give its answer. Raises `EngineUnavailable` or `EngineTooSlow`."""
        timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=_CONNECT_SECONDS)
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        with _engine_errors():
            response = await self._session.post(
                f"http://engine{endpoint.path}",
                data=body,
                headers=headers,
                timeout=timeout,
                # What it says in place of an answer is not an answer of this endpoint.
                allow_redirects=False,
            )
        async with response:
            yield Answer(response.status, response.content_type, self._chunks(response, endpoint))

    def hear(self) -> None:
        """Count a sign of life."""
        self.signs_of_life += 1

    async def metrics(self) -> str | None:
        """Return what the engine says of itself, in Prometheus's text format; None when it says nothing.

        Raises `EngineUnavailable` or `EngineTooSlow`.
        """
        timeout = aiohttp.ClientTimeout(total=_METRICS_SECONDS, sock_connect=_CONNECT_SECONDS)
        with _engine_errors():
            async with self._session.get("http://engine/metrics", timeout=timeout, allow_redirects=False) as response:
                if response.status != _SUCCESS:
                    return None
                text = await response.content.read(_MAX_METRICS_BYTES)
                while len(text) < _MAX_METRICS_BYTES and (more := await response.content.read(_MAX_METRICS_BYTES)):
                    text += more
        return text[:_MAX_METRICS_BYTES].decode(errors="replace")

    async def probe(self, endpoint: Endpoint, model: str) -> None:
        """Have the smallest question answered. Raises `EngineUnavailable` or `EngineTooSlow` unless it was.

        A health page proves nothing: engines have said they were well and failed at the first request.
        """
        status, body = await self.ask(endpoint, model)
        if status != _SUCCESS:
            raise EngineUnavailable(f"the engine answered its first question at {endpoint.path} with status {status}")
        if endpoint != CHAT:
            return
        try:
            tokens = json.loads(body)["usage"]["completion_tokens"]
        except (ValueError, KeyError, TypeError) as error:
            raise EngineUnavailable("the engine's first answer is not OpenAI's") from error
        if tokens != 1:
            raise EngineUnavailable("the engine did not generate the token it was asked for")

    async def require_salted(self, endpoint: Endpoint, model: str) -> None:
        """Raise `SaltIgnored` unless the engine reads `cache_salt` there, or what `probe` raises.

        One that does not know the member answers as if it were not there, and would share its cache among tenants: only
        one that refuses a salt which is none is known to read it. A failure is no refusal, and it is to be asked again.
        """
        await self.probe(endpoint, model)
        status, _ = await self.ask(endpoint, model, cache_salt=7)
        if status == _SUCCESS:
            raise SaltIgnored(f"the engine takes no cache salt at {endpoint.path}: measure it without a prefix cache")
        if status not in _REFUSALS:
            raise EngineUnavailable(f"the engine met a cache salt that is none at {endpoint.path} with status {status}")

    async def greet(self) -> None:
        """Have its server answer, whatever it says, without any work of the model's, for which this might have to wait.
        It is no sign of life.

        Raises `EngineUnavailable` or `EngineTooSlow`.
        """
        timeout = aiohttp.ClientTimeout(total=_PROBE_SECONDS, sock_connect=_CONNECT_SECONDS)
        with _engine_errors():
            async with self._session.get("http://engine/v1/models", timeout=timeout, allow_redirects=False):
                pass

    async def ask(self, endpoint: Endpoint, model: str, text: str = SHORT, **members: object) -> tuple[int, bytes]:
        """Put a question of this node's own, by default the smallest; return status and body.

        Raises `EngineUnavailable` or `EngineTooSlow`.
        """
        body = json.dumps(question(endpoint, model, text) | members).encode()
        async with self.post(endpoint, body, _PROBE_SECONDS) as answer:
            return answer.status, b"".join([chunk async for chunk in answer.chunks])

    async def _chunks(self, response: aiohttp.ClientResponse, endpoint: Endpoint) -> AsyncIterator[bytes]:
        streams = response.content_type == EVENT_STREAM
        is_the_models = response.status == _SUCCESS and _is_the_models(endpoint, streams=streams)
        # Engines send a stream's head before they have a place for it. How long that and the first piece may take is
        # for the request's own time to say, as it is for what is not streamed.
        patience = None
        while True:
            heard = self.signs_of_life
            with _engine_errors():
                try:
                    async with asyncio.timeout(patience) as waiting:
                        chunk = await response.content.readany()
                except TimeoutError as error:
                    if not waiting.expired():
                        raise
                    if self.signs_of_life == heard:
                        silent = f"the engine was silent for {self._silent_seconds:g} s in the middle of a stream"
                        raise EngineSilent(silent) from error
                    # Its place may have gone to others, as vLLM gives it when its cache is full. Whoever reads has less
                    # patience than that may take, and is told.
                    yield b""
                    continue
            if not chunk:
                return
            if is_the_models:
                self.hear()
            if streams:
                patience = self._silent_seconds
            yield chunk


def _is_the_models(endpoint: Endpoint, *, streams: bool) -> bool:
    """Say whether no piece of a success there comes about without the model.

    Servers judge and count by themselves, also while the model hangs, and a stream of /v1/responses they begin so, too.
    """
    return endpoint.runs_model and not (streams and endpoint.protocol is Protocol.RESPONSES)


@contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise EngineTooSlow("the engine did not finish in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise EngineUnavailable("the engine is not answering; it is restarted if it has ended") from error
