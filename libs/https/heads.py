"""Responsible for what a request's head must be, whichever version of HTTP brought it, so that nobody on the way can
have read another request than this listener does.

Libraries have split the head into its parts by then. They let more by than this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import parse_qsl

from libs.https.unreadable import Unreadable

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::[0-9]{0,5})?")
"""A host and a port (RFC 3986, section 3.2), without user information and what else could hide one host in another."""
_ORIGIN_FORM = re.compile(r"/[!-~]*")
_SCHEME = "https://"
_OPTIONS_ALL = "*"

Query = tuple[tuple[str, str], ...]


def require_authority(given: Sequence[str]) -> str:
    """Return whom the request is for. Raises `Unreadable` unless that is one host (RFC 9112, section 3.2)."""
    if len(given) != 1 or not _AUTHORITY.fullmatch(given[0]):
        raise Unreadable("the request must name its host, once")
    return given[0]


def host_of(authority: str) -> str:
    """Return the host of an authority, as keysets write one; empty if there is none."""
    named = _AUTHORITY.fullmatch(authority)
    return "" if named is None else named[1].strip("[]").removesuffix(".").lower()


def split_target(target: str, authority: str) -> tuple[str, Query]:
    """Return the path as it came, percent-encoded, and the query's names with their values. Raises `Unreadable`.

    An absolute target (RFC 9112, section 3.2.2) is read if it names the host that the request names.
    """
    if target[: len(_SCHEME)].lower() == _SCHEME:
        named, slash, rest = target[len(_SCHEME) :].partition("/")
        if named.lower() != authority.lower():
            raise Unreadable("the request's target and its host differ")
        target = slash + rest
    if target == _OPTIONS_ALL:
        return target, ()
    if not _ORIGIN_FORM.fullmatch(target) or "#" in target:
        raise Unreadable("the request's target must be a path")
    path, _, query = target.partition("?")
    return path, tuple(parse_qsl(query, keep_blank_values=True))
