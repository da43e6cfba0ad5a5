"""It is responsible for the listener without client certificates: the KMS's own proof, challenges, certificates.

Its leaf is self-signed and fresh in every process. Nobody should believe it: callers appraise evidence over its key.
"""

from __future__ import annotations

from teemesh.kms.v1 import bootstrap_pb2 as pb
from teemesh.kms.v1 import bootstrap_pb2_grpc as pb_grpc

from libs.identity.certificate import parse
from libs.identity.challenges import Challenges
from libs.identity.renewal import Prover
from libs.policy.operator_request import OperatorRequest
from libs.rpc.calls import Context
from libs.rpc.policies import ANY_ROLE, MethodRule, ServiceBinding
from libs.tee.challenge import Challenge
from services.kms.ca import CertificateAuthority
from services.kms.decisions import Decisions
from services.kms.issuance import ISSUANCE, OPERATOR_ISSUANCE, Issuance


class KmsBootstrapServicer(pb_grpc.KmsBootstrapServiceServicer):
    """Wire to domain; decides nothing."""

    def __init__(
        self,
        prover: Prover,
        leaf_spki: bytes,
        ca: CertificateAuthority,
        challenges: Challenges,
        issuance: Issuance,
        decisions: Decisions,
    ) -> None:
        self._prover = prover
        self._leaf_spki = leaf_spki
        self._ca = ca
        self._challenges = challenges
        self._issuance = issuance
        self._decisions = decisions

    async def GetKmsEvidence(  # noqa: N802
        self,
        request: pb.GetKmsEvidenceRequest,
        context: Context,
    ) -> pb.GetKmsEvidenceResponse:
        challenge = Challenge.decode(request.challenge)
        evidence = await self._prover.prove(challenge, self._leaf_spki)
        return pb.GetKmsEvidenceResponse(document=evidence.document, ca_certificate=self._ca.certificate)

    async def CreateIssuanceChallenge(  # noqa: N802
        self,
        request: pb.CreateIssuanceChallengeRequest,
        context: Context,
    ) -> pb.CreateIssuanceChallengeResponse:
        challenge = self._challenges.issue(ISSUANCE)
        return pb.CreateIssuanceChallengeResponse(challenge=challenge.encode())

    async def CreateOperatorChallenge(  # noqa: N802
        self,
        request: pb.CreateOperatorChallengeRequest,
        context: Context,
    ) -> pb.CreateOperatorChallengeResponse:
        challenge = self._challenges.issue(OPERATOR_ISSUANCE)
        return pb.CreateOperatorChallengeResponse(challenge=challenge.encode())

    async def IssueCertificate(  # noqa: N802
        self,
        request: pb.IssueCertificateRequest,
        context: Context,
    ) -> pb.IssueCertificateResponse:
        certificate, appraisal = self._issuance.certify_service(request.csr, request.document, request.instance)
        await self._decisions.certified.record(
            parse(certificate),
            appraisal.device_id,
            {"evidence_sha256": appraisal.evidence_digest.hex(), "policy_version": appraisal.policy_version},
        )
        return pb.IssueCertificateResponse(certificate=certificate)

    async def IssueOperatorCertificate(  # noqa: N802
        self,
        request: pb.IssueOperatorCertificateRequest,
        context: Context,
    ) -> pb.IssueOperatorCertificateResponse:
        wanted = OperatorRequest(
            role=request.role,
            name=request.name,
            csr=request.csr,
            nonce=Challenge.decode(request.challenge).nonce,
        )
        certificate = self._issuance.certify_person(wanted, request.operator_key, request.signature)
        await self._decisions.certified.record(parse(certificate), "", {"operator_key": request.operator_key.hex()})
        return pb.IssueOperatorCertificateResponse(certificate=certificate, ca_certificate=self._ca.certificate)


def bootstrap_binding(servicer: KmsBootstrapServicer) -> ServiceBinding:
    """The only service of the bootstrap listener; it asks nobody for a certificate."""
    name = "teemesh.kms.v1.KmsBootstrapService"
    anyone = MethodRule(roles=ANY_ROLE, lease=False)
    calls = (
        "GetKmsEvidence",
        "CreateIssuanceChallenge",
        "CreateOperatorChallenge",
        "IssueCertificate",
        "IssueOperatorCertificate",
    )
    return ServiceBinding(
        name=name,
        add=lambda server: pb_grpc.add_KmsBootstrapServiceServicer_to_server(servicer, server),
        methods={f"/{name}/{call}": anyone for call in calls},
    )
