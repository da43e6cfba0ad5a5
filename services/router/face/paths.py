"""It is responsible for the table of paths: who answers which, JSON errors, and ACI's headers on every reply."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from urllib.parse import unquote

import structlog

from libs.aci.endpoints import SERVED, protocol_at
from libs.aci.report import NonceMalformed
from libs.errors import Code, MeshError
from services.router.errors import (
    EndpointNotSupported,
    ExpectationFailed,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    Misdirected,
    RouterError,
    ServiceUnavailable,
)
from services.router.face.answers import Headers, Reply, refusal
from services.router.face.arrivals import Arrival
from services.router.face.documents import Documents
from services.router.face.origins import Origins
from services.router.face.prompts import Prompts
from services.router.metrics import Metrics

_NAMED = "{}"
"""Stands in a path for what a request names."""

Document = Callable[[Arrival, str], Awaitable[Reply]]
Opening = Callable[[Arrival, str], AbstractAsyncContextManager[Reply]]

log = structlog.get_logger()


class Paths:
    """Answers requests. What `headers` returns goes on every reply, errors included."""

    def __init__(
        self, headers: Headers, prompts: Prompts, documents: Documents, origins: Origins, metrics: Metrics
    ) -> None:
        self._headers = headers
        self._origins = origins
        self._metrics = metrics
        self._table: Mapping[str, tuple[str, Opening]] = {
            **{path: ("POST", partial(_prompt, prompts, path)) for path in SERVED},
            **{
                path: ("GET", partial(_at_once, answering))
                for path, answering in (
                    ("/", documents.root),
                    ("/health", documents.health),
                    ("/v1/models", documents.models),
                    ("/v1/aci/attestation", documents.attestation),
                    ("/v1/attestation/report", documents.worker_report),
                    ("/v1/signature/{}", documents.signature),
                    ("/v1/aci/receipts/{}", documents.receipt),
                    ("/v1/aci/sessions", documents.sessions),
                    ("/v1/aci/sessions/{}", documents.session),
                    ("/v1/teemesh/receipts/{}/commitment", documents.commitment),
                    ("/v1/teemesh/usage", documents.used),
                    ("/v1/teemesh/evidence/{}", documents.evidence_document),
                )
            },
        }

    def unread_headers(self) -> Mapping[str, str]:
        """Return what goes on replies to what is no request (`answers.Headers`)."""
        return {**self._headers(), **self._origins.unread_headers()}

    @asynccontextmanager
    async def answer(self, arrival: Arrival) -> AsyncIterator[Reply]:
        """See `answers.Answer`."""
        async with AsyncExitStack() as stack:
            protocol = protocol_at(arrival.path)
            try:
                _require_host(arrival)
                reply = self._origins.preflight(arrival)
                if reply is None:
                    reply = await stack.enter_async_context(self._open(arrival))
            except MeshError as error:
                reply = refusal(_told(error, arrival), protocol)
            except Exception:
                log.exception("bug in a handler", path=arrival.path)
                reply = refusal(InternalError("internal error"), protocol)
            self._metrics.replies.add(str(reply.status))
            yield replace(reply, headers={**self._headers(), **reply.headers, **self._origins.headers(arrival)})

    def _open(self, arrival: Arrival) -> AbstractAsyncContextManager[Reply]:
        """Raises `EndpointNotSupported`, `MethodNotAllowed` or `ExpectationFailed`."""
        method, opening, name = self._find(arrival.path)
        allowed = (method, "HEAD") if method == "GET" else (method,)
        if arrival.method not in allowed:
            raise MethodNotAllowed(f"{arrival.method} is not a method of this path", allowed)
        if any(expected.lower() != "100-continue" for expected in arrival.headers.all("expect")):
            raise ExpectationFailed("nothing but 100-continue can be expected")
        return opening(arrival, name)

    def _find(self, path: str) -> tuple[str, Opening, str]:
        for pattern, (method, opening) in self._table.items():
            name = _named(pattern, path)
            if name is not None:
                return method, opening, name
        raise EndpointNotSupported("no such path")


def _require_host(arrival: Arrival) -> None:
    """Raises `Misdirected`: another host's clients pin another key than the one that this answer would come over."""
    if arrival.served is not None and arrival.host not in arrival.served:
        raise Misdirected("this connection's certificate is not for the host that the request names")


def _named(pattern: str, path: str) -> str | None:
    """Return what the path names, "" if it is the pattern's own and names nothing, None if it is another path."""
    expected, given = pattern.split("/"), path.split("/")
    if len(expected) != len(given):
        return None
    name = ""
    for part, found in zip(expected, given, strict=True):
        if part == _NAMED and found:
            name = unquote(found)
        elif part != found:
            return None
    return name


@asynccontextmanager
async def _at_once(answering: Document, arrival: Arrival, name: str) -> AsyncIterator[Reply]:
    yield await answering(arrival, name)


def _prompt(prompts: Prompts, path: str, arrival: Arrival, name: str) -> AbstractAsyncContextManager[Reply]:
    return prompts.answer(SERVED[path], arrival)


def _told(error: MeshError, arrival: Arrival) -> RouterError:
    """Return what a client learns of an error."""
    if isinstance(error, RouterError):
        return error
    if isinstance(error, NonceMalformed):
        return InvalidRequest(str(error))
    log.warning("request failed", path=arrival.path, reason=error.reason, detail=str(error), thinned=True)
    if error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
        return ServiceUnavailable(f"not now: {error.reason}")
    return InternalError("internal error")
