"""An engine as a process of its own that keeps one cache for all: `python -m tests.fakes.salted_engine --uds SOCKET`.

It reads a salt at the paths that it is given with `--salted`; at all others it answers as if there were none.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from aiohttp import web

_ANSWER = {"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": 1}}


def application(salted: list[str]) -> web.Application:
    async def answer(request: web.Request) -> web.Response:
        asked: dict[str, Any] = json.loads(await request.read())
        salt = asked.get("cache_salt", "none")
        if request.path in salted and not isinstance(salt, str):
            return web.json_response({"error": {"type": "BadRequestError", "message": "cache_salt"}}, status=400)
        return web.json_response(_ANSWER)

    served = web.Application()
    served.router.add_post("/{path:.*}", answer)
    return served


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--uds", required=True)
    parser.add_argument("--salted", action="append", default=[])
    arguments = parser.parse_args()
    web.run_app(application(arguments.salted), path=arguments.uds, print=None, access_log=None)


if __name__ == "__main__":
    main()
