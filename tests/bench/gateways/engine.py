"""Responsible for an engine that costs next to nothing: it answers every prompt with the same words, at once.

It takes vLLM's command line and speaks as much of OpenAI's HTTP API as gateways ask for, so that what is measured in
front of it is the gateway. A pause makes its streams slow.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time

MODEL = "smollm2-135m"
WORDS = ("The", " sky", " is", " blue", " because", " air", " scatters", " short", " waves", " most", ".")
_NO_SALT = re.compile(rb'"cache_salt": ?[0-9]')
"""Salts are texts: a node serves by an engine with a shared cache only where it refuses others."""
_MOST = re.compile(rb'"max_tokens": ?([0-9]+)')
_METRICS = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.1\n"
_MOST_HEAD = 64 * 1024


def _head(number: int) -> dict[str, object]:
    return {"id": f"chatcmpl-{number:032x}", "created": int(time.time()), "model": MODEL}


def _buffered(number: int, words: tuple[str, ...]) -> bytes:
    message = {"role": "assistant", "content": "".join(words)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    # It keeps nothing, and says so: a node asks.
    counted = {"prompt_tokens": 12, "completion_tokens": len(words), "total_tokens": 12 + len(words)}
    usage = {**counted, "prompt_tokens_details": {"cached_tokens": 0}}
    body = {**_head(number), "object": "chat.completion", "choices": [choice], "usage": usage}
    return _answer(json.dumps(body).encode(), b"application/json")


def _events(number: int, words: tuple[str, ...]) -> list[bytes]:
    head = {**_head(number), "object": "chat.completion.chunk"}
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": word}, None) for word in words]
    deltas.append(({}, "stop"))
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in deltas]
    return [b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks] + [b"data: [DONE]\n\n"]


def _answer(body: bytes, media_type: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (status, media_type, len(body)) + body


class _Connection(asyncio.Protocol):
    """One kept-alive connection; requests come one after another."""

    answered = 0

    def __init__(self, pause: float, tasks: asyncio.TaskGroup) -> None:
        self._pause = pause
        self._tasks = tasks
        self._buffer = b""
        self._streaming: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._streaming is not None:
            self._streaming.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            if b"transfer-encoding:" in head:
                last = self._buffer.find(b"\r\n0\r\n\r\n", end + 4)
                if last < 0:
                    return
                stop = last + 7
            else:
                stop = end + 4 + _length(head)
                if len(self._buffer) < stop:
                    return
            body, self._buffer = self._buffer[end + 4 : stop], self._buffer[stop:]
            self._serve(head, body)
        if len(self._buffer) > _MOST_HEAD:
            self._transport.abort()

    def _serve(self, head: bytes, body: bytes) -> None:
        method, path, _ = head.split(b" ", 2)
        if method != b"post":
            listed = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()
            told = {b"/v1/models": (listed, b"application/json"), b"/metrics": (_METRICS, b"text/plain")}
            self._transport.write(_answer(*told.get(path, (b"{}", b"application/json"))))
            return
        if _NO_SALT.search(body):
            self._transport.write(_answer(b"{}", b"application/json", b"400 Bad Request"))
            return
        type(self).answered += 1
        number, most = self.answered, _MOST.search(body)
        words = WORDS if most is None else WORDS[: int(most[1])]
        if b'"stream":true' not in body.replace(b": ", b":"):
            self._transport.write(_buffered(number, words))
            return
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        if self._pause:
            self._streaming = self._tasks.create_task(self._slowly(_events(number, words)))
        else:
            self._transport.writelines([*map(_chunk, _events(number, words)), b"0\r\n\r\n"])

    async def _slowly(self, events: list[bytes]) -> None:
        for event in events:
            self._transport.write(_chunk(event))
            await asyncio.sleep(self._pause)
        self._transport.write(b"0\r\n\r\n")


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(event), event)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 0


async def _run(arguments: argparse.Namespace, pause: float) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:

        def connection() -> _Connection:
            return _Connection(pause, tasks)

        if arguments.uds:
            server: asyncio.Server = await loop.create_unix_server(connection, arguments.uds)
        else:
            server = await loop.create_server(connection, "127.0.0.1", arguments.port)
        async with server:
            await server.serve_forever()


def main(pause: float = 0.0) -> None:
    """Serve until the process ends, with so many seconds between the words of a stream."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--uds")
    parser.add_argument("--port", type=int)
    arguments, _ = parser.parse_known_args()
    asyncio.run(_run(arguments, pause))


if __name__ == "__main__":
    main()
