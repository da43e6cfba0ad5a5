"""Responsible for talking to a router only after it was verified, only over its attested keys, and for fetching what
proves each answer.

Order: a fresh nonce, the report over a connection that carries no secret, its appraisal; from then on every connection
is refused inside its TLS handshake unless it ends in a key of the attested keyset. Only such connections carry the API
key and prompts. A router renews its keyset while it runs: the next one is verified in the same way before the last one
ends, and before more is sent to a router that answered under it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from libs.aci import receipt as receipts
from libs.aci.endpoints import CHAT
from libs.aci.keyset import KEYSET_HEADER, Keyset, verify_usable
from libs.aci.receipt_events import UpstreamVerified
from libs.client import commitment as commitments
from libs.client.answer import Answer
from libs.client.attestation import LONGEST_KEYSET_SECONDS, Attested
from libs.client.chain import cited_by, foreign_link
from libs.client.checks import Check, Materials, run_checks
from libs.client.exchange import Exchange, receipt_segment
from libs.client.http import (
    MAX_DOCUMENT_BYTES,
    Origin,
    RouterHttp,
    is_encoded,
    open_http,
    parse_origin,
    refusal,
    refuse_encoded,
)
from libs.client.record import Record
from libs.client.sealing import seal
from libs.client.trust import Trust
from libs.client.verified import Verified, VerifiedKeysets, verify_router
from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.policy.succession import verify_valid_at
from libs.transparency.cosignature import QuorumNotReached


class NothingCited(MeshError):
    """The receipt cites no session."""

    code = Code.NOT_FOUND
    reason = "NOTHING_CITED"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what is on its way. All in seconds."""

    settle: float = 20.0
    """For a receipt, its commitment and a checkpoint that covers it, after the response."""
    between: float = 0.5
    """Between two tries."""
    silence: float = 120.0
    """Between two pieces of a response."""
    total: float = 900.0
    """For a whole response."""


@dataclass(frozen=True, slots=True)
class _Evidence:
    issuer: bytes | MeshError
    acknowledger: bytes | MeshError
    ledger: bytes | MeshError


