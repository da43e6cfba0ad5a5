"""It is responsible for gathering what a node is judged by: the registry's word, its session, its certificate."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from teemesh.registry.v1 import registry_pb2 as pb

from libs.errors import MeshError
from libs.identity.certificate import MeshCertificate, der_of, verify_issued
from libs.rpc.channel import fetch_leaf
from services.cli.mesh.registry_access import RegistryAccess, RegistryClient
from services.cli.mesh.service_access import ServiceAccess

_ROLE = "node"


@dataclass(frozen=True, slots=True)
class Gathered:
    """What is known of one node. What could not be had is the error that says why."""

    provider: pb.Provider
    """The registry's word."""
    document: bytes | MeshError = field(repr=False)
    """The session, as the registry gives it."""
    certificate: MeshCertificate | MeshError
    """What the node at the listed endpoint shows: the mesh CA issued it, and the node has its key."""


async def gather(access: RegistryAccess, spiffe_id: str, timeout_seconds: float) -> Gathered:
    """Ask the registry about a node, and the node itself. Raises `ProviderUnknown` and what the registry refuses
    the listing with.
    """

    async def ask(registry: RegistryClient) -> tuple[pb.Provider, bytes | MeshError]:
        provider = await registry.provider(spiffe_id)
        try:
            return provider, await registry.session(provider.session_id)
        except MeshError as refusal:
            return provider, refusal

    provider, document = await access.ask(ask, timeout_seconds)
    return Gathered(provider, document, await _certificate(access.operator, provider.endpoint, timeout_seconds))


async def _certificate(access: ServiceAccess, endpoint: str, timeout_seconds: float) -> MeshCertificate | MeshError:
    """Return the certificate of whoever answers at an endpoint, or why there is none that the mesh CA issued."""
    try:
        leaf = await fetch_leaf(
            endpoint,
            server_name=f"{_ROLE}.{access.trust_domain}",
            timeout=timeout_seconds,
            ca_pem=access.mesh_ca_pem,
            key_pem=access.key_pem,
            certificate_pem=access.certificate_pem,
        )
        return verify_issued(leaf, der_of(access.mesh_ca_pem), time.time())
    except MeshError as refusal:
        return refusal
