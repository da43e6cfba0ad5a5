"""It is responsible for asking again while a service of the mesh is away or still starting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from libs.errors import Code, MeshError

T = TypeVar("T")

_PAUSE_SECONDS = 0.3
_PASSING = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.ABORTED})


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Call until it succeeds; raise at once what waiting does not mend. Callers bound the time."""
    while True:
        try:
            return await call()
        except MeshError as error:
            if error.code not in _PASSING:
                raise
        await asyncio.sleep(_PAUSE_SECONDS)
