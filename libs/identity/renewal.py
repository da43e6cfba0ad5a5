"""It is responsible for this service's own key, evidence and certificate, and for new ones before they end.

Each certificate has a fresh key that never leaves memory. Renewal comes at half life; the old certificate serves until
the new one is there, so a KMS that is away for a while costs nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from libs.errors import Code, MeshError
from libs.gpus.observed import Observed
from libs.identity import certificate as certificates
from libs.identity.authority import Authority
from libs.identity.certificate import MeshCertificate, Subject
from libs.identity.collateral import CollateralSource
from libs.identity.freshness import PolicyKeeper
from libs.identity.gpu import GpuSource
from libs.tee import evidence as evidences
from libs.tee.binding import gpu_nonce, report_data
from libs.tee.challenge import Challenge
from libs.tee.dstack import Guest
from libs.tee.evidence import Evidence

_FIRST_RETRY_SECONDS = 0.2
_LAST_RETRY_SECONDS = 5.0

log = structlog.get_logger()


class CaChanged(MeshError):
    """The KMS now speaks for another CA. Peers that hold the old one would be cut off: start anew."""

    code = Code.UNAUTHENTICATED
    reason = "CA_CHANGED"


class KeyNotHeld(MeshError):
    """The key is not one that this service shows, or showed before its last renewal."""

    code = Code.FAILED_PRECONDITION
    reason = "KEY_NOT_HELD"


@dataclass(frozen=True, slots=True)
class Credential:
    """One generation of this service's identity."""

    key: ec.EllipticCurvePrivateKey
    certificate: MeshCertificate
    evidence: Evidence
    gpus: Observed | None = None
    """The devices that the evidence is about; None where it shows none."""

    @property
    def key_pem(self) -> bytes:
        return certificates.key_pem(self.key)


@dataclass(frozen=True, slots=True)
class Proof:
    """Evidence, and the devices that it is about."""

    evidence: Evidence
    gpus: Observed | None


@dataclass(frozen=True, slots=True)
class Prover:
    """Makes evidence for keys of this service."""

    guest: Guest
    collateral: CollateralSource
    claims: Mapping[str, Any]
    gpus: GpuSource | None = None
    """Asked where policy requires a GPU of this service's role; None: there are none to ask."""

    async def prove(self, challenge: Challenge, spki: bytes) -> Evidence:
        """Return evidence over (challenge, key, claims), with its collateral stapled."""
        return (await self.proof(challenge, spki, gpu_required=False)).evidence

    async def proof(self, challenge: Challenge, spki: bytes, *, gpu_required: bool) -> Proof:
        """Return the same with GPU evidence where required.

        CPU and GPUs answer one challenge: the GPUs first, because the claims that the quote binds hold their digest.
        """
        claims, gpu_evidence, gpus = self.claims, None, None
        if gpu_required and self.gpus is not None:
            answer = await self.gpus.evidence(gpu_nonce(challenge.nonce, spki))
            gpu_evidence, gpus = answer.evidence, answer.observed
            claims = {**claims, "gpu_evidence_sha256": gpu_evidence.digest.hex()}
        quote = await self.guest.quote(report_data(challenge.nonce, spki, claims))
        evidence = evidences.assemble(
            quote=quote.quote,
            event_log=quote.event_log,
            app_compose=await self.guest.measured_compose(),
            spki=spki,
            claims=claims,
            challenge=challenge,
            gpu_evidence=gpu_evidence,
            collateral=await self.collateral.collateral(quote.quote),
        )
        return Proof(evidence, gpus)


class _Request:
    """One certificate request: a fresh key, and evidence over it once the authority has challenged."""

    def __init__(self, prover: Prover, instance: str, gpu_required: bool) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._prover = prover
        self._gpu_required = gpu_required
        self.instance = instance
        self.spki = certificates.spki_of(self.key.public_key())
        self.csr = certificates.make_csr(self.key)
        self.proof: Proof | None = None

    async def prove(self, challenge: Challenge) -> bytes:
        self.proof = await self._prover.proof(challenge, self.spki, gpu_required=self._gpu_required)
        return self.proof.evidence.document