class RouterSession:
    """A verified router. Open with `open_session`."""

    def __init__(
        self,
        *,
        http: RouterHttp,
        origin: Origin,
        api_key: str,
        trust: Trust,
        keysets: VerifiedKeysets,
        patience: Patience,
    ) -> None:
        self._http = http
        self._origin = origin
        self._api_key = api_key
        self._trust = trust
        self._keysets = keysets
        self._patience = patience
        self._served_under: str | None = None
        """A keyset that the router answered under and that was not verified yet."""

    @property
    def attested(self) -> Attested:
        """The router under its newest keyset that was verified."""
        return self._keysets.newest.attested

    @property
    def policy(self) -> Policy:
        return self.attested.policy

    @asynccontextmanager
    async def chat(self, body: bytes, *, record: Record | None = None, sealed: bool = False) -> AsyncIterator[Answer]:
        """Send a chat request, byte for byte or `sealed` (E2EE v2, on top of TLS), and yield its answer as it comes.
        What was sent and came is in `record`, however this ends.

        Raises, before anything is sent, `KeysetChanged`, `KeysetExpired`, `PolicyNotValidNow`, `TlsKeyNotPinned`,
        `SealingNotOffered` or what a new keyset is refused for; then `RouterRefused`, `RouterUnreachable`,
        `AnswerTooLarge` or `AnswerUnreadable`.
        """
        keyset = await self._usable()
        sent_at = time.time()
        sealing = seal(body, keyset) if sealed else None
        outgoing = body if sealing is None else sealing.body
        kept = Record() if record is None else record

        async def begun() -> AsyncIterator[bytes]:
            # Asked for once the connection ends in an attested key: nothing was sent before.
            kept.begin(body, sent_at, sealing)
            yield outgoing

        async with self._http.post(
            CHAT.path,
            begun(),
            size=len(outgoing),
            api_key=self._api_key,
            headers={KEYSET_HEADER: keyset.digest, **({} if sealing is None else sealing.headers)},
            silence_seconds=self._patience.silence,
            total_seconds=self._patience.total,
            encoded=True,
        ) as response:
            kept.name(response.headers.get("X-Receipt-Id"))
            served_under = response.headers.get(KEYSET_HEADER)
            if served_under is not None and self._keysets.of(served_under) is None:
                self._served_under = served_under
            if is_encoded(response):
                await kept.take_all(response)
                refuse_encoded(response)
            if response.status != 200:
                raise refusal(response, await kept.take_all(response, MAX_DOCUMENT_BYTES))
            yield Answer(response, kept, None if sealing is None else sealing.opener)

    async def verify(self, exchange: Exchange) -> list[Check]:
        """Fetch everything that the exchange can be checked by, and check it. What cannot be had fails its check."""
        # Three appraisals take longer than the loop should wait.
        return await asyncio.to_thread(run_checks, await self.gather(exchange))

    async def gather(self, exchange: Exchange) -> Materials:
        """Fetch everything that the exchange can be checked by, for `run_checks` or a file."""
        receipt = await _attempt(self._receipt(exchange))
        verified = await self._verified_for(receipt)
        session = await _attempt(self._session(receipt))
        commitment = await _attempt(self._commitment(exchange))
        evidence = await self._evidence(commitment)
        return Materials(
            policy=self.policy,
            mesh_ca=self._trust.mesh_ca,
            host=self._origin.host,
            report=verified.report,
            nonce=verified.nonce,
            observed_spkis=frozenset(self._keysets.observed),
            exchange=exchange,
            receipt=receipt,
            session=session,
            foreign_session=await self._foreign_session(receipt),
            commitment=commitment,
            issuer_evidence=evidence.issuer,
            acknowledger_evidence=evidence.acknowledger,
            ledger_evidence=evidence.ledger,
            # A clock that was put back meanwhile dates no proof before the answer.
            now=int(max(time.time(), exchange.received_at)),
            quorum=self._trust.quorum,
        )

    async def _usable(self) -> Keyset:
        """Return the keyset to send under: one verified now, where the router has another or this one ends soon."""
        if self._served_under is not None:
            await self._keysets.renew(self._served_under)
            self._served_under = None
        elif self.attested.keyset.not_after - time.time() < self._patience.total:
            with suppress(MeshError):  # It may go on under this one until its end.
                await self._keysets.renew()
        now = time.time()
        verify_usable(self.attested.keyset, now=int(now), longest_seconds=LONGEST_KEYSET_SECONDS)
        verify_valid_at(self.policy, now)
        return self.attested.keyset

    async def _verified_for(self, receipt: bytes | MeshError) -> Verified:
        """Return what proves the keyset that a receipt names. The unverified receipt only says which to look for."""
        with suppress(MeshError):
            named = receipts.parse(_had(receipt)).workload_keyset_digest
            if (held := self._keysets.of(named)) is not None:
                return held
            await self._keysets.renew(named)
            return self._keysets.of(named) or self._keysets.newest
        return self._keysets.newest

    async def _receipt(self, exchange: Exchange) -> bytes:
        return await self._once_there(f"/v1/aci/receipts/{receipt_segment(exchange.receipt_id)}")

    async def _commitment(self, exchange: Exchange) -> bytes:
        """Return the commitment: where witnesses are demanded, once they have cosigned, or when patience ends."""
        path = f"/v1/teemesh/receipts/{receipt_segment(exchange.receipt_id)}/commitment"
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience.settle
        while True:
            document = await self._once_there(path)
            if self._is_cosigned(document) or loop.time() + self._patience.between > deadline:
                return document
            await asyncio.sleep(self._patience.between)

    def _is_cosigned(self, document: bytes) -> bool:
        """Whether there is nothing to wait for; what cannot be read is the checks' to refuse."""
        try:
            self._trust.quorum.verify(commitments.parse(document).checkpoint)
        except QuorumNotReached:
            return False
        except MeshError:
            return True
        return True

    async def _session(self, receipt: bytes | MeshError) -> bytes:
        """The unverified receipt only says what to fetch; the checks say whether it may be believed."""
        outcome = receipts.parse(_had(receipt)).upstream
        if not isinstance(outcome, UpstreamVerified):
            raise NothingCited("the receipt cites no session")
        return await self._http.get(f"/v1/aci/sessions/{outcome.session_id}")

    async def _foreign_session(self, receipt: bytes | MeshError) -> bytes | MeshError | None:
        """The session of a foreign provider's own, which this router keeps beside its session about the provider."""
        try:
            link = foreign_link(receipts.parse(_had(receipt)))
        except MeshError as error:
            return error
        cited = None if link is None else cited_by(link)
        return None if cited is None else await _attempt(self._http.get(f"/v1/aci/sessions/{cited}"))

    async def _evidence(self, commitment: bytes | MeshError) -> _Evidence:
        """The unverified commitment only says what to fetch."""
        try:
            named = commitments.parse(_had(commitment))
        except MeshError as error:
            return _Evidence(error, error, error)
        digests = named.issuer_evidence_sha256, named.acknowledged_by.evidence_sha256, named.ledger.evidence_sha256
        # The ledger that acknowledged is nearly always the one that still runs.
        fetched = {
            digest: await _attempt(self._http.get(f"/v1/teemesh/evidence/{digest}", api_key=self._api_key))
            for digest in set(digests)
        }
        return _Evidence(*(fetched[digest] for digest in digests))

    async def _once_there(self, path: str) -> bytes:
        patience = self._patience
        return await self._http.get_once_there(
            path, api_key=self._api_key, settle=patience.settle, between=patience.between
        )


@asynccontextmanager
async def open_session(
    base_url: str, api_key: str, trust: Trust, *, patience: Patience | None = None
) -> AsyncIterator[RouterSession]:
    """Verify the router at `base_url` under the operators' policy, then yield a session that talks to it alone.

    Raises the first refusal: the policy's, the report's, the evidence's, or `TlsKeyNotAttested`. No API key and no
    prompt was sent then.
    """
    origin = parse_origin(base_url)
    first, spki_sha256 = await verify_router(origin, trust)
    keysets = VerifiedKeysets(origin, trust, first, {spki_sha256})
    async with open_http(origin, trust.ca_pem, keysets.admit) as http:
        yield RouterSession(
            http=http,
            origin=origin,
            api_key=api_key,
            trust=trust,
            keysets=keysets,
            patience=patience or Patience(),
        )


async def _attempt(fetch: Awaitable[bytes]) -> bytes | MeshError:
    try:
        return await fetch
    except MeshError as error:
        return error


def _had(value: bytes | MeshError) -> bytes:
    if isinstance(value, MeshError):
        raise value
    return value
