"""It is responsible for an operator's way to one service of the mesh that mesh.json describes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio

from libs.identity.certificate import der_of, spki_of_certificate
from libs.rpc.channel import open_channel
from services.cli.mesh_reading import MeshReader


@dataclass(frozen=True, slots=True)
class ServiceAccess:
    """What an operator needs to reach a service, and the CA that they believe."""

    role: str
    target: str
    """host:port."""
    trust_domain: str
    mesh_ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)

    @property
    def ca_spki(self) -> bytes:
        return spki_of_certificate(der_of(self.mesh_ca_pem))

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        """A connection for as long as the body runs."""
        async with open_channel(
            self.target,
            root_pem=self.mesh_ca_pem,
            server_name=f"{self.role}.{self.trust_domain}",
            key_pem=self.key_pem,
            certificate_pem=self.certificate_pem,
        ) as channel:
            yield channel


def read_service_access(mesh: MeshReader, role: str) -> ServiceAccess:
    """Read what mesh.json says of a service. Raises `InputUnreadable`."""
    return ServiceAccess(
        role=role,
        target=mesh.text(f"{role}_grpc"),
        trust_domain=mesh.text("trust_domain"),
        mesh_ca_pem=mesh.file("mesh_ca"),
        certificate_pem=mesh.file("operator_cert"),
        key_pem=mesh.file("operator_key"),
    )
