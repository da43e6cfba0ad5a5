"""It is responsible for requests that carry a prompt: whose they are, their body in time, how long an answer has."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from libs.aci.e2ee import VERSION
from libs.aci.endpoints import EVENT_STREAM, Endpoint
from libs.aci.keyset import KEYSET_HEADER
from services.router.admission.limits import Gates
from services.router.admission.tenants import Tenant, Tenants
from services.router.e2ee.opening import HEADERS
from services.router.errors import ContentEncodingNotSupported, InternalError, RequestTooSlow, RouterError
from services.router.exchange.course import Part, Request, Started
from services.router.exchange.ends import End
from services.router.exchange.running import Exchanges
from services.router.face.answers import Reply
from services.router.face.arrivals import Arrival, Fields
from services.router.face.credentials import authenticated

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

_UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Prompts:
    """Answers prompts. `body_seconds` is for a body to come, `request_seconds` from then on to its answer, and
    `total_seconds` until all of that must be read.
    """

    def __init__(
        self,
        tenants: Tenants,
        gates: Gates,
        exchanges: Exchanges,
        *,
        max_body_bytes: int,
        request_seconds: float,
        total_seconds: float,
        body_seconds: float,
    ) -> None:
        self._tenants = tenants
        self._gates = gates
        self._exchanges = exchanges
        self._max_body_bytes = max_body_bytes
        self._request_seconds = request_seconds
        self._body_seconds = body_seconds
        self._total_seconds = total_seconds

    @asynccontextmanager
    async def answer(self, endpoint: Endpoint, arrival: Arrival) -> AsyncIterator[Reply]:
        """Run an exchange; leaving the context early ends it. Raises `RouterError`, or what `Exchanges.run` raises.

        Nothing of the body is read for whoever has no key, or has asked too much.
        """
        tenant = await authenticated(self._tenants, arrival)
        with self._gates.entered(tenant) as limited:
            body, unread = await self._body(arrival, tenant) if limited is None else (b"", limited)
            async with self._exchange(endpoint, arrival, tenant, body, unread) as reply:
                yield reply

    @asynccontextmanager
    async def _exchange(
        self, endpoint: Endpoint, arrival: Arrival, tenant: Tenant, body: bytes, unread: RouterError | None
    ) -> AsyncIterator[Reply]:
        asked = arrival.headers.first("x-request-id") or ""
        # A client that does not read must not hold its receipt open for ever.
        async with asyncio.timeout(self._total_seconds) as patience:

            def why() -> End:
                if patience.expired() or arrival.stalled():
                    return End.CLIENT_TOO_SLOW
                return End.CLIENT_DISCONNECTED if arrival.gone() else End.SHUTDOWN

            request = Request(
                endpoint=endpoint,
                body=body,
                tenant=tenant,
                request_id=asked if REQUEST_ID.fullmatch(asked) else f"req_{secrets.token_hex(16)}",
                deadline=asyncio.get_running_loop().time() + self._request_seconds,
                why=why,
                sealing=_sealing(arrival.headers),
                unread=unread,
                keyset_digest=arrival.headers.first(KEYSET_HEADER.lower()),
            )
            async with aclosing(self._exchanges.run(request)) as exchange:
                started = await anext(exchange)
                if not isinstance(started, Started):
                    raise InternalError("internal error")
                headers = {
                    **started.headers,
                    "X-Receipt-Id": started.receipt_id,
                    KEYSET_HEADER: started.keyset_digest,
                }
                if started.content_type.startswith(EVENT_STREAM):
                    headers |= _UNBUFFERED
                if started.sealed is not None:
                    headers |= {"X-E2EE-Applied": "true", "X-E2EE-Version": VERSION, "X-E2EE-Algo": started.sealed}
                yield Reply(started.status, started.content_type, _bytes(exchange), headers, started.length)

    async def _body(self, arrival: Arrival, tenant: Tenant) -> tuple[bytes, RouterError | None]:
        """Return the body; or none of it, and why: whoever has a key gets a receipt for that, too. Who leaves meanwhile
        is counted.
        """
        is_left = True
        try:
            body, unread = await self._read(arrival, tenant.tenant_id)
            is_left = False
        finally:
            # However each protocol has it: a cancelled task, a connection that is not there, a stream that is closed.
            if is_left:
                self._exchanges.abandoned(tenant)
        return body, unread

    async def _read(self, arrival: Arrival, tenant_id: str) -> tuple[bytes, RouterError | None]:
        try:
            _require_no_encoding(arrival.headers)
            # A client, or a chunk that no face can make sense of, must not hold this open.
            async with asyncio.timeout(self._body_seconds):
                return await arrival.read(self._max_body_bytes, tenant_id), None
        except TimeoutError:
            return b"", RequestTooSlow(f"the request body did not come within {self._body_seconds:.0f} s")
        except RouterError as error:
            return b"", error


async def _bytes(exchange: AsyncGenerator[Part, None]) -> AsyncGenerator[bytes, None]:
    async for part in exchange:
        if isinstance(part, bytes):
            yield part


def _sealing(headers: Fields) -> dict[str, str]:
    """Return the headers that ask for encryption. Two of one name are none that can be kept to (RFC 9110, 5.3)."""
    return {name: ",".join(values) for name in HEADERS if (values := headers.all(name))}


def _require_no_encoding(headers: Fields) -> None:
    named = ",".join(headers.all("content-encoding")).lower().split(",")
    if any(name.strip() not in ("", "identity") for name in named):
        raise ContentEncodingNotSupported("the request body must not be compressed")
