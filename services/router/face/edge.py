"""It is responsible for the HTTPS face: OpenAI's paths and ACI's, JSON errors and ACI headers on every response."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import structlog
from aiohttp import web

from libs.aci.encoding import is_hex
from libs.aci.endpoints import SERVED
from libs.aci.report import NonceMalformed
from libs.aci.session import abbreviated
from libs.errors import Code, MeshError
from libs.identity.freshness import PolicyKeeper
from services.router.admission.tenants import Tenants, bearer
from services.router.errors import (
    ContentEncodingNotSupported,
    EndpointNotSupported,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RequestTooLarge,
    RequestTooSlow,
    RouterError,
    ServiceUnavailable,
    TenantRevoked,
    Unauthorized,
)
from services.router.exchange.exchange import Exchanges, Request, Started
from services.router.proof.commitments import Commitments, EvidenceDocuments
from services.router.proof.store import ReceiptNotFound, ReceiptStore, StoredReceipt
from services.router.routing.foreign.providers import ForeignProviders
from services.router.routing.upstreams import Upstreams
from services.router.workload.workload import Reports, Workload

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

DELIVERY_SECONDS = 30.0
"""How long, beyond its own time, a request's answer may take to be read by its client."""

_PIECE_BYTES = 128 << 10
"""Over the 64 KiB from which on aiohttp waits until there is room."""

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Edge:
    """What the routes need."""

    workload: Workload
    reports: Reports
    policy: PolicyKeeper
    tenants: Tenants
    upstreams: Upstreams
    foreign: ForeignProviders
    exchanges: Exchanges
    receipts: ReceiptStore
    commitments: Commitments
    evidence: EvidenceDocuments
    max_body_bytes: int
    request_seconds: float
    body_seconds: float = 30.0

    @property
    def headers(self) -> dict[str, str]:
        """What every response carries."""
        return {"X-ACI-Version": "aci/1", "X-ACI-Keyset-Digest": self.workload.keyset_digest}

    def application(self) -> web.Application:
        """The routes, with errors mapped and headers set around all of them."""
        application = web.Application(middlewares=[self._headers_and_errors], client_max_size=self.max_body_bytes)
        router = application.router
        router.add_get("/", self._root)
        router.add_get("/health", self._health)
        router.add_get("/v1/models", self._models)
        for endpoint in SERVED:
            router.add_post(endpoint, self._prompt)
        router.add_get("/v1/aci/attestation", self._attestation)
        router.add_get("/v1/aci/receipts/{id}", self._receipt)
        router.add_get("/v1/aci/sessions", self._sessions)
        router.add_get("/v1/aci/sessions/{id}", self._session)
        router.add_get("/v1/teemesh/receipts/{id}/commitment", self._commitment)
        router.add_get("/v1/teemesh/evidence/{digest}", self._evidence)
        application.on_response_prepare.append(self._set_headers)
        return application

    async def _set_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(self.headers)
        response.headers.popall("Server", None)

    @web.middleware
    async def _headers_and_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except RouterError as error:
            return _error(error)
        except NonceMalformed as error:
            return _error(InvalidRequest(str(error)))
        except web.RequestPayloadError:
            return _error(InvalidRequest("the request body cannot be read to its end"))
        except web.HTTPRequestEntityTooLarge:
            return _error(RequestTooLarge(f"the request body is over {self.max_body_bytes} bytes"))
        except web.HTTPMethodNotAllowed as error:
            response = _error(MethodNotAllowed(f"{request.method} is not a method of this path"))
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
            return response
        except web.HTTPNotFound:
            return _error(EndpointNotSupported("no such path"))
        except web.HTTPException as error:
            return _error(InvalidRequest(error.reason))
        except MeshError as error:
            log.warning("request failed", path=request.path, reason=error.reason, detail=str(error))
            unavailable = error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
            return _error(
                ServiceUnavailable(f"not now: {error.reason}") if unavailable else InternalError("internal error")
            )
        except Exception:
            log.exception("bug in a handler", path=request.path)
            return _error(InternalError("internal error"))

    async def _root(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"api_version": "aci/1", "workload_keyset_digest": self.workload.keyset_digest})

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok"})

    async def _models(self, request: web.Request) -> web.StreamResponse:
        tenant = await self.tenants.authenticate(_authorization(request))
        models = [
            {"id": model, "object": "model", "created": 0, "owned_by": "teemesh"}
            for model in sorted({*self.upstreams.weights(tenant.tenant_id), *self.foreign.models(tenant.tenant_id)})
        ]
        return web.json_response({"object": "list", "data": models})

    async def _prompt(self, request: web.Request) -> web.StreamResponse:
        tenant = await self.tenants.authenticate(_authorization(request))
        _require_no_encoding(request)
        body = await self._body(request)
        asked = request.headers.get("X-Request-Id", "")
        exchange = self.exchanges.run(
            Request(
                endpoint=SERVED[request.path],
                body=body,
                tenant=tenant,
                request_id=asked if REQUEST_ID.fullmatch(asked) else f"req_{secrets.token_hex(16)}",
                deadline=asyncio.get_running_loop().time() + self.request_seconds,
            )
        )
        response: web.StreamResponse | None = None
        whole = False
        try:
            # A client that does not read must not hold its receipt open for ever.
            async with asyncio.timeout(self.request_seconds + DELIVERY_SECONDS), aclosing(exchange):
                async for part in exchange:
                    if isinstance(part, Started):
                        response = _response_for(part)
                        await response.prepare(request)
                    elif response is not None:
                        await _write(response, part)
            if response is not None:
                await response.write_eof()
            whole = True
        except (ConnectionResetError, TimeoutError):
            log.info("the client left, or does not read")  # Closing the exchange has written its receipt.
        finally:
            if response is not None and not whole and request.transport is not None:
                # No other answer may follow on this connection, and what went out must not look complete.
                request.transport.abort()
        if response is None:
            raise InternalError("internal error")
        return response

    async def _body(self, request: web.Request) -> bytes:
        """Raises `RequestTooSlow`: a client, or a chunk that aiohttp cannot make sense of, must not hold this open."""
        try:
            async with asyncio.timeout(self.body_seconds):
                return await request.read()
        except TimeoutError as error:
            raise RequestTooSlow(f"the request body did not come within {self.body_seconds:.0f} s") from error

    async def _attestation(self, request: web.Request) -> web.StreamResponse:
        return _json(await self.reports.report(_only("nonce", request.query.getall("nonce", []))))

    async def _receipt(self, request: web.Request) -> web.StreamResponse:
        return _json((await self._stored(request)).receipt)

    async def _commitment(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await self.commitments.of(await self._stored(request)))

    async def _stored(self, request: web.Request) -> StoredReceipt:
        """The receipt that is asked for. A key that opens nothing is refused as if there were no such receipt (ACI
        section 7.6), whose key it may be or have been; only no key at all is told.
        """
        authorization = _authorization(request)
        try:
            tenant = await self.tenants.authenticate(authorization)
        except (Unauthorized, TenantRevoked) as error:
            if bearer(authorization) is None:
                raise
            raise ReceiptNotFound from error
        return await self.receipts.find(request.match_info["id"], tenant.tenant_id)

    async def _sessions(self, request: web.Request) -> web.StreamResponse:
        filters = request.query.get("upstream_name"), request.query.get("model")
        documents = self.upstreams.current_sessions(*filters) + self.foreign.current_sessions(*filters)
        return web.json_response(
            {"api_version": "aci/1", "sessions": [abbreviated(document) for document in documents]}
        )

    async def _session(self, request: web.Request) -> web.StreamResponse:
        session_id = request.match_info["id"]
        try:
            if not is_hex(session_id, 32):
                raise NotFound("session ids are 64 lower-case hex digits")
            return _json(await self._session_document(session_id))
        except MeshError as error:
            if error.reason == "SESSION_UNKNOWN":
                raise NotFound("no such session") from error
            raise

    async def _session_document(self, session_id: str) -> bytes:
        """Sessions of foreign providers are this router's own; those of nodes are the registry's."""
        try:
            return await self.foreign.session(session_id)
        except NotFound:
            return await self.upstreams.session(session_id)

    async def _evidence(self, request: web.Request) -> web.StreamResponse:
        return _json(await self.evidence.find(request.match_info["digest"]))


