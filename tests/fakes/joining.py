"""What a member needs to join for real: devtee's vendors, an attestation service's and a KMS's listeners, a guest."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from libs.identity.bootstrap_leaf import make_bootstrap_leaf
from libs.identity.member import MemberSettings
from libs.rpc.middleware import public_middleware
from libs.rpc.server import serving
from services.attestation.collateral import CollateralCache
from services.attestation.gpu_tokens import GpuTokens
from services.attestation.servicer import CollateralServicer, collateral_binding
from services.devtee.vendors import serving_vendors
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.running_kms import RunningKms, running_kms


@dataclass(frozen=True, slots=True)
class Surroundings:
    kms: RunningKms
    settings: MemberSettings


@asynccontextmanager
async def surroundings(mesh: JoinedMesh, core: KmsCore, *, gpu_tokens: bool = True) -> AsyncIterator[Surroundings]:
    """Start them, and say how a router joins there."""
    leaf = make_bootstrap_leaf("attestation", TRUST_DOMAIN)
    async with (
        serving_vendors("127.0.0.1", 0, mesh.machine, lambda: int(time.time())) as url,
        running_kms(mesh, core) as kms,
        mesh.guest(mesh.tds["router"]) as socket,
    ):
        binding = collateral_binding(
            CollateralServicer(CollateralCache(url, 10), GpuTokens(url if gpu_tokens else None, 10))
        )
        middleware = public_middleware(binding.methods)
        async with serving("127.0.0.1:0", leaf.credentials, [binding], middleware, drain_seconds=0) as attestation:
            settings = mesh.settings(
                "router",
                "1",
                socket,
                kms=(kms.target,),
                kms_bootstrap=(kms.bootstrap,),
                attestation_bootstrap=f"127.0.0.1:{attestation.port}",
            )
            yield Surroundings(kms, settings)
