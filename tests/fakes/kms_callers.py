"""Those who call a running KMS over real mutual TLS: members that it has appraised, and operators."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import kms_pb2_grpc as pb_grpc

from libs.identity.certificate import Subject, key_pem, pem_of
from libs.identity.member import Member
from libs.rpc.channel import open_channel
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh
from tests.fakes.running_kms import RunningKms


@asynccontextmanager
async def calling(
    mesh: JoinedMesh, running: RunningKms, role: str, claims: dict[str, Any] | None = None
) -> AsyncIterator[tuple[pb_grpc.KmsServiceStub, Member]]:
    """A member that the KMS has appraised."""
    async with mesh.member(role, running.core, claims=claims) as member:
        yield pb_grpc.KmsServiceStub(await member.peer("kms", running.target).channel(10)), member


@asynccontextmanager
async def operator(
    running: RunningKms, key: ec.EllipticCurvePrivateKey | None = None
) -> AsyncIterator[pb_grpc.KmsServiceStub]:
    """An operator named ada."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = Subject(TRUST_DOMAIN, "operator", "ada", None)
    der = running.core.ca.issue_svid(subject, key.public_key(), time.time())
    async with open_channel(
        running.target,
        root_pem=running.member.ca_pem,
        server_name=f"kms.{TRUST_DOMAIN}",
        key_pem=key_pem(key),
        certificate_pem=pem_of(der),
    ) as channel:
        yield pb_grpc.KmsServiceStub(channel)
