"""An engine as a process whose model hangs and whose server does not: `python -m tests.fakes.hanging_engine`.

It does what vLLM's server does beside its model: it refuses what is no request, counts tokens, sends a stream's head
and the first events of a response, and says how much was generated. Its model answers so many questions, and then none.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from typing import Any

from aiohttp import web

from libs.aci.endpoints import COUNT_TOKENS, RESPONSES

GENERATED = "vllm:generation_tokens_total"

_ANSWER = {"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": 1}}
_CREATED = b'event: response.created\ndata: {"type":"response.created"}\n\n'


def application(answers: int, *, works: bool, tells: bool) -> web.Application:
    """`works`: what its model generates for others grows at every look. `tells`: it has metrics."""
    left, looks = itertools.count(answers, -1), itertools.count()

    async def answer(request: web.Request) -> web.StreamResponse:
        asked: dict[str, Any] = json.loads(await request.read())
        if not isinstance(asked.get("messages", []), list):
            return web.json_response({"error": {"type": "BadRequestError", "message": "messages"}}, status=400)
        if request.path == COUNT_TOKENS.path:
            return web.json_response({"input_tokens": 1})
        if asked.get("stream"):
            stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await stream.prepare(request)
            if request.path == RESPONSES.path:
                await stream.write(_CREATED)
            await asyncio.Event().wait()
        if next(left) <= 0:
            await asyncio.Event().wait()
        return web.json_response(_ANSWER)

    async def metrics(_: web.Request) -> web.Response:
        if not tells:
            raise web.HTTPNotFound
        return web.Response(text=f'{GENERATED}{{engine="0"}} {float(next(looks) if works else 7)}\n')

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": []})

    served = web.Application()
    served.router.add_get("/metrics", metrics)
    served.router.add_get("/v1/models", models)
    served.router.add_post("/{path:.*}", answer)
    return served


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--uds", required=True)
    parser.add_argument("--answers", type=int, required=True)
    parser.add_argument("--works", action="store_true")
    parser.add_argument("--tells", action="store_true")
    arguments = parser.parse_args()
    served = application(arguments.answers, works=arguments.works, tells=arguments.tells)
    web.run_app(served, path=arguments.uds, print=None, access_log=None, shutdown_timeout=0.1)


if __name__ == "__main__":
    main()
