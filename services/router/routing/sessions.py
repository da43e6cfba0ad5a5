"""Responsible for any session that a receipt may cite: foreign providers' are this router's own, nodes' the registry's.

Those that receipts here cite are this router's own copies, whoever they are about.
"""

from __future__ import annotations

from services.router.errors import NotFound
from services.router.routing.foreign.providers import ForeignProviders
from services.router.routing.upstreams import Upstreams


class Sessions:
    """Finds session documents."""

    def __init__(self, upstreams: Upstreams, foreign: ForeignProviders) -> None:
        self._upstreams = upstreams
        self._foreign = foreign

    async def find(self, session_id: str) -> bytes:
        """Return a session document, current or past. Raises the registry's `SESSION_UNKNOWN`, or why it is away."""
        try:
            return await self._foreign.session(session_id)
        except NotFound:
            return await self._upstreams.session(session_id)
