"""It is responsible for verifying foreign ACI services: the report, the channel, and the service's own sessions.

What the service hides behind its sessions is its attested code's word; that code is what policy lists.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from libs import jcs
from libs.aci.encoding import Members
from libs.aci.endpoints import DEFINED
from libs.aci.report import DIRECT
from libs.aci.session import Session, TlsBinding, session_document, session_id
from libs.client.attestation import Established, TlsKeyNotAttested, quote_without_collateral
from libs.client.foreign import ACI_FORMAT, ForeignEvidence, pins_of, verify_service, verify_upstream_session
from libs.client.http import RouterHttp, open_http_over
from libs.client.pinning import client_context
from libs.client.reporting import fetch_report
from libs.errors import Code, MeshError
from libs.identity.collateral import CollateralSource
from libs.policy.document import Policy
from libs.policy.foreign import ForeignProvider
from libs.tee.workload import workload_claims
from services.router.routing.foreign.access import Credentials
from services.router.routing.foreign.aci_standing import AciStanding
from services.router.routing.foreign.adapter import APPRAISED, Declaration
from services.router.routing.foreign.place import Place

_MAX_SESSIONS = 16

log = structlog.get_logger()


class ForeignSessionsMissing(MeshError):
    """The service relays to others and lists no session, so nobody verified would serve."""

    code = Code.UNAVAILABLE
    reason = "FOREIGN_SESSIONS_MISSING"


class ForeignListMalformed(MeshError):
    """The service's list of sessions is not the document that §8.1 defines."""

    code = Code.INVALID_ARGUMENT
    reason = "FOREIGN_LIST_MALFORMED"


class AciAdapter:
    """Verifies one ACI service."""

    declaration = Declaration(
        scope="service",
        claims=APPRAISED,
        receipts=True,
        endpoints=frozenset(DEFINED),
    )

    def __init__(
        self, provider: ForeignProvider, credentials: Credentials, collateral: Callable[[], CollateralSource]
    ) -> None:
        self._place = Place.of(provider, credentials)
        self._collateral = collateral

    async def verify(self, policy: Policy) -> AciStanding:
        """Verify report, channel and sessions, in this order (§9.1, §9.2). Raises the first refusal."""
        provider, ca_pem = self._place.provider, self._place.credentials.ca_pem
        fetched = await fetch_report(self._place.origin, ca_pem)
        quote = quote_without_collateral(fetched.report)
        evidence = ForeignEvidence(
            origin=provider.origin,
            nonce=fetched.nonce,
            report=fetched.report.decode(),
            collateral=None if quote is None else await self._collateral().collateral(quote),
        )
        now = int(time.time())
        # An appraisal takes longer than the loop should wait.
        established = await asyncio.to_thread(verify_service, evidence, provider, policy, now)
        pins = pins_of(established, provider, policy.revoked)
        if fetched.spki_sha256 not in pins:
            raise TlsKeyNotAttested("the server's TLS key is not in the attested keyset: the connection ends elsewhere")
        context = await asyncio.to_thread(client_context, ca_pem, pins.__contains__)
        accepted: dict[str, bytes] = {}
        if established.serving != DIRECT:
            async with open_http_over(self._place.origin, context) as http:
                accepted = await _accepted_sessions(http, provider, now)
        return _stand(self._place, context, evidence, established, accepted, policy, now)


async def _accepted_sessions(http: RouterHttp, provider: ForeignProvider, now: int) -> dict[str, bytes]:
    """Return the current sessions that pass, canonical, by id. Raises the first refusal where none does."""
    listed = Members(jcs.loads(await http.get("/v1/aci/sessions")), "sessions", ForeignListMalformed)
    refusals: list[MeshError] = [ForeignSessionsMissing(f"{provider.name} lists no session")]
    accepted: dict[str, bytes] = {}
    for name in listed.items("sessions", lambda entry: entry.hex("session_id", 32))[:_MAX_SESSIONS]:
        document = await http.get(f"/v1/aci/sessions/{name}")
        try:
            verify_upstream_session(document, name, provider, now)
            accepted[name] = jcs.dumps(jcs.loads_object(document))
        except MeshError as error:
            log.warning("foreign session not accepted", provider=provider.name, session=name, reason=error.reason)
            refusals.append(error)
    if not accepted:
        raise refusals[min(1, len(refusals) - 1)]
    return accepted


def _stand(
    place: Place,
    context: ssl.SSLContext,
    evidence: ForeignEvidence,
    established: Established,
    accepted: Mapping[str, bytes],
    policy: Policy,
    now: int,
) -> AciStanding:
    """Seal what was verified into this router's own session."""
    provider, verdict = place.provider, established.verdict
    sessions = {name: verify_upstream_session(one, name, provider, now) for name, one in accepted.items()}
    until = _until(established, sessions, policy, now)
    proof = replace(evidence, session_ids=tuple(sorted(sessions)))
    pins = sorted(pins_of(established, provider, policy.revoked))
    document = session_document(
        upstream_name=f"foreign/{provider.name}",
        endpoint=provider.origin,
        verifier_id=ACI_FORMAT,
        established_at=now,
        expires_at=until,
        identity={"keyset_digest": established.keyset.digest},
        bindings=tuple(TlsBinding(provider.origin, pin) for pin in pins),
        claims=workload_claims("tdx", verdict.platform.tcb, None, has_models=False),
        evidence=proof.document(),
        extra={
            "policy_version": policy.version,
            "serving": established.serving,
            "tcb_status": verdict.platform.tcb.status,
            "vendor_root_sha256": verdict.platform.vendor_root_sha256.hex(),
            **verdict.measurement.to_json(),
        },
    )
    return AciStanding(
        place=place,
        context=context,
        evidence=proof,
        established=established,
        accepted=sessions,
        session=document,
        session_id=session_id(document),
        supporting=tuple(accepted.values()),
        verified_at=float(now),
        until=float(until),
    )


def _until(established: Established, sessions: Mapping[str, Session], policy: Policy, now: int) -> int:
    """Return when the first thing ends that the verification rests on, Unix seconds; of its sessions, the last."""
    ends = [now + policy.evidence_max_age_seconds, established.keyset.not_after, established.verdict.valid_until]
    if sessions:
        ends.append(max(session.expires_at for session in sessions.values()))
    return min(ends)
