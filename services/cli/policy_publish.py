"""It is responsible for putting a signed policy in force: one call to the KMS with an operator's certificate."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.errors import Code, MeshError
from libs.policy.signatures import SignedPolicy
from libs.rpc.channel import open_channel
from libs.rpc.errors import to_mesh_error
from services.cli.inputs import InputUnreadable, read_input, read_json


class PublishedOtherwise(MeshError):
    """The KMS answered that another policy is in force than the one that was sent."""

    code = Code.ABORTED
    reason = "POLICY_PUBLISHED_OTHERWISE"


@dataclass(frozen=True, slots=True)
class OperatorAccess:
    """What an operator needs to reach the KMS: the part of mesh.json that is about it."""

    kms_target: str
    """host:port."""
    mesh_ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


def read_access(mesh: Path) -> OperatorAccess:
    """Read mesh.json and the files that it names. Raises `InputUnreadable`."""
    described = read_json(mesh)

    def text(name: str) -> str:
        value: Any = described.get(name)
        if not isinstance(value, str) or not value:
            raise InputUnreadable(f"{mesh} has no {name}: is the mesh up?")
        return value

    def file(name: str) -> bytes:
        return read_input(mesh.parent / text(name))

    return OperatorAccess(
        kms_target=text("kms_grpc"),
        mesh_ca_pem=file("mesh_ca"),
        certificate_pem=file("operator_cert"),
        key_pem=file("operator_key"),
    )


async def publish_policy(document: SignedPolicy, mesh: Path, timeout_seconds: float) -> None:
    """Send the policy to the KMS of the mesh that mesh.json describes, and check what is then in force.

    The KMS decides; this raises whatever it refuses with, `InputUnreadable` and `PublishedOtherwise`.
    """
    access = read_access(mesh)
    policy = document.policy
    async with open_channel(
        access.kms_target,
        root_pem=access.mesh_ca_pem,
        server_name=f"kms.{policy.trust_domain}",
        key_pem=access.key_pem,
        certificate_pem=access.certificate_pem,
    ) as channel:
        request = kms_pb2.PublishPolicyRequest(signed_policy=document.document, request_id=uuid.uuid4().hex)
        try:
            response = await kms_pb2_grpc.KmsServiceStub(channel).PublishPolicy(request, timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise to_mesh_error(error) from error
    if (response.version, response.digest) != (policy.version, policy.digest):
        raise PublishedOtherwise(f"the KMS says that version {response.version} is in force, not this one")
