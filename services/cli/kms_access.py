"""It is responsible for an operator's way to the KMS of a mesh that mesh.json describes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from teemesh.kms.v1 import kms_pb2_grpc

from libs.identity.certificate import der_of, spki_of_certificate
from libs.rpc.channel import open_channel
from services.cli.mesh_reading import MeshReader

TIMEOUT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class KmsAccess:
    """What an operator needs to reach the KMS, and the CA that they believe."""

    target: str
    """host:port."""
    trust_domain: str
    mesh_ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes

    @property
    def ca_spki(self) -> bytes:
        return spki_of_certificate(der_of(self.mesh_ca_pem))

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[kms_pb2_grpc.KmsServiceStub]:
        """A connection for as long as the body runs."""
        async with open_channel(
            self.target,
            root_pem=self.mesh_ca_pem,
            server_name=f"kms.{self.trust_domain}",
            key_pem=self.key_pem,
            certificate_pem=self.certificate_pem,
        ) as channel:
            yield kms_pb2_grpc.KmsServiceStub(channel)


def read_kms_access(state: Path) -> KmsAccess:
    """Read mesh.json of a state folder. Raises `InputUnreadable`."""
    mesh = MeshReader(state / "mesh.json")
    return KmsAccess(
        target=mesh.text("kms_grpc"),
        trust_domain=mesh.text("trust_domain"),
        mesh_ca_pem=mesh.file("mesh_ca"),
        certificate_pem=mesh.file("operator_cert"),
        key_pem=mesh.file("operator_key"),
    )