class Identity:
    """The current credential, and those who wait for the next."""

    def __init__(self, prover: Prover, authority: Authority, policy: PolicyKeeper, role: str, instance: str) -> None:
        self._prover = prover
        self._authority = authority
        self._policy = policy
        self._role = role
        self._instance = instance
        self._renewed = asyncio.Event()
        self._renewing = asyncio.Lock()
        self._current: Credential | None = None
        self._previous: Credential | None = None
        self._ca: bytes = b""

    @property
    def current(self) -> Credential:
        if self._current is None:
            raise RuntimeError("identity used before it was obtained")
        return self._current

    @property
    def held(self) -> tuple[Credential, ...]:
        """The current credential and, after a renewal, the one before: somebody may just have been shown that one."""
        return (self.current,) if self._previous is None else (self.current, self._previous)

    def holder_of(self, spki_sha256: bytes) -> Credential:
        """Return the credential of a key that was shown to somebody. Raises `KeyNotHeld`."""
        for credential in self.held:
            if credential.certificate.spki_sha256 == spki_sha256:
                return credential
        raise KeyNotHeld("this service no longer holds that key: connect anew")

    @property
    def ca_certificate(self) -> bytes:
        """The mesh CA, DER."""
        return self._ca

    async def obtain(self) -> None:
        """Get the first credential, retrying while the KMS or its collateral is away.

        Raises at once what waiting cannot mend: a refusal of either side.
        """
        delay = _FIRST_RETRY_SECONDS
        while True:
            try:
                await self._renew_once()
                return
            except MeshError as error:
                if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED):
                    raise
                log.info("waiting for a certificate", reason=error.reason, detail=str(error))
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_RETRY_SECONDS)

    async def claim(self, claims: Mapping[str, Any]) -> Credential:
        """Claim these members too, or with these values, from now on: get a credential whose evidence does.

        Raises what refuses it; then nothing has changed.
        """
        prover = replace(self._prover, claims={**self._prover.claims, **claims})
        await self._renew_once(prover)
        return self.current

    async def keep(self) -> None:
        """Renew for as long as the service lives. A failure is retried until the certificate has run out."""
        while True:
            certificate = self.current.certificate
            # Half of what is left: certificates are dated back, which for a short one could be all of its life.
            await asyncio.sleep(max(certificate.not_after - time.time(), 0) / 2)
            delay = _FIRST_RETRY_SECONDS
            while self.current.certificate is certificate:
                try:
                    await self._renew_once()
                except MeshError as error:
                    if isinstance(error, CaChanged) or time.time() >= certificate.not_after:
                        raise
                    log.warning("certificate not renewed", reason=error.reason, detail=str(error))
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, _LAST_RETRY_SECONDS)

    async def renew(self) -> None:
        """Get the next credential now, over evidence that is made from here on. Raises what refuses it."""
        await self._renew_once()

    async def renewed(self) -> Credential:
        """Wait for the next credential."""
        await self._renewed.wait()
        return self.current

    async def _renew_once(self, prover: Prover | None = None) -> None:
        # One at a time: an older request that came back later would take back what a newer one claims.
        async with self._renewing:
            await self._obtain_next(prover or self._prover)

    async def _obtain_next(self, prover: Prover) -> None:
        policy = self._policy.current
        request = _Request(prover, self._instance, policy.rules(self._role).gpu_required)
        issued = await self._authority.issue(request, policy)
        certificate = certificates.verify_issued(issued.certificate, issued.ca_certificate, time.time())
        if request.proof is None:
            raise certificates.CertificateNotAccepted("the KMS issued a certificate without asking for evidence")
        evidence = request.proof.evidence
        asked = Subject(policy.trust_domain, self._role, self._instance, evidence.digest)
        certificates.verify_asked_for(certificate, asked, request.spki)
        ca_spki = certificates.spki_of_certificate(issued.ca_certificate)
        if self._ca and certificates.spki_of_certificate(self._ca) != ca_spki:
            raise CaChanged("the KMS speaks for another CA than when this service started")
        self._ca, self._prover = issued.ca_certificate, prover
        following = Credential(request.key, certificate, evidence, request.proof.gpus)
        self._previous, self._current = self._current, following
        log.info("certificate obtained", spiffe_id=certificate.spiffe_id, until=certificate.not_after)
        renewed, self._renewed = self._renewed, asyncio.Event()
        renewed.set()
