"""An engine as a process of its own that keeps one cache for all: `python -m tests.fakes.salted_engine --uds SOCKET`.

It reads a salt at the paths that it is given with `--salted`; at all others it answers as if there were none. It counts
what it finds in its cache, but for embeddings; prompts of one salt lie apart there unless it is `--unparted`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from libs.aci.endpoints import EMBEDDINGS

_CACHED = 256


def application(salted: list[str], refusals: Iterable[int] = (), *, parted: bool = True) -> web.Application:
    """`refusals` are the statuses with which it refuses bad salts, one after the other, and then 400."""
    kept: set[tuple[str, str]] = set()
    statuses = iter(refusals)

    async def answer(request: web.Request) -> web.Response:
        asked: dict[str, Any] = json.loads(await request.read())
        salt = asked.get("cache_salt", "none")
        if request.path in salted and not isinstance(salt, str):
            error = {"error": {"type": "BadRequestError", "message": "cache_salt"}}
            return web.json_response(error, status=next(statuses, 400))
        prompt = json.dumps(asked.get("messages", asked.get("prompt", asked.get("input"))))
        part = prompt, str(salt) if parted and request.path in salted else ""
        details = {"prompt_tokens_details": {"cached_tokens": _CACHED if part in kept else 0}}
        usage = {"completion_tokens": 1} | ({} if request.path == EMBEDDINGS.path else details)
        kept.add(part)
        return web.json_response({"choices": [{"message": {"content": "a"}}], "usage": usage})

    served = web.Application()
    served.router.add_post("/{path:.*}", answer)
    return served


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--uds", required=True)
    parser.add_argument("--salted", action="append", default=[])
    parser.add_argument("--unparted", action="store_true")
    arguments = parser.parse_args()
    served = application(arguments.salted, parted=not arguments.unparted)
    web.run_app(served, path=arguments.uds, print=None, access_log=None)


if __name__ == "__main__":
    main()
