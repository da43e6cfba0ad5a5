"""No trust on first use: whoever answers at the KMS's address is believed only once its evidence says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import bootstrap_pb2 as pb
from teemesh.kms.v1 import bootstrap_pb2_grpc as pb_grpc

from libs.errors import MeshError
from libs.identity.authority import KmsAuthority, proven_kms
from libs.identity.bootstrap_leaf import make_bootstrap_leaf
from libs.identity.certificate import make_csr, pem_of, spki_of, verify_issued
from libs.rpc.channel import fetch_leaf, open_channel
from libs.rpc.middleware import public_middleware
from libs.rpc.policies import ServiceBinding
from libs.rpc.server import serving
from libs.tee.challenge import Challenge
from services.kms.bootstrap import bootstrap_binding
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore
from tests.fakes.running_kms import bootstrap_listener


class Request:
    """A router that wants a certificate, and counts how often it was asked to prove itself."""

    instance = "1"

    def __init__(self, mesh: JoinedMesh) -> None:
        self._mesh = mesh
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.csr = make_csr(self._key)
        self.spki = spki_of(self._key.public_key())
        self.proved = 0

    async def prove(self, challenge: Challenge) -> bytes:
        self.proved += 1
        return self._mesh.evidence("router", challenge, self._key).document


async def refusal(mesh: JoinedMesh, address: str) -> str:
    """Why the KMS at the address is not believed. It has then been asked for nothing and told nothing."""
    request = Request(mesh)
    with pytest.raises(MeshError) as error:
        await KmsAuthority((address,), TRUST_DOMAIN).issue(request, mesh.keeper("k").current)
    assert request.proved == 0
    return error.value.reason


async def test_a_proven_kms_certifies(mesh: JoinedMesh, kms: KmsCore) -> None:
    request = Request(mesh)
    async with bootstrap_listener(mesh, kms) as address:
        issued = await KmsAuthority((address,), TRUST_DOMAIN).issue(request, mesh.keeper("k").current)
    certificate = verify_issued(issued.certificate, issued.ca_certificate, Clock().now)
    assert issued.ca_certificate == kms.ca.certificate
    assert (certificate.role, certificate.spki) == ("router", request.spki)


async def test_a_kms_measured_otherwise_is_refused(mesh: JoinedMesh, kms: KmsCore) -> None:
    for td in (mesh.boot("kms", image="patched"), mesh.tds["router"]):
        async with bootstrap_listener(mesh, kms, td=td) as address:
            assert await refusal(mesh, address) == "MEASUREMENT_NOT_ALLOWED"


async def test_an_honest_member_of_another_role_is_not_the_kms(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with bootstrap_listener(mesh, kms, claims={"role": "router"}) as address:
        assert await refusal(mesh, address) == "ROLE_MISMATCH"


@pytest.mark.parametrize("named", ["00" * 32, "", None])
async def test_evidence_that_names_another_ca_is_refused(mesh: JoinedMesh, kms: KmsCore, named: str | None) -> None:
    async with bootstrap_listener(mesh, kms, claims={"ca_spki_sha256": named}) as address:
        assert await refusal(mesh, address) == "CA_NOT_PROVEN"


class Relay(pb_grpc.KmsBootstrapServiceServicer):
    """A man in the middle: every question goes to the real KMS, every answer comes back unchanged, or bent."""

    def __init__(self, kms: pb_grpc.KmsBootstrapServiceStub) -> None:
        self._kms = kms
        self.ca_certificate: bytes | None = None
        self.earlier: pb.GetKmsEvidenceResponse | None = None

    async def GetKmsEvidence(  # noqa: N802
        self, request: pb.GetKmsEvidenceRequest, context: Any
    ) -> pb.GetKmsEvidenceResponse:
        return self.earlier or await self._kms.GetKmsEvidence(request, timeout=10)

    async def CreateIssuanceChallenge(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise AssertionError("nobody may get this far")

    CreateOperatorChallenge = IssueCertificate = IssueOperatorCertificate = CreateIssuanceChallenge


@asynccontextmanager
async def relay(kms_address: str) -> AsyncIterator[tuple[Relay, str]]:
    name = f"kms-bootstrap.{TRUST_DOMAIN}"
    leaf = await fetch_leaf(kms_address, server_name=name, timeout=10)
    own = make_bootstrap_leaf("kms", TRUST_DOMAIN)
    async with open_channel(kms_address, root_pem=pem_of(leaf), server_name=name) as channel:
        servicer = Relay(pb_grpc.KmsBootstrapServiceStub(channel))
        binding: ServiceBinding = bootstrap_binding(servicer)  # type: ignore[arg-type]  # The same four methods.
        middleware = public_middleware(binding.methods)
        async with serving("127.0.0.1:0", own.credentials, [binding], middleware, drain_seconds=0) as running:
            yield servicer, f"127.0.0.1:{running.port}"


async def test_a_man_in_the_middle_with_a_leaf_of_his_own_is_refused(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with bootstrap_listener(mesh, kms) as address, relay(address) as (_, middle):
        assert await refusal(mesh, middle) == "SPKI_MISMATCH"


async def test_evidence_from_an_earlier_day_is_refused(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with bootstrap_listener(mesh, kms) as address, relay(address) as (man, middle):
        earlier = Challenge.unsigned("self", "kms-bootstrap", int(Clock().now) - 86400)
        key = ec.generate_private_key(ec.SECP256R1())
        document = mesh.evidence("kms", earlier, key, claims={"ca_spki_sha256": kms.ca.spki_sha256.hex()}).document
        man.earlier = pb.GetKmsEvidenceResponse(document=document, ca_certificate=kms.ca.certificate)
        assert await refusal(mesh, middle) == "NONCE_MISMATCH"


async def test_a_malformed_answer_is_a_refusal_and_not_a_crash(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with bootstrap_listener(mesh, kms) as address, relay(address) as (man, middle):
        man.earlier = pb.GetKmsEvidenceResponse(document=b"{}", ca_certificate=b"")
        assert await refusal(mesh, middle) == "EVIDENCE_MALFORMED"


async def test_a_kms_that_offers_a_broken_ca_certificate_is_refused(mesh: JoinedMesh, kms: KmsCore) -> None:
    kms.ca.certificate = kms.ca.certificate[:-1]
    async with bootstrap_listener(mesh, kms) as address:
        with pytest.raises(MeshError) as error:
            async with proven_kms(address, TRUST_DOMAIN, mesh.keeper("k").current):
                pass
    assert error.value.reason == "CA_NOT_PROVEN"


async def test_the_refusal_of_the_kms_reaches_the_applicant_with_its_reason(mesh: JoinedMesh, kms: KmsCore) -> None:
    kms.policy.accept(mesh.successor(kms.policy.current, roles=mesh.without("router")))
    async with bootstrap_listener(mesh, kms) as address:
        with pytest.raises(MeshError) as error:
            await KmsAuthority((address,), TRUST_DOMAIN).issue(Request(mesh), mesh.keeper("k").current)
    assert error.value.reason == "MEASUREMENT_NOT_ALLOWED"


async def test_another_instance_certifies_when_one_is_away_or_unproven(mesh: JoinedMesh, kms: KmsCore) -> None:
    nobody = "127.0.0.1:9"
    policy = mesh.keeper("k").current
    async with (
        bootstrap_listener(mesh, kms) as proven,
        bootstrap_listener(mesh, kms, td=mesh.tds["router"]) as unproven,
    ):
        for first in (nobody, unproven):
            request = Request(mesh)
            authority = KmsAuthority((first, proven), TRUST_DOMAIN)
            issued = await authority.issue(request, policy)
            assert verify_issued(issued.certificate, issued.ca_certificate, Clock().now).spki == request.spki
            assert request.proved == 1


async def test_when_nobody_certifies_a_refusal_is_told_before_an_absence(mesh: JoinedMesh, kms: KmsCore) -> None:
    nobody = "127.0.0.1:9"
    policy = mesh.keeper("k").current
    async with bootstrap_listener(mesh, kms, td=mesh.tds["router"]) as unproven:
        for addresses, reason in (
            ((nobody, unproven), "MEASUREMENT_NOT_ALLOWED"),
            ((unproven, nobody), "MEASUREMENT_NOT_ALLOWED"),
            ((nobody, nobody), "PEER_UNREACHABLE"),
        ):
            with pytest.raises(MeshError) as error:
                await KmsAuthority(addresses, TRUST_DOMAIN).issue(Request(mesh), policy)
            assert error.value.reason == reason
