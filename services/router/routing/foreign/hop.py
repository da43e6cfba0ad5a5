"""It is responsible for one hop to a foreign provider, the same for every kind; what the answer is proven by is each
kind's own.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

import aiohttp

from libs.aci.encoding import digest
from libs.aci.receipt_events import KnownEvent, ServedByForeign, UpstreamFailed, UpstreamVerified
from libs.client.http import AnswerTooLarge, RouterHttp, TlsKeyNotPinned, open_http_over, read_bounded, refusal
from libs.errors import MeshError
from services.router.routing.foreign.adapter import ProofOutdated
from services.router.routing.foreign.place import Place
from services.router.routing.foreign.sending import breaking_off, sending
from services.router.routing.hop import MAX_PROOF_BYTES, Begun, Ended, Errand, NodeUnavailable, Reached, Step

OK = 200
CLIENTS_FAULT = frozenset({400, 413, 422})
"""What a provider refuses a request for that its own client could mend."""

_MAX_ERROR_BYTES = 64 << 10
_SETTLE_SECONDS = 5.0
_BETWEEN_SECONDS = 0.1


class Proof(Protocol):
    """What is asked of one answer."""

    async def admit(self, response: aiohttp.ClientResponse) -> None:
        """Raise `ProofOutdated` or `NodeUnavailable` for what is no answer to pass on."""
        ...

    def take(self, chunk: bytes) -> None:
        """See the next bytes of the answer."""
        ...

    async def conclude(self, http: RouterHttp, response: aiohttp.ClientResponse) -> KnownEvent | None:
        """Return what the receipt is to say, once the answer is whole. Raises `UpstreamFailed`."""
        ...


async def hop(
    place: Place,
    context: ssl.SSLContext,
    errand: Errand,
    body: bytes,
    outcome: UpstreamVerified | UpstreamFailed,
    proof: Proof,
    headers: Mapping[str, str] | None = None,
) -> AsyncGenerator[Step, None]:
    """Yield the steps of `services.router.routing.routes.Route`. `context` decides which TLS keys there may be.

    Raises `ProofOutdated` where the provider is no longer what was verified.
    """
    ends_at = asyncio.get_running_loop().time() + errand.timeout
    async with open_http_over(place.origin, context) as http, sending(http, body, headers or {}) as request:
        try:
            await request.reach(errand.endpoint.path, place.api_key, errand.timeout)
        except TlsKeyNotPinned as error:
            raise ProofOutdated(f"{place.name} shows another TLS key than the ones verified") from error
        except MeshError as error:
            raise NodeUnavailable(f"{place.name} cannot be reached: {error.reason}") from error
        yield Reached(digest(body), outcome)
        try:
            response = await request.answer()
        except MeshError as error:
            raise NodeUnavailable(f"{place.name} did not answer: {error.reason}") from error
        await proof.admit(response)
        yield Begun(response.status, response.headers.get("Content-Type", ""))
        with breaking_off():
            async for chunk in response.content.iter_any():
                proof.take(chunk)
                yield chunk
            # What proves the answer is asked for by requests of its own, in what is left of the time for this one.
            async with asyncio.timeout_at(ends_at):
                served = await proof.conclude(http, response)
        yield Ended(served)


async def fetch_proof(http: RouterHttp, place: Place, path: str) -> bytes:
    """Return what proves an answer, once the provider has it. Raises `AnswerTooLarge` where it could not be logged, and
    what keeps it from coming.
    """
    return await http.get_once_there(
        path, api_key=place.api_key, settle=_SETTLE_SECONDS, between=_BETWEEN_SECONDS, most_bytes=MAX_PROOF_BYTES
    )


def served_by(place: Place, proven: bytes, *, sealed: bool) -> ServedByForeign:
    """Return what the receipt says of who proved an answer so. What proves it has the hash of the answer in clear, so
    it stays here where that goes out encrypted: see `services.router.routing.hop.Errand.sealed`.
    """
    return ServedByForeign(place.name, hashlib.sha256(proven).hexdigest(), None if sealed else proven.decode())


async def refused(place: Place, response: aiohttp.ClientResponse) -> NodeUnavailable:
    """Return what to raise for an answer that is not to be passed on. Its message is not: it may quote our key."""
    try:
        with breaking_off():
            why = refusal(response, await read_bounded(response, _MAX_ERROR_BYTES))
    except AnswerTooLarge as error:
        raise NodeUnavailable(f"{place.name} refused at too great a length: {response.status}") from error
    return NodeUnavailable(f"{place.name} refused: {why.status} {why.type}")
