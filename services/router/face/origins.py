"""Responsible for what web pages of other origins may do here (the Fetch standard's CORS): nothing, unless configured.

A page that is let in still needs an API key of its own; nothing here goes by what a browser sends by itself, and no
answer lets a page send credentials of the browser's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from services.router.face.answers import Reply
from services.router.face.arrivals import Arrival

EVERY = "*"
_PREFLIGHT_SECONDS = 600
_METHODS = "GET, HEAD, POST"
_EXPOSED = (
    "X-ACI-Version, X-ACI-Keyset-Digest, X-Receipt-Id, X-E2EE-Applied, X-E2EE-Version, X-E2EE-Algo, Retry-After, "
    "X-Should-Retry"
)
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]{1,64}( ?, ?[A-Za-z0-9-]{1,64}){0,63}")


class Origins:
    """Those whose pages may call this service; `EVERY` among them is every one."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = frozenset(allowed)

    def headers(self, arrival: Arrival) -> Mapping[str, str]:
        """Return what a reply to this request carries for the browser that made it."""
        if not self._allowed or EVERY in self._allowed:
            return self.unread_headers()
        origin = arrival.headers.first("origin")
        # Whoever caches a reply must not give it to another origin.
        vary = {"Vary": "Origin"}
        if origin not in self._allowed:
            return vary
        return {**vary, "Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED}

    def unread_headers(self) -> Mapping[str, str]:
        """Return what a reply to something carries that could not be read as a request: nobody knows whose page made
        it, so pages of listed origins cannot read why.
        """
        if EVERY in self._allowed:
            return {"Access-Control-Allow-Origin": EVERY, "Access-Control-Expose-Headers": _EXPOSED}
        return {}

    def preflight(self, arrival: Arrival) -> Reply | None:
        """Return the answer to a browser that asks before it sends; None to whatever else this is."""
        asks = arrival.method == "OPTIONS" and arrival.headers.first("access-control-request-method") is not None
        if not asks or "Access-Control-Allow-Origin" not in self.headers(arrival):
            return None
        named = arrival.headers.first("access-control-request-headers") or ""
        # Libraries add ever more of their own, and a page that is let in may send what it likes.
        headers = {"Access-Control-Allow-Headers": named} if _HEADER_NAMES.fullmatch(named) else {}
        return Reply(
            204,
            "text/plain",
            b"",
            {
                "Access-Control-Allow-Methods": _METHODS,
                "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
                **headers,
            },
        )
