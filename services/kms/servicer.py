"""Wire to domain for members of the mesh; decides nothing."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from hashlib import sha256

from teemesh.kms.v1 import kms_pb2 as pb
from teemesh.kms.v1 import kms_pb2_grpc as pb_grpc

from libs.errors import Code, MeshError
from libs.identity.certificate import parse, spki_of
from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import caller_lease
from libs.policy.releases import KeyAlgorithm
from libs.policy.vocabulary import EVIDENCE_ROLES
from libs.rpc.calls import Context
from libs.rpc.policies import MethodRule, ServiceBinding, current_caller
from services.kms.ca import CertificateAuthority, public_key_of
from services.kms.decisions import Decisions
from services.kms.issuance import require_other_key
from services.kms.keys import KeyService
from services.kms.listing import ListedKey
from services.kms.publication import Publication
from services.kms.revocation import Revocations
from services.kms.statements import StatementSource

_SERVICE = "teemesh.kms.v1.KmsService"
_SERVICES = EVIDENCE_ROLES - {"kms"}

METHODS = {
    f"/{_SERVICE}/ReleaseKey": MethodRule(roles=_SERVICES),
    f"/{_SERVICE}/SignWithKey": MethodRule(roles=_SERVICES),
    f"/{_SERVICE}/GetPublicKey": MethodRule(roles=_SERVICES | {"operator", "auditor"}),
    f"/{_SERVICE}/ListKeys": MethodRule(roles=frozenset({"operator", "auditor"})),
    f"/{_SERVICE}/RotateKey": MethodRule(roles=frozenset({"operator"})),
    # The order is what counts; those that end a vault only when the ledger brings them.
    f"/{_SERVICE}/RetireKey": MethodRule(roles=frozenset({"operator", "ledger"})),
    f"/{_SERVICE}/GetStatement": MethodRule(roles=_SERVICES | {"operator", "auditor"}),
    f"/{_SERVICE}/WatchStatements": MethodRule(roles=_SERVICES | {"operator", "auditor"}, long_lived=True),
    f"/{_SERVICE}/GetPolicy": MethodRule(roles=_SERVICES | {"operator", "auditor"}),
    f"/{_SERVICE}/GetRevocations": MethodRule(roles=_SERVICES | {"operator", "auditor"}),
    # People have no lease, and a rule that asks for one would refuse the very policy that follows an expired one.
    f"/{_SERVICE}/PublishPolicy": MethodRule(roles=frozenset({"operator"}), lease=False),
    f"/{_SERVICE}/Revoke": MethodRule(roles=frozenset({"operator"}), lease=False),
    f"/{_SERVICE}/IssueServerCertificate": MethodRule(roles=frozenset({"ledger", "router"})),
}


class KeyAlgorithmMissing(MeshError):
    """The request does not say what the key is wanted for."""

    code = Code.INVALID_ARGUMENT
    reason = "KEY_ALGORITHM_MISSING"


class KmsServicer(pb_grpc.KmsServiceServicer):
    """See `kms.proto`."""

    def __init__(
        self,
        ca: CertificateAuthority,
        policy: PolicyKeeper,
        statements: StatementSource,
        publication: Publication,
        revocations: Revocations,
        keys: KeyService,
        decisions: Decisions,
    ) -> None:
        self._ca = ca
        self._policy = policy
        self._statements = statements
        self._publication = publication
        self._revocations = revocations
        self._keys = keys
        self._decisions = decisions

    async def ReleaseKey(  # noqa: N802
        self,
        request: pb.ReleaseKeyRequest,
        context: Context,
    ) -> pb.ReleaseKeyResponse:
        algorithm = _algorithm(request.algorithm)
        key = await self._keys.releases.release(request.name, request.epoch, algorithm, caller_lease())
        return pb.ReleaseKeyResponse(sealed_key=key.sealed, epoch=key.epoch, newest_epoch=key.newest_epoch)

    async def SignWithKey(  # noqa: N802
        self,
        request: pb.SignWithKeyRequest,
        context: Context,
    ) -> pb.SignWithKeyResponse:
        signed = await self._keys.public.sign(request.name, request.message, caller_lease())
        return pb.SignWithKeyResponse(
            signature=signed.signature, statement=signed.use.document, statement_signature=signed.use.signature
        )

    async def GetPublicKey(  # noqa: N802
        self,
        request: pb.GetPublicKeyRequest,
        context: Context,
    ) -> pb.GetPublicKeyResponse:
        stated = self._keys.public.state(request.name, request.epoch)
        return pb.GetPublicKeyResponse(statement=stated.document, statement_signature=stated.signature)

    async def ListKeys(  # noqa: N802
        self,
        request: pb.ListKeysRequest,
        context: Context,
    ) -> pb.ListKeysResponse:
        page = self._keys.listing.page(request.after, request.page_size)
        return pb.ListKeysResponse(keys=[_wire_key(key) for key in page.keys], next_after=page.next_after)

    async def RotateKey(  # noqa: N802
        self,
        request: pb.RotateKeyRequest,
        context: Context,
    ) -> pb.RotateKeyResponse:
        await self._keys.rotation.rotate(request.name, request.epoch, current_caller().spiffe_id)
        return pb.RotateKeyResponse(epoch=request.epoch)

    async def RetireKey(  # noqa: N802
        self,
        request: pb.RetireKeyRequest,
        context: Context,
    ) -> pb.RetireKeyResponse:
        await self._keys.rotation.retire(request.signed_order, current_caller().role)
        return pb.RetireKeyResponse()

    async def GetStatement(  # noqa: N802
        self,
        request: pb.GetStatementRequest,
        context: Context,
    ) -> pb.GetStatementResponse:
        newest = self._statements.newest
        return pb.GetStatementResponse(statement=newest.statement, signature=newest.signature)

    async def WatchStatements(  # noqa: N802
        self,
        request: pb.WatchStatementsRequest,
        context: Context,
    ) -> AsyncIterator[pb.WatchStatementsResponse]:
        async with aclosing(self._statements.watch()) as statements:
            async for signed in statements:
                if signed is None:
                    yield pb.WatchStatementsResponse(heartbeat=pb.StatementHeartbeat())
                else:
                    stated = pb.Stated(statement=signed.statement, signature=signed.signature)
                    yield pb.WatchStatementsResponse(stated=stated)

    async def GetPolicy(  # noqa: N802
        self,
        request: pb.GetPolicyRequest,
        context: Context,
    ) -> pb.GetPolicyResponse:
        return pb.GetPolicyResponse(signed_policy=self._policy.signed(request.version))

    async def PublishPolicy(  # noqa: N802
        self,
        request: pb.PublishPolicyRequest,
        context: Context,
    ) -> pb.PublishPolicyResponse:
        policy = await self._publication.publish(request.signed_policy)
        return pb.PublishPolicyResponse(version=policy.version, digest=policy.digest)

    async def Revoke(  # noqa: N802
        self,
        request: pb.RevokeRequest,
        context: Context,
    ) -> pb.RevokeResponse:
        signed = await self._revocations.revoke(request.signed_revocation)
        known = self._policy.revocations
        return pb.RevokeResponse(id=signed.revocation.id, number=known.number, digest=known.digest)

    async def GetRevocations(  # noqa: N802
        self,
        request: pb.GetRevocationsRequest,
        context: Context,
    ) -> pb.GetRevocationsResponse:
        page = self._revocations.page(request.page_token)
        return pb.GetRevocationsResponse(
            signed_revocations=[signed.document for signed in page.signed], next_page_token=page.next_token
        )

    async def IssueServerCertificate(  # noqa: N802
        self,
        request: pb.IssueServerCertificateRequest,
        context: Context,
    ) -> pb.IssueServerCertificateResponse:
        key = public_key_of(request.csr)
        require_other_key(key, parse(current_caller().certificate_der).spki)
        certificate = self._ca.issue_server_certificate(
            key, list(request.dns_names), list(request.ip_addresses), time.time()
        )
        await self._decisions.certified.record_outward(
            caller_lease(),
            sha256(spki_of(key)).digest(),
            {"dns_names": list(request.dns_names), "ip_addresses": list(request.ip_addresses)},
        )
        return pb.IssueServerCertificateResponse(certificate=certificate)


def _algorithm(number: int) -> KeyAlgorithm:
    for algorithm in KeyAlgorithm:
        if algorithm.number == number:
            return algorithm
    raise KeyAlgorithmMissing("say what the key is wanted for")


def _wire_key(key: ListedKey) -> pb.KeyDescription:
    rule = key.rule
    return pb.KeyDescription(
        name=key.name,
        newest_epoch=key.page.epoch,
        newest_since_ms=key.page.since_ms,
        retired=key.page.retired,
        algorithm=pb.KEY_ALGORITHM_UNSPECIFIED if rule is None else pb.KeyAlgorithm.ValueType(rule.algorithm.number),
        roles=() if rule is None else sorted(rule.roles),
    )


def kms_binding(servicer: KmsServicer) -> ServiceBinding:
    return ServiceBinding(
        name=_SERVICE,
        add=lambda server: pb_grpc.add_KmsServiceServicer_to_server(servicer, server),
        methods=METHODS,
    )
