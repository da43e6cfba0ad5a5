"""It is responsible for dstack-vllm-proxy workers: a report of version 2, the channel that it binds, signed answers.

A worker that has no TLS key of its own, and so only reports of version 1, is attested without a channel to it: whoever
ends its TLS reads prompts. Such a worker is not verified, and serves only as policy's `best_effort` says.

Its GPU evidence is not judged. Its report is given out for an API key only, so the key goes out before it is verified.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from libs.aci.endpoints import CHAT, COMPLETIONS
from libs.aci.session import TlsBinding, session_document
from libs.client.attestation import TlsKeyNotAttested
from libs.client.foreign import VLLM_PROXY_FORMAT, ForeignEvidence
from libs.client.http import RouterRefused
from libs.client.pinning import client_context
from libs.client.reporting import FetchedReport, fetch_report
from libs.client.vllm_proxy import ED25519, Worker, quote_of, verify_worker
from libs.errors import Code, MeshError
from libs.identity.collateral import CollateralSource
from libs.policy.document import Policy
from libs.policy.foreign import ForeignProvider
from libs.tee.workload import workload_claims
from services.router.reading import Reading
from services.router.routing.foreign.access import Credentials
from services.router.routing.foreign.adapter import APPRAISED, Declaration
from services.router.routing.foreign.place import Place
from services.router.routing.foreign.vllm_proxy_standing import VllmProxyStanding

_REPORT_PATH = "/v1/attestation/report"
_NO_TLS_KEY = 400
"""How a worker without a TLS key of its own answers when version 2 is asked for."""


class ChannelNotBound(MeshError):
    """The worker's report binds no TLS key, and policy does not accept that."""

    code = Code.PERMISSION_DENIED
    reason = "CHANNEL_NOT_BOUND"


class VllmProxyAdapter:
    """Verifies one worker."""

    declaration = Declaration(
        scope="service",
        claims=APPRAISED,
        receipts=True,
        endpoints=frozenset({CHAT, COMPLETIONS}),
    )

    def __init__(
        self,
        provider: ForeignProvider,
        credentials: Credentials,
        collateral: Callable[[], CollateralSource],
        reading: Reading,
    ) -> None:
        self._place = Place.of(provider, credentials)
        self._collateral = collateral
        self._reading = reading

    async def verify(self, policy: Policy) -> VllmProxyStanding:
        """Verify report and channel. Raises the first refusal."""
        place, provider = self._place, self._place.provider
        fetched = await self._report()
        evidence = ForeignEvidence(
            origin=provider.origin,
            nonce=fetched.nonce,
            report=fetched.report.decode(errors="replace"),
            collateral=await self._collateral().collateral(quote_of(fetched.report)),
            format=VLLM_PROXY_FORMAT,
        )
        now = int(time.time())
        # An appraisal takes longer than the loop should wait.
        worker = await asyncio.to_thread(verify_worker, evidence, provider, policy, now)
        if worker.spki_sha256 is None and not provider.best_effort:
            raise ChannelNotBound("the worker's report binds no TLS key: the connection may end anywhere")
        if worker.spki_sha256 not in (None, fetched.spki_sha256):
            raise TlsKeyNotAttested("the server's TLS key is not the attested one: the connection ends elsewhere")
        bound = worker.spki_sha256
        admit = (lambda spki_sha256: True) if bound is None else bound.__eq__
        context = await asyncio.to_thread(client_context, place.credentials.ca_pem, admit)
        until = min(now + policy.evidence_max_age_seconds, worker.verdict.valid_until)
        session = None if bound is None else _session(provider, evidence, worker, bound, policy, now, until)
        return VllmProxyStanding(place, context, evidence, worker, self._reading, session, float(now), float(until))

    async def _report(self) -> FetchedReport:
        """Fetch a report that binds the channel or, where policy does not insist, one that binds none."""
        try:
            return await self._report_of_version("2")
        except RouterRefused as error:
            if error.status != _NO_TLS_KEY:
                raise
            if not self._place.provider.best_effort:
                raise ChannelNotBound("the worker has no report that binds a TLS key") from error
        return await self._report_of_version("1")

    async def _report_of_version(self, version: str) -> FetchedReport:
        place = self._place
        return await fetch_report(
            place.origin,
            place.credentials.ca_pem,
            path=_REPORT_PATH,
            query={"version": version, "signing_algo": ED25519},
            api_key=place.api_key,
        )


def _session(
    provider: ForeignProvider,
    evidence: ForeignEvidence,
    worker: Worker,
    spki_sha256: str,
    policy: Policy,
    now: int,
    until: int,
) -> bytes:
    verdict = worker.verdict
    return session_document(
        upstream_name=f"foreign/{provider.name}",
        endpoint=provider.origin,
        verifier_id=VLLM_PROXY_FORMAT,
        established_at=now,
        expires_at=until,
        identity={"signing_address": worker.key.hex()},
        bindings=(TlsBinding(provider.origin, spki_sha256),),
        claims=workload_claims("tdx", verdict.platform.tcb, None, has_models=False),
        evidence=evidence.document(),
        extra={
            "policy_version": policy.version,
            "tcb_status": verdict.platform.tcb.status,
            "vendor_root_sha256": verdict.platform.vendor_root_sha256.hex(),
            **verdict.measurement.to_json(),
        },
    )
