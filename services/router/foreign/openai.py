"""It is responsible for plain OpenAI-compatible services, of which nothing is ever verified.

A certificate of the web vouches for the host's name, so nobody on the way reads the prompt; whoever runs the host does.
There is no session, no proof and no receipt of theirs: ours says that the answer was served unverified.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import aiohttp

from libs.aci.encoding import digest
from libs.aci.receipt_events import UpstreamFailed as Unverified
from libs.client.http import Origin, open_http_over, parse_origin, read_bounded, refusal
from libs.client.pinning import client_context
from libs.errors import MeshError
from libs.policy.document import Policy
from libs.policy.foreign import ForeignProvider
from services.router.constraints import readdress
from services.router.foreign.access import Credentials
from services.router.foreign.adapter import Declaration
from services.router.foreign.sending import breaking_off, sending
from services.router.forwarding import Begun, Ended, Errand, NodeUnavailable, Reached, Step

NEVER_VERIFIED = "never_verified"
_LIFE_SECONDS = 3600
_MAX_ERROR_BYTES = 64 << 10
_OK = 200
_CLIENTS_FAULT = frozenset({400, 413, 422})


class OpenAiAdapter:
    """Speaks to one service as any client would."""

    declaration = Declaration(scope="service", claims=frozenset(), channel_bound=False, receipts=False)

    def __init__(self, provider: ForeignProvider, credentials: Credentials) -> None:
        self._provider = provider
        self._origin = parse_origin(provider.origin)
        self._credentials = credentials

    async def verify(self, policy: Policy) -> OpenAiStanding:
        """Ready the connection's authorities. There is nothing to verify."""
        context = await asyncio.to_thread(client_context, self._credentials.ca_pem, lambda spki_sha256: True)
        return OpenAiStanding(self._provider, self._origin, self._credentials, context, time.time() + _LIFE_SECONDS)


@dataclass(frozen=True, slots=True)
class OpenAiStanding:
    """A service that policy lists for best effort."""

    provider: ForeignProvider
    origin: Origin
    credentials: Credentials = field(repr=False)
    context: ssl.SSLContext = field(repr=False)
    until: float
    session: None = None
    supporting: tuple[bytes, ...] = ()

    def uphold(self, policy: Policy, now: int) -> None:
        """Nothing was judged, so nothing is to be judged again."""

    async def forward(self, errand: Errand) -> AsyncGenerator[Step, None]:
        """See `services.router.foreign.adapter.Standing`."""
        name = self.provider.name
        there = self.provider.models[errand.prompt.model]
        body = readdress(errand.prompt.forwarded, there)
        async with open_http_over(self.origin, self.context) as http, sending(http, body) as request:
            try:
                await request.reach(errand.endpoint, self.credentials.api_key, errand.timeout)
            except MeshError as error:
                raise NodeUnavailable(f"{name} cannot be reached: {error.reason}") from error
            yield Reached(digest(body), Unverified(False, there, NEVER_VERIFIED, f"foreign/{name}"))
            try:
                response = await request.answer()
            except MeshError as error:
                raise NodeUnavailable(f"{name} did not answer: {error.reason}") from error
            if response.status != _OK and response.status not in _CLIENTS_FAULT:
                raise NodeUnavailable(f"{name} refused: {await _why(response)}")
            yield Begun(response.status, response.headers.get("Content-Type", ""))
            with breaking_off():
                async for chunk in response.content.iter_any():
                    yield chunk
            yield Ended(None)


async def _why(response: aiohttp.ClientResponse) -> str:
    with breaking_off():
        refused = refusal(response, await read_bounded(response, _MAX_ERROR_BYTES))
    return f"{refused.status} {refused.type}"