def _authorization(request: web.Request) -> str | None:
    return _only("Authorization", request.headers.getall("Authorization", []))


def _only(name: str, values: Sequence[str]) -> str | None:
    """Of two values somebody on the way may have read the other one. Raises `InvalidRequest`."""
    if len(values) > 1:
        raise InvalidRequest(f"{name} is given more than once")
    return values[0] if values else None


def _require_no_encoding(request: web.Request) -> None:
    named = ",".join(request.headers.getall("Content-Encoding", [])).lower().split(",")
    if any(name.strip() not in ("", "identity") for name in named):
        raise ContentEncodingNotSupported("the request body must not be compressed")


def _response_for(started: Started) -> web.StreamResponse:
    headers = {"Content-Type": started.content_type, "X-Receipt-Id": started.receipt_id}
    if started.content_type.startswith("text/event-stream"):
        headers |= {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return web.StreamResponse(status=started.status, headers=headers)


async def _write(response: web.StreamResponse, data: bytes) -> None:
    """Return once nearly all is with the operating system: one long write may lie whole in this process's TLS layer."""
    for start in range(0, len(data), _PIECE_BYTES):
        await response.write(data[start : start + _PIECE_BYTES])


def _json(document: bytes) -> web.Response:
    return web.Response(body=document, content_type="application/json")


def _error(error: RouterError) -> web.Response:
    response = web.Response(status=error.status, body=error.body, content_type="application/json")
    if isinstance(error, ContentEncodingNotSupported):
        response.headers["Accept-Encoding"] = "identity"
    return response
