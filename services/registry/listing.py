"""It is responsible for pages: of providers in order of their SPIFFE ID, of sessions from the newest on.

A token is the place of the last item of a page, so what comes or goes meanwhile shifts no page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from libs.errors import Code, MeshError
from services.registry.catalogue import newest_first
from services.registry.providers import Provider
from services.registry.summaries import Summary

_DEFAULT_PAGE = 100
_MAX_PAGE = 1000
_SESSION_TOKEN = re.compile(r"([0-9]{1,15})\.([0-9a-f]{64})")


class PageTokenMalformed(MeshError):
    """Not a page token of this service."""

    code = Code.INVALID_ARGUMENT
    reason = "PAGE_TOKEN_MALFORMED"


def page_of_providers(found: Iterable[Provider], token: str, size: int) -> tuple[list[Provider], str]:
    """Return a page of what was found, in the order given, and the next token. Raises `PageTokenMalformed`."""
    size = _size(size)
    if token and not token.startswith("spiffe://"):
        raise PageTokenMalformed("tokens come from earlier pages")
    left = [provider for provider in found if provider.spiffe_id > token]
    return left[:size], left[size - 1].spiffe_id if len(left) > size else ""


def page_of_sessions(found: Iterable[Summary], token: str, size: int) -> tuple[list[Summary], str]:
    """Return a page of what was found, the newest first as given, and the next token. Raises `PageTokenMalformed`."""
    size = _size(size)
    left = [*found]
    if token:
        place = _SESSION_TOKEN.fullmatch(token)
        if place is None:
            raise PageTokenMalformed("tokens come from earlier pages")
        left = [summary for summary in left if newest_first(summary) > (-int(place[1]), place[2])]
    if len(left) <= size:
        return left, ""
    last = left[size - 1]
    return left[:size], f"{last.established_at}.{last.session_id}"


def _size(asked: int) -> int:
    if asked > _MAX_PAGE:
        raise PageTokenMalformed(f"pages hold at most {_MAX_PAGE}")
    return asked or _DEFAULT_PAGE
