"""It is responsible for putting a signed policy in force: one call to the KMS with an operator's certificate."""

from __future__ import annotations

import uuid
from pathlib import Path

from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.errors import Code, MeshError
from libs.policy.signatures import SignedPolicy
from services.cli.mesh.kms_access import read_kms_access


class PublishedOtherwise(MeshError):
    """The KMS answered that another policy is in force than the one that was sent."""

    code = Code.ABORTED
    reason = "POLICY_PUBLISHED_OTHERWISE"


async def publish_policy(document: SignedPolicy, mesh: Path, timeout_seconds: float) -> None:
    """Send the policy to the KMS of the mesh that mesh.json describes, and check what is then in force.

    The KMS decides; this raises whatever it refuses with, `InputUnreadable` and `PublishedOtherwise`.
    """
    policy = document.policy
    request = kms_pb2.PublishPolicyRequest(signed_policy=document.document, request_id=uuid.uuid4().hex)

    async def ask(stub: kms_pb2_grpc.KmsServiceStub, timeout: float) -> kms_pb2.PublishPolicyResponse:
        return await stub.PublishPolicy(request, timeout=timeout)

    response = await read_kms_access(mesh, policy.trust_domain).ask(ask, timeout_seconds)
    if (response.version, response.digest) != (policy.version, policy.digest):
        raise PublishedOtherwise(f"the KMS says that version {response.version} is in force, not this one")
