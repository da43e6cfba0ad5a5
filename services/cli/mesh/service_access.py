"""It is responsible for an operator's way to one service of the mesh that mesh.json describes."""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc.aio

from libs.identity.certificate import der_of, spki_of_certificate
from libs.rpc.channel import open_channel
from services.cli.mesh.reading import MeshReader


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

    def channel(self) -> grpc.aio.Channel:
        """Return a new connection; the caller closes it."""
        return open_channel(
            self.target,
            root_pem=self.mesh_ca_pem,
            server_name=f"{self.role}.{self.trust_domain}",
            key_pem=self.key_pem,
            certificate_pem=self.certificate_pem,
        )


def read_service_access(mesh: MeshReader, role: str) -> ServiceAccess:
    """Read what mesh.json says of a service that has one instance. Raises `InputUnreadable`."""
    return access_at(mesh, role, mesh.text(f"{role}_grpc"), mesh.text("trust_domain"))


def access_at(mesh: MeshReader, role: str, target: str, trust_domain: str) -> ServiceAccess:
    """Return the way to an instance of a role at "host:port". Raises `InputUnreadable`."""
    return ServiceAccess(
        role=role,
        target=target,
        trust_domain=trust_domain,
        mesh_ca_pem=mesh.file("mesh_ca"),
        certificate_pem=mesh.file("operator_cert"),
        key_pem=mesh.file("operator_key"),
    )
