"""A registry of the right code, with a genuine certificate, that hands out other policies than there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs.rpc.calls import Context
from libs.rpc.policies import ANY_ROLE, MethodRule, ServiceBinding
from tests.fakes.joined_mesh import JoinedMesh, KmsCore

HandOut = Callable[[int], Awaitable[bytes]]
"""From the version that was asked for to what is given."""


class PolicyRegistry(registry_pb2_grpc.ProviderRegistryServiceServicer):
    """Remembers what it was asked for."""

    def __init__(self, hand_out: HandOut) -> None:
        self._hand_out = hand_out
        self.asked: list[int] = []

    async def GetPolicy(  # noqa: N802
        self, request: registry_pb2.GetPolicyRequest, context: Context
    ) -> registry_pb2.GetPolicyResponse:
        self.asked.append(request.version)
        return registry_pb2.GetPolicyResponse(signed_policy=await self._hand_out(request.version))


@asynccontextmanager
async def policy_registry(
    mesh: JoinedMesh, kms: KmsCore, hand_out: HandOut
) -> AsyncIterator[tuple[PolicyRegistry, str]]:
    """Serve it as a member of the mesh; gives its address too."""
    servicer = PolicyRegistry(hand_out)  # type: ignore[abstract]  # The other methods stay unimplemented.
    name = "teemesh.registry.v1.ProviderRegistryService"
    binding = ServiceBinding(
        name,
        lambda server: registry_pb2_grpc.add_ProviderRegistryServiceServicer_to_server(servicer, server),
        {f"/{name}/GetPolicy": MethodRule(roles=ANY_ROLE)},
    )
    async with mesh.member("registry", kms) as member, member.serve([binding]) as running:
        yield servicer, f"127.0.0.1:{running.port}"
