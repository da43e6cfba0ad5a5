"""It is responsible for prompts to a dstack-vllm-proxy worker: over its attested key, its signature verified after.

The signature is over hashes of request and response. What the worker refuses it does not sign.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial

import aiohttp

from libs.aci.json_values import weight
from libs.aci.receipt_events import ServedByForeign, UpstreamVerified
from libs.aci.receipt_events import UpstreamFailed as Unverified
from libs.aci.session import session_id
from libs.client.exchange import receipt_segment
from libs.client.foreign import ForeignEvidence
from libs.client.http import RouterHttp
from libs.client.vllm_proxy import ED25519, Worker, verify_signature, verify_worker
from libs.client.worker_answers import HEAD_BYTES, WorkerAnswer, named_in, read_whole
from libs.errors import MeshError
from libs.policy.document import Policy
from services.router.errors import AnswerUndeliverable, UpstreamFailed
from services.router.prompt import readdress
from services.router.reading import Reading
from services.router.routing.foreign.hop import CLIENTS_FAULT, OK, fetch_proof, hop, refused, served_by
from services.router.routing.foreign.place import Place
from services.router.routing.hop import Errand, Step

CHANNEL_NOT_BOUND = "channel_not_bound"
_MAX_KEPT_BYTES = 16 << 20
_ASKING_SECONDS = 0.5
"""What is kept back of a request's time to ask for a signature in."""


@dataclass(frozen=True, slots=True)
class VllmProxyStanding:
    """A worker that passed. Without a session its channel is bound by nothing, so it does not count as verified."""

    place: Place
    context: ssl.SSLContext = field(repr=False)
    evidence: ForeignEvidence
    worker: Worker
    reading: Reading = field(repr=False)
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
        return hop(self.place, self.context, errand, body, outcome, _SignatureProof(self, body, errand))


class _SignatureProof:
    """An answer is proven by the attested key's signature over its hash and the request's."""

    def __init__(self, standing: VllmProxyStanding, body: bytes, errand: Errand) -> None:
        self._standing = standing
        self._request = body
        self._errand = errand
        self._ends_at = asyncio.get_running_loop().time() + errand.timeout
        self._streamed = hashlib.sha256()
        self._kept = bytearray()
        self._streams = False

    async def admit(self, response: aiohttp.ClientResponse) -> None:
        """See `services.router.routing.foreign.hop.Proof`."""
        if response.status != OK and response.status not in CLIENTS_FAULT:
            raise await refused(self._standing.place, response)
        self._streams = response.content_type == "text/event-stream"

    def take(self, chunk: bytes) -> None:
        """Keep what the signature is found and checked by: how a stream begins, or the whole body."""
        if self._streams:
            self._streamed.update(chunk)
            self._kept += chunk[: HEAD_BYTES - len(self._kept)]
            return
        self._kept += chunk
        if len(self._kept) > _MAX_KEPT_BYTES:
            raise AnswerUndeliverable(f"{self._standing.place.name} answers at too great a length to be checked")

    async def conclude(self, http: RouterHttp, response: aiohttp.ClientResponse) -> ServedByForeign | None:
        if response.status != OK:
            return None
        place = self._standing.place
        answer = await self._answer()
        try:
            path = f"/v1/signature/{receipt_segment(answer.answer_id)}?signing_algo={ED25519}"
            signature = await fetch_proof(http, place, path)
            verify_signature(signature, self._standing.worker, self._request, answer.hashes)
        except MeshError as error:
            raise UpstreamFailed(f"{place.name} does not prove its answer: {error.reason}") from error
        return served_by(place, signature, sealed=self._errand.sealed)

    async def _answer(self) -> WorkerAnswer:
        """Raises `UpstreamFailed` where there is no time for its turn to be read."""
        if self._streams:
            return WorkerAnswer(named_in(self._kept), frozenset({self._streamed.hexdigest()}))
        reading, spare = self._standing.reading, self._ends_at - asyncio.get_running_loop().time() - _ASKING_SECONDS
        work = partial(read_whole, self._kept)
        return await reading.answer(self._errand.tenant_id, weight(self._kept), spare, work)
