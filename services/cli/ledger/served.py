"""It is responsible for fetching what a log serves over HTTPS: bounded in size and time, from the one place named."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from libs.audit.log.tiles import Fetch
from libs.errors import Code, MeshError
from services.cli.terminal.inputs import InputUnreadable

_MAX_BYTES = 256 * (2 + 65_535)
"""The largest bundle that the format can have."""
_NOT_FOUND = 404


class LogNotServed(MeshError):
    """The address does not answer, or not as a log does."""

    code = Code.UNAVAILABLE
    reason = "LOG_NOT_SERVED"


def is_url(text: str) -> bool:
    return "://" in text


@contextmanager
def fetching(url: str, ca: Path | None, timeout_seconds: float) -> Iterator[Fetch]:
    """Give a function that fetches paths below a URL, each within the timeout. Raises `InputUnreadable`.

    `ca` is a file of certificates, PEM, of which one must have signed the server's; without it the system's count. The
    function raises `LogNotServed`.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
        raise InputUnreadable(f"a log is served under https://host[:port][/path], not {url}")
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise InputUnreadable(f"cannot read {ca}: {error}") from error
    with httpx.Client(verify=context, timeout=timeout_seconds, follow_redirects=False, trust_env=False) as client:
        base = url.rstrip("/")
        yield lambda path: _fetch(client, f"{base}/{path}", timeout_seconds)


def _fetch(client: httpx.Client, url: str, timeout_seconds: float) -> bytes | None:
    deadline = time.monotonic() + timeout_seconds
    try:
        with client.stream("GET", url) as response:
            if response.status_code == _NOT_FOUND:
                return None
            if response.status_code != httpx.codes.OK:
                raise LogNotServed(f"{url} answers {response.status_code}")
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise LogNotServed(f"{url} sends more than {_MAX_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise LogNotServed(f"{url} took longer than {timeout_seconds:g} s")
            return bytes(body)
    except httpx.HTTPError as error:
        raise LogNotServed(f"{url} does not answer: {type(error).__name__} {error}") from error
