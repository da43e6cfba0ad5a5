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

from libs.aci.keyset import KEYSET_HEADER
from libs.aci.receipt_events import ServedByForeign, UpstreamVerified
from libs.aci.report import DIRECT
from libs.aci.session import Session
from libs.client.attestation import Established
from libs.client.exchange import receipt_segment
from libs.client.foreign import ForeignEvidence, verify_answer, verify_receipted, verify_service
from libs.client.http import RouterHttp
from libs.errors import MeshError
from libs.policy.document import Policy
from services.router.errors import UpstreamFailed
from services.router.prompt import readdress
from services.router.routing.foreign.adapter import ProofOutdated
from services.router.routing.foreign.hop import CLIENTS_FAULT, OK, fetch_proof, hop, refused, served_by
from services.router.routing.foreign.place import Place
from services.router.routing.hop import Errand, Step

_SESSION_NOT_ACCEPTED = 412


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
    verified_at: float
    until: float

    def uphold(self, policy: Policy, now: int) -> float:
        """Raises what `verify_service` raises."""
        established = verify_service(self.evidence, self.place.provider, policy, now)
        return min(self.until, self.verified_at + policy.evidence_max_age_seconds, established.verdict.valid_until)

    def address(self, errand: Errand) -> bytes:
        """See `services.router.routing.foreign.adapter.Standing`."""
        there = self.place.known_there(errand.prompt.model)
        return readdress(errand.prompt.forwarded, errand.endpoint, there, self._demands())

    def forward(self, errand: Errand, body: bytes) -> AsyncGenerator[Step, None]:
        """See `services.router.routing.foreign.adapter.Standing`."""
        outcome = UpstreamVerified(errand.required, self.place.known_there(errand.prompt.model), self.session_id)
        verified = {KEYSET_HEADER: self.established.keyset.digest}
        return hop(self.place, self.context, errand, body, outcome, _ReceiptProof(self, body, errand.sealed), verified)

    def _demands(self) -> dict[str, Any]:
        """What the service must serve by. Raises `ProofOutdated` when every session that was accepted has ended."""
        if self.established.serving == DIRECT:
            return {"aci_verified": True}
        now = time.time()
        current = [name for name, session in self.accepted.items() if now < session.expires_at]
        if not current:
            raise ProofOutdated(f"all sessions of {self.place.name} have ended")
        return {"aci_verified": True, "aci_session_ids": sorted(current)}


class _ReceiptProof:
    """An answer is proven by the service's receipt over the exact bytes of both directions."""

    def __init__(self, standing: AciStanding, body: bytes, sealed: bool) -> None:
        self._standing = standing
        self._body = body
        self._sealed = sealed
        self._sent_at = time.time()
        self._seen = hashlib.sha256()

    async def admit(self, response: aiohttp.ClientResponse) -> None:
        """See `Proof`. An error without a receipt proves nothing, so it is nobody's to see."""
        place, verified = self._standing.place, self._standing.established.keyset.digest
        if response.headers.get(KEYSET_HEADER, verified) != verified:
            raise ProofOutdated(f"{place.name} serves under another keyset than the one verified")
        if response.status == _SESSION_NOT_ACCEPTED:
            raise ProofOutdated(f"{place.name} has other sessions than the ones verified")
        if response.status != OK and not (response.status in CLIENTS_FAULT and "X-Receipt-Id" in response.headers):
            raise await refused(place, response)

    def take(self, chunk: bytes) -> None:
        self._seen.update(chunk)

    async def conclude(self, http: RouterHttp, response: aiohttp.ClientResponse) -> ServedByForeign:
        place = self._standing.place
        try:
            receipt = await self._receipt(http, response)
        except MeshError as error:
            raise UpstreamFailed(f"{place.name} does not prove its answer: {error.reason}") from error
        return served_by(place, receipt, sealed=self._sealed)

    async def _receipt(self, http: RouterHttp, response: aiohttp.ClientResponse) -> bytes:
        standing = self._standing
        segment = receipt_segment(response.headers.get("X-Receipt-Id"))
        receipt = await fetch_proof(http, standing.place, f"/v1/aci/receipts/{segment}")
        response_hash = "sha256:" + self._seen.hexdigest()
        if response.status != OK:
            verify_receipted(receipt, standing.established, request_body=self._body, response_hash=response_hash)
            return receipt
        verify_answer(
            receipt,
            standing.established,
            standing.accepted,
            request_body=self._body,
            response_hash=response_hash,
            sent_at=self._sent_at,
            received_at=time.time(),
        )
        return receipt
