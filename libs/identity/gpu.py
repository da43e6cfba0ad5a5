"""It is responsible for the GPU evidence of this service: what its GPUs answer, and the vendor's verdict on it.

The answers come from the guest agent, the verdict and the certificates of its keys through the attestation service's
bootstrap listener. Neither is trusted on the way: device and vendor signed them, and whoever appraises the evidence
checks that. Guest agents collect from GPUs only, so nothing is said of the switches between them.
"""

from __future__ import annotations

from typing import Protocol

from teemesh.attestation.v1 import collateral_pb2, collateral_pb2_grpc

from libs import jcs
from libs.identity.endorsements import bootstrap_channel
from libs.rpc.errors import remote_errors
from libs.tee.dstack import Guest
from libs.tee.nvidia.evidence import GpuEvidence
from libs.tee.nvidia.token import DetachedEat

_TIMEOUT_SECONDS = 30.0
"""The vendor's service asks its own revocation responders before it answers."""


class GpuSource(Protocol):
    """Where GPU evidence comes from."""

    async def evidence(self, nonce: bytes) -> GpuEvidence:
        """Return evidence that answers the 32-byte nonce."""
        ...


class GuestGpus:
    """The GPUs of this service's own guest."""

    def __init__(self, guest: Guest, bootstrap: str, trust_domain: str) -> None:
        self._guest = guest
        self._bootstrap = bootstrap
        self._trust_domain = trust_domain

    async def evidence(self, nonce: bytes) -> GpuEvidence:
        """Raises what the guest refuses with, what the attestation service does, and `GpuEvidenceMalformed`."""
        collected = await self._guest.collect_gpus(nonce)
        request = collateral_pb2.GetGpuTokensRequest(
            nonce=nonce,
            architecture=collected.architecture,
            reports=[
                collateral_pb2.GpuReport(report=raw.report, certificate_chain=raw.certificate_chain)
                for raw in collected.reports
            ],
        )
        async with bootstrap_channel(self._bootstrap, self._trust_domain) as channel:
            stub = collateral_pb2_grpc.CollateralServiceStub(channel)
            with remote_errors():
                response = await stub.GetGpuTokens(request, timeout=_TIMEOUT_SECONDS)
        keys = {chain.key_id: tuple(chain.certificates) for chain in response.keys}
        return GpuEvidence.of(DetachedEat.parse(jcs.loads(response.tokens)), keys, collected.reports)
