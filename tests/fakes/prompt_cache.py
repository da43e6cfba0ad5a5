"""An engine's server that keeps prompts in places of its own, each for whoever comes there next, and counts them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from aiohttp import web


def as_it_is(cached: int) -> dict[str, Any] | None:
    return {"cached_tokens": cached}


def hits_alone(cached: int) -> dict[str, Any] | None:
    return {"cached_tokens": cached} if cached else None


def nothing(cached: int) -> dict[str, Any] | None:
    return None


class PromptCache:
    """`places` take requests in turn. `parted`: what is kept is found with the same `cache_salt` alone. `told`: what
    the usage says of it. `block`: words that are kept together, and the prompt's last one is not."""

    def __init__(
        self, places: int, *, parted: bool, told: Callable[[int], dict[str, Any] | None], block: int = 16
    ) -> None:
        self._places: list[object] = [None] * places
        self._parted = parted
        self._told = told
        self._block = block
        self._turn = 0

    def application(self) -> web.Application:
        served = web.Application()
        served.router.add_post("/{path:.*}", self._answer)
        return served

    async def _answer(self, request: web.Request) -> web.Response:
        asked: dict[str, Any] = json.loads(await request.read())
        details = self._told(self._cached(asked))
        usage = {"prompt_tokens": 400, "completion_tokens": 1, "prompt_tokens_details": details}
        return web.json_response({"choices": [{"message": {"content": "a"}}], "usage": usage})

    def _cached(self, asked: dict[str, Any]) -> int:
        if not self._places:
            return 0
        place, self._turn = self._turn % len(self._places), self._turn + 1
        prompt = (asked.get("messages", asked.get("prompt")), asked.get("cache_salt") if self._parted else None)
        met, self._places[place] = self._places[place] == prompt, prompt
        words = len(str(prompt).split())
        return (words - 1) // self._block * self._block if met else 0
