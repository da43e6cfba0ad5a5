"""Responsible for being let in by the broker, before the first connection and for as long as there is none."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable
from typing import Protocol

import structlog

from libs.errors import MeshError

_RETRY_SECONDS = 1
_ADMIT_SECONDS = 5.0

log = structlog.get_logger()


class Admission(Protocol):
    """One NATS client's way in."""

    async def admit(self, timeout: float) -> None:
        """Return once the broker lets in what `tls_context` shows from now on. Raises `MeshError`."""

    def tls_context(self) -> ssl.SSLContext: ...

    def renewed(self) -> Awaitable[object]:
        """Wait until there is something newer to be let in with."""


class Connected(Protocol):
    @property
    def is_connected(self) -> bool: ...


async def until_admitted(admission: Admission) -> None:
    """Ask until the broker lets this service in."""
    said = ""
    while True:
        try:
            await admission.admit(_ADMIT_SECONDS)
        except MeshError as error:
            if said != error.reason:
                log.warning("the broker does not let this service in", reason=error.reason, detail=str(error))
            said = error.reason
        else:
            return
        await asyncio.sleep(_RETRY_SECONDS)


async def stay_admitted(link: Connected, admission: Admission) -> None:
    """Ask again for as long as there is no connection: a broker that was restarted knows nobody any more.

    Whoever tries to connect does not find that out, only that he is turned away.
    """
    while True:
        if not link.is_connected:
            await until_admitted(admission)
        await asyncio.sleep(_RETRY_SECONDS)
