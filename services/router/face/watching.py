"""It is responsible for the metrics port: plain HTTP for whoever the operator lets reach it, and nothing else there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.router.errors import EndpointNotSupported, MethodNotAllowed
from services.router.face.answers import Reply, refusal
from services.router.face.arrivals import Arrival
from services.router.metrics import CONTENT_TYPE, Metrics

_PATH = "/metrics"
_METHODS = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """The TOML table [metrics]."""

    listen: str = ""
    """host:port of a listener for Prometheus, empty for none. Plain HTTP without a key: whoever reaches it learns how
    busy this router is.
    """


class Watched:
    """Answers with the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @asynccontextmanager
    async def answer(self, arrival: Arrival) -> AsyncIterator[Reply]:
        """See `answers.Answer`."""
        if arrival.path != _PATH:
            yield refusal(EndpointNotSupported("no such path"))
        elif arrival.method not in _METHODS:
            yield refusal(MethodNotAllowed(f"{arrival.method} is not a method of this path", _METHODS))
        else:
            yield Reply(200, CONTENT_TYPE, self._metrics.text().encode())
