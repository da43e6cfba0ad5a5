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

from libs.aci.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from libs.aci.receipt_events import UpstreamFailed as Unverified
from libs.client.http import RouterHttp
from libs.client.pinning import client_context
from libs.policy.document import Policy
from libs.policy.foreign import ForeignProvider
from services.router.prompt import readdress
from services.router.routing.foreign.access import Credentials
from services.router.routing.foreign.adapter import Declaration
from services.router.routing.foreign.hop import CLIENTS_FAULT, OK, hop, refused
from services.router.routing.foreign.place import Place
from services.router.routing.hop import Errand, Step

NEVER_VERIFIED = "never_verified"
_LIFE_SECONDS = 3600


class OpenAiAdapter:
    """Speaks to one service as any client would."""

    declaration = Declaration(
        scope="service",
        claims=frozenset(),
        receipts=False,
        endpoints=frozenset({CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES}),
    )

    def __init__(self, provider: ForeignProvider, credentials: Credentials) -> None:
        self._place = Place.of(provider, credentials)

    async def verify(self, policy: Policy) -> OpenAiStanding:
        """Ready the connection's authorities. There is nothing to verify."""
        ca_pem = self._place.credentials.ca_pem
        context = await asyncio.to_thread(client_context, ca_pem, lambda spki_sha256: True)
        return OpenAiStanding(self._place, context, time.time() + _LIFE_SECONDS)


@dataclass(frozen=True, slots=True)
class OpenAiStanding:
    """A service that policy lists for best effort."""

    place: Place
    context: ssl.SSLContext = field(repr=False)
    until: float
    session: None = None
    supporting: tuple[bytes, ...] = ()
    verified_at: float = 0.0

    def uphold(self, policy: Policy, now: int) -> float:
        """Nothing was judged, so nothing is to be judged again."""
        return self.until

    def address(self, errand: Errand) -> bytes:
        """See `services.router.routing.foreign.adapter.Standing`."""
        return readdress(errand.prompt.forwarded, errand.endpoint, self.place.known_there(errand.prompt.model))

    def forward(self, errand: Errand, body: bytes) -> AsyncGenerator[Step, None]:
        """See `services.router.routing.foreign.adapter.Standing`."""
        there = self.place.known_there(errand.prompt.model)
        outcome = Unverified(False, there, NEVER_VERIFIED, f"foreign/{self.place.name}")
        return hop(self.place, self.context, errand, body, outcome, NoProof(self.place))


@dataclass(frozen=True, slots=True)
class NoProof:
    """Nothing is asked of an answer, but that it is one."""

    place: Place

    async def admit(self, response: aiohttp.ClientResponse) -> None:
        """See `services.router.routing.foreign.hop.Proof`."""
        if response.status != OK and response.status not in CLIENTS_FAULT:
            raise await refused(self.place, response)

    def take(self, chunk: bytes) -> None:
        """No byte of it proves anything."""

    async def conclude(self, http: RouterHttp, response: aiohttp.ClientResponse) -> None:
        """There is nothing to say."""
