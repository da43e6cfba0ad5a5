"""It is responsible for getting a certificate from a KMS that is believed only after it has proven itself.

The bootstrap listener asks for no client certificate. Its leaf is taken by a handshake; the KMS then answers this
service's own challenge with evidence over that leaf's key, and its claims name the CA key. There is no trust on first
use: what fails the appraisal under role `kms` is never asked for anything.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import grpc.aio
import structlog
from teemesh.kms.v1 import bootstrap_pb2, bootstrap_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity import certificate as certificates
from libs.identity.instances import preferred_first, telling_most
from libs.identity.strangers import named_if_refused
from libs.policy.document import Policy
from libs.rpc.channel import fetch_leaf, open_channel
from libs.rpc.errors import remote_errors
from libs.tee import evidence as evidences
from libs.tee.appraisal import AppraisalContext, OwnNonce, appraise
from libs.tee.challenge import Challenge

_TIMEOUT_SECONDS = 20.0
_CONNECT_SECONDS = 5.0
"""Another instance may be there while one does not even answer."""

log = structlog.get_logger()


class CaNotProven(MeshError):
    """The KMS's evidence does not speak for the CA that it offers."""

    code = Code.UNAUTHENTICATED
    reason = "CA_NOT_PROVEN"


class Authority(Protocol):
    """Who issues certificates: the KMS over its bootstrap listener or, inside the KMS, itself."""

    async def issue(self, request: CertificateRequest, policy: Policy) -> Issued: ...


class CertificateRequest(Protocol):
    """What a service does to get a certificate; the authority calls `prove` with its own challenge."""

    @property
    def csr(self) -> bytes: ...

    @property
    def instance(self) -> str: ...

    async def prove(self, challenge: Challenge) -> bytes:
        """Return the evidence document that answers the challenge."""
        ...


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and the CA that stands behind it."""

    certificate: bytes
    ca_certificate: bytes


class KmsAuthority:
    """The KMS, whichever of its instances is there, proven anew before every certificate."""

    def __init__(self, bootstraps: tuple[str, ...], trust_domain: str) -> None:
        """`bootstraps` is host:port of each instance's bootstrap listener, at least one, the preferred one first."""
        self._bootstraps = bootstraps
        self._chosen = self._bootstraps[0]
        self._trust_domain = trust_domain

    async def issue(self, request: CertificateRequest, policy: Policy) -> Issued:
        """Ask one instance after the other. Raises a refusal, of the KMS by this service or of this service by the KMS,
        before what says that an instance is away.
        """
        errors: list[MeshError] = []
        for bootstrap in preferred_first(self._bootstraps, self._chosen):
            try:
                issued = await self._issue(bootstrap, request, policy)
            except MeshError as error:
                log.warning("no certificate from this KMS", kms=bootstrap, reason=error.reason, detail=str(error))
                errors.append(error)
            else:
                self._chosen = bootstrap
                return issued
        raise telling_most(errors)

    async def _issue(self, bootstrap: str, request: CertificateRequest, policy: Policy) -> Issued:
        async with proven_kms(bootstrap, self._trust_domain, policy) as kms:
            stub = bootstrap_pb2_grpc.KmsBootstrapServiceStub(kms.channel)
            with remote_errors():
                offered = await stub.CreateIssuanceChallenge(
                    bootstrap_pb2.CreateIssuanceChallengeRequest(), timeout=_TIMEOUT_SECONDS
                )
                document = await request.prove(Challenge.decode(offered.challenge))
                response = await stub.IssueCertificate(
                    bootstrap_pb2.IssueCertificateRequest(
                        csr=request.csr, document=document, instance=request.instance
                    ),
                    timeout=_TIMEOUT_SECONDS,
                )
            return Issued(response.certificate, kms.ca_certificate)


@dataclass(frozen=True, slots=True)
class ProvenKms:
    """A channel to the bootstrap listener, and the CA that the KMS's evidence names."""

    channel: grpc.aio.Channel
    ca_certificate: bytes


@asynccontextmanager
async def proven_kms(bootstrap: str, trust_domain: str, policy: Policy) -> AsyncIterator[ProvenKms]:
    """Connect to a bootstrap listener and appraise it. Raises `CaNotProven` and every appraisal refusal."""
    server_name = f"kms-bootstrap.{trust_domain}"
    leaf = await fetch_leaf(bootstrap, server_name=server_name, timeout=_CONNECT_SECONDS)
    leaf_spki = certificates.spki_of_certificate(leaf)
    async with open_channel(bootstrap, root_pem=certificates.pem_of(leaf), server_name=server_name) as channel:
        stub = bootstrap_pb2_grpc.KmsBootstrapServiceStub(channel)
        challenge = Challenge.unsigned(issuer="self", purpose="kms-bootstrap", now=int(time.time()))
        with remote_errors():
            proof = await stub.GetKmsEvidence(
                bootstrap_pb2.GetKmsEvidenceRequest(challenge=challenge.encode()),
                timeout=_TIMEOUT_SECONDS,
            )
        with named_if_refused(bootstrap, leaf):
            appraisal = appraise(
                evidences.parse(proof.document),
                policy.rules("kms"),
                AppraisalContext(
                    now=int(time.time()),
                    spki=leaf_spki,
                    challenge=OwnNonce(challenge.nonce),
                    policy_version=policy.version,
                ),
            )
            named = appraisal.workload_claims.get("ca_spki_sha256")
            if named != _ca_spki_sha256(proof.ca_certificate).hex():
                raise CaNotProven("the KMS offers a CA certificate that its evidence does not name")
        yield ProvenKms(channel, proof.ca_certificate)


def _ca_spki_sha256(ca_der: bytes) -> bytes:
    try:
        spki = certificates.spki_of_certificate(ca_der)
    except certificates.CertificateNotAccepted as error:
        raise CaNotProven(f"the CA certificate cannot be used: {error}") from error
    return hashlib.sha256(spki).digest()
