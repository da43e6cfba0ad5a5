"""It is responsible for prompts to a verified ACI service: over its attested keys alone, its receipt verified after.

A prompt goes out only over a connection whose TLS key is in the verified keyset, and only with a demand (ACI §5.3) that
the service serve it by one of the sessions that were verified before.
"""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from libs.aci.encoding import digest
from libs.aci.receipt_events import ServedByForeign, UpstreamVerified
from libs.aci.report import DIRECT
from libs.aci.session import Session
from libs.client.attestation import Established
from libs.client.exchange import receipt_segment
from libs.client.foreign import ForeignEvidence, verify_answer, verify_receipted, verify_service
from libs.client.http import Origin, RouterHttp, TlsKeyNotPinned, open_http_over, read_bounded, refusal
from libs.errors import MeshError
from libs.policy.document import Policy
from libs.policy.foreign import ForeignProvider
from services.router.constraints import readdress
from services.router.errors import UpstreamFailed
from services.router.foreign.access import Credentials
from services.router.foreign.adapter import ProofOutdated
from services.router.foreign.sending import breaking_off, sending
from services.router.forwarding import Begun, Ended, Errand, NodeUnavailable, Reached, Step

_MAX_ERROR_BYTES = 64 << 10
_MAX_RECEIPT_BYTES = 64 << 10
_SETTLE_SECONDS = 5.0
_BETWEEN_SECONDS = 0.1
_OK = 200
_CLIENTS_FAULT = frozenset({400, 413, 422})
"""What the service refuses a request for that its own client could mend."""
_SESSION_NOT_ACCEPTED = 412


@dataclass(frozen=True, slots=True)
class Place:
    """Where a provider is, and as whom this router speaks to it."""

    provider: ForeignProvider
    origin: Origin
    credentials: Credentials = field(repr=False)


@dataclass(frozen=True, slots=True)
class AciStanding:
    """A service that passed, and the only channel to it."""

    place: Place
    context: ssl.SSLContext = field(repr=False)
    evidence: ForeignEvidence
    established: Established
    accepted: Mapping[str, Session]
    session: bytes = field(repr=False)
    session_id: str
    supporting: tuple[bytes, ...] = field(repr=False)
    until: float

    def uphold(self, policy: Policy, now: int) -> None:
        """Raises what `verify_service` raises."""
        verify_service(self.evidence, self.place.provider, policy, now)

    async def forward(self, errand: Errand) -> AsyncGenerator[Step, None]:
        """See `services.router.foreign.adapter.Standing`."""
        provider, api_key = self.place.provider, self.place.credentials.api_key
        there = provider.models[errand.prompt.model]
        body = readdress(errand.prompt.forwarded, there, self._demands())
        sent_at = time.time()
        async with open_http_over(self.place.origin, self.context) as http, sending(http, body) as request:
            try:
                await request.reach(errand.endpoint, api_key, errand.timeout)
            except TlsKeyNotPinned as error:
                raise ProofOutdated(f"{provider.name} shows another TLS key than the ones verified") from error
            except MeshError as error:
                raise NodeUnavailable(f"{provider.name} cannot be reached: {error.reason}") from error
            yield Reached(digest(body), UpstreamVerified(True, there, self.session_id))
            try:
                response = await request.answer()
                await self._require_answer(response)
            except NodeUnavailable:
                raise
            except MeshError as error:
                raise NodeUnavailable(f"{provider.name} did not answer: {error.reason}") from error
            yield Begun(response.status, response.headers.get("Content-Type", ""))
            seen = hashlib.sha256()
            with breaking_off():
                async for chunk in response.content.iter_any():
                    seen.update(chunk)
                    yield chunk
            receipt = await self._receipt(http, response, body, "sha256:" + seen.hexdigest(), sent_at)
            yield Ended(ServedByForeign(provider.name, hashlib.sha256(receipt).hexdigest(), receipt.decode()))

    def _demands(self) -> dict[str, Any]:
        """What the service must serve by. Raises `ProofOutdated` when every session that was accepted has ended."""
        if self.established.serving == DIRECT:
            return {"aci_verified": True}
        now = time.time()
        current = [name for name, session in self.accepted.items() if now < session.expires_at]
        if not current:
            raise ProofOutdated(f"all sessions of {self.place.provider.name} have ended")
        return {"aci_verified": True, "aci_session_ids": sorted(current)}

    async def _require_answer(self, response: aiohttp.ClientResponse) -> None:
        """Raise `ProofOutdated` or `NodeUnavailable` for what is no answer to pass on."""
        name = self.place.provider.name
        if (
            response.headers.get("X-ACI-Keyset-Digest", self.established.keyset.digest)
            != self.established.keyset.digest
        ):
            raise ProofOutdated(f"{name} serves under another keyset than the one verified")
        if response.status == _OK or (response.status in _CLIENTS_FAULT and "X-Receipt-Id" in response.headers):
            return
        with breaking_off():
            refused = refusal(response, await read_bounded(response, _MAX_ERROR_BYTES))
        if response.status == _SESSION_NOT_ACCEPTED:
            raise ProofOutdated(f"{name} has other sessions than the ones verified")
        raise NodeUnavailable(f"{name} refused: {refused.status} {refused.type}")

    async def _receipt(
        self, http: RouterHttp, response: aiohttp.ClientResponse, body: bytes, response_hash: str, sent_at: float
    ) -> bytes:
        """Return the service's receipt for this answer, verified. Raises `UpstreamFailed`, which names why not."""
        name, api_key = self.place.provider.name, self.place.credentials.api_key
        try:
            path = f"/v1/aci/receipts/{receipt_segment(response.headers.get('X-Receipt-Id'))}"
            receipt = await http.get_once_there(path, api_key=api_key, settle=_SETTLE_SECONDS, between=_BETWEEN_SECONDS)
            if len(receipt) > _MAX_RECEIPT_BYTES:
                raise UpstreamFailed(f"{name} made a receipt that is too long")
            if response.status == _OK:
                verify_answer(
                    receipt,
                    self.established,
                    self.accepted,
                    request_body=body,
                    response_hash=response_hash,
                    sent_at=sent_at,
                    received_at=time.time(),
                )
            else:
                verify_receipted(receipt, self.established, request_body=body, response_hash=response_hash)
        except UpstreamFailed:
            raise
        except MeshError as error:
            raise UpstreamFailed(f"{name} does not prove its answer: {error.reason}") from error
        return receipt
