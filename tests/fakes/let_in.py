"""What a broker's admission is to a client, for tests whose nats-server lets in every certificate of its CA."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


async def _never() -> None:
    await asyncio.Event().wait()


@dataclass(frozen=True, slots=True)
class LetIn:
    """A client that is let in whenever it asks, with what it shows now."""

    tls_context: Callable[[], ssl.SSLContext]
    renewed: Callable[[], Awaitable[object]] = _never

    async def admit(self, timeout: float) -> None:
        """There is nobody to ask."""
