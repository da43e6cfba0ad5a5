"""It is responsible for prompts to a dstack-vllm-proxy worker: over its attested key, its signature verified after.

The signature is over hashes of request and response. What the worker refuses it does not sign.
"""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import aiohttp

from libs.aci import sse
from libs.aci.receipt_events import ServedByForeign, UpstreamVerified
from libs.aci.receipt_events import UpstreamFailed as Unverified
from libs.aci.session import session_id
from libs.aci.sse import EventSplitter, Protocol
from libs.client.exchange import receipt_segment
from libs.client.foreign import ForeignEvidence
from libs.client.http import RouterHttp
from libs.client.vllm_proxy import ED25519, Worker, buffered_forms, verify_signature, verify_worker
from libs.errors import MeshError
from libs.policy.document import Policy
from services.router.errors import AnswerUndeliverable, UpstreamFailed
from services.router.prompt import readdress
from services.router.routing.foreign.hop import CLIENTS_FAULT, OK, fetch_proof, hop, refused, served_by
from services.router.routing.foreign.place import Place
from services.router.routing.hop import Errand, Step

CHANNEL_NOT_BOUND = "channel_not_bound"
_MAX_KEPT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class VllmProxyStanding:
    """A worker that passed. Without a session its channel is bound by nothing, so it does not count as verified."""

    place: Place
    context: ssl.SSLContext = field(repr=False)
    evidence: ForeignEvidence
    worker: Worker
    session: bytes | None = field(repr=False)
    verified_at: float
    until: float
    supporting: tuple[bytes, ...] = ()

    def uphold(self, policy: Policy, now: int) -> float:
        """Raises what `verify_worker` raises."""
        worker = verify_worker(self.evidence, self.place.provider, policy, now)
        return min(self.until, self.verified_at + policy.evidence_max_age_seconds, worker.verdict.valid_until)

    def address(self, errand: Errand) -> bytes:
        """See `services.router.routing.foreign.adapter.Standing`."""
        return readdress(errand.prompt.forwarded, errand.endpoint, self.place.known_there(errand.prompt.model))

    def forward(self, errand: Errand, body: bytes) -> AsyncGenerator[Step, None]:
        """See `services.router.routing.foreign.adapter.Standing`."""
        there = self.place.known_there(errand.prompt.model)
        outcome: UpstreamVerified | Unverified
        if self.session is None:
            outcome = Unverified(False, there, CHANNEL_NOT_BOUND, f"foreign/{self.place.name}")
        else:
            outcome = UpstreamVerified(errand.required, there, session_id(self.session))
        return hop(self.place, self.context, errand, body, outcome, _SignatureProof(self, body, errand.sealed))


class _SignatureProof:
    """An answer is proven by the attested key's signature over its hash and the request's."""

    def __init__(self, standing: VllmProxyStanding, body: bytes, sealed: bool) -> None:
        self._standing = standing
        self._request = body
        self._sealed = sealed
        self._hash = hashlib.sha256()
        self._kept = bytearray()
        self._events = EventSplitter()
        self._chat_id: str | None = None
        self._streams = False

    async def admit(self, response: aiohttp.ClientResponse) -> None:
        """See `services.router.routing.foreign.hop.Proof`."""
        if response.status != OK and response.status not in CLIENTS_FAULT:
            raise await refused(self._standing.place, response)
        self._streams = response.content_type == "text/event-stream"

    def take(self, chunk: bytes) -> None:
        """Keep what the signature is found and checked by: the first event's id, or the whole body."""
        self._hash.update(chunk)
        if not self._streams:
            self._kept += chunk
        elif self._chat_id is None:
            found = (sse.response_id(event, Protocol.CHAT) for event in self._events.feed(chunk))
            self._chat_id = next(filter(None, found), None)
        if max(len(self._kept), self._events.pending) > _MAX_KEPT_BYTES:
            raise AnswerUndeliverable(f"{self._standing.place.name} answers at too great a length to be checked")

    async def conclude(self, http: RouterHttp, response: aiohttp.ClientResponse) -> ServedByForeign | None:
        if response.status != OK:
            return None
        place = self._standing.place
        forms = frozenset({self._hash.hexdigest()}) if self._streams else buffered_forms(bytes(self._kept))
        try:
            path = f"/v1/signature/{receipt_segment(self._answer_id())}?signing_algo={ED25519}"
            signature = await fetch_proof(http, place, path)
            verify_signature(signature, self._standing.worker, self._request, forms)
        except MeshError as error:
            raise UpstreamFailed(f"{place.name} does not prove its answer: {error.reason}") from error
        return served_by(place, signature, sealed=self._sealed)

    def _answer_id(self) -> str | None:
        if self._streams:
            return self._chat_id
        try:
            value = json.loads(self._kept)
        except (ValueError, RecursionError):
            return None
        return sse.id_of(value, Protocol.CHAT) if isinstance(value, dict) else None
