"""It is responsible for the GPU evidence of this service: what its devices answer, and the vendor's verdict on it.

The answers come from the guest agent or from NVIDIA's libraries, the verdict and the certificates of its keys through
the attestation service's bootstrap listener. None is trusted on the way: device and vendor signed them, and whoever
appraises the evidence checks that. Guest agents collect from GPUs only, so nothing is said of the switches between
them; the libraries are asked about both.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from teemesh.attestation.v1 import collateral_pb2, collateral_pb2_grpc

from libs import jcs
from libs.gpus.observed import Observed, observed_in
from libs.identity.endorsements import bootstrap_channel
from libs.rpc.errors import remote_errors
from libs.tee.dstack import Guest
from libs.tee.nvidia.collected import Collected
from libs.tee.nvidia.evidence import GpuEvidence, RawReport
from libs.tee.nvidia.token import DetachedEat

_TIMEOUT_SECONDS = 30.0
"""The vendor's service asks its own revocation responders before it answers."""
_NONCE_BYTES = 32


class Devices(Protocol):
    """The GPUs and switches of this guest."""

    async def observe(self) -> Observed:
        """Return what there is. MUST raise where a device may not serve, or nobody can tell."""
        ...

    async def collect(self, nonce: bytes) -> tuple[Collected, Observed]:
        """Have every device answer the 32-byte nonce; return what there was when it did, too."""
        ...


@dataclass(frozen=True, slots=True)
class GpuAnswer:
    """Evidence, and what it is evidence of."""

    evidence: GpuEvidence
    observed: Observed


class GpuSource(Protocol):
    """Where GPU evidence comes from."""

    async def observe(self) -> Observed:
        """Return what there is. MUST raise where a device may not serve, or nobody can tell."""
        ...

    async def evidence(self, nonce: bytes) -> GpuAnswer:
        """Return evidence that answers the 32-byte nonce."""
        ...


class GuestDevices:
    """The GPUs as the guest agent shows them: it can only have them answer, and says nothing of resets."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    async def observe(self) -> Observed:
        """Raises what the guest refuses with: one without confidential mode makes no reports."""
        return (await self.collect(secrets.token_bytes(_NONCE_BYTES)))[1]

    async def collect(self, nonce: bytes) -> tuple[Collected, Observed]:
        """Raises what the guest refuses with, `CollectedMalformed` and `ReportMalformed`."""
        collected = await self._guest.collect_gpus(nonce)
        return collected, observed_in(collected.reports)


class Gpus:
    """This guest's devices, with the vendor's verdict on them."""

    def __init__(self, devices: Devices, bootstrap: str, trust_domain: str) -> None:
        self._devices = devices
        self._bootstrap = bootstrap
        self._trust_domain = trust_domain

    async def observe(self) -> Observed:
        return await self._devices.observe()

    async def evidence(self, nonce: bytes) -> GpuAnswer:
        """Raises what the devices refuse with, what the attestation service does, and `GpuEvidenceMalformed`."""
        collected, observed = await self._devices.collect(nonce)
        async with bootstrap_channel(self._bootstrap, self._trust_domain) as channel:
            stub = collateral_pb2_grpc.CollateralServiceStub(channel)
            with remote_errors():
                about_gpus = await stub.GetGpuTokens(
                    collateral_pb2.GetGpuTokensRequest(
                        nonce=nonce, architecture=collected.architecture, reports=_messages(collected.reports)
                    ),
                    timeout=_TIMEOUT_SECONDS,
                )
                keys = _chains(about_gpus.keys)
                about_switches = None
                if collected.switches is not None:
                    said = await stub.GetSwitchTokens(
                        collateral_pb2.GetSwitchTokensRequest(
                            nonce=nonce,
                            architecture=collected.switches.architecture,
                            reports=_messages(collected.switches.reports),
                        ),
                        timeout=_TIMEOUT_SECONDS,
                    )
                    about_switches = DetachedEat.parse(jcs.loads(said.tokens))
                    keys |= _chains(said.keys)
        about = DetachedEat.parse(jcs.loads(about_gpus.tokens))
        return GpuAnswer(GpuEvidence.of(about, keys, collected.reports, about_switches), observed)


def _messages(reports: Sequence[RawReport]) -> list[collateral_pb2.GpuReport]:
    return [collateral_pb2.GpuReport(report=raw.report, certificate_chain=raw.certificate_chain) for raw in reports]


def _chains(keys: Iterable[collateral_pb2.KeyChain]) -> dict[str, tuple[bytes, ...]]:
    return {chain.key_id: tuple(chain.certificates) for chain in keys}
