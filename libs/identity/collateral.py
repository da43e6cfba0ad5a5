"""It is responsible for the vendor endorsements that this service staples to its evidence.

They come from the attestation service's bootstrap listener. Nothing on the way is trusted: the vendor signed them, and
whoever appraises the evidence checks that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from teemesh.attestation.v1 import collateral_pb2, collateral_pb2_grpc

from libs.errors import MeshError
from libs.identity.endorsements import bootstrap_channel
from libs.rpc.errors import remote_errors
from libs.tee.collateral import Collateral

_TIMEOUT_SECONDS = 20.0
_HOLD_SECONDS = 3600
"""How long collateral is used without asking again: policy bounds its age, and asking costs one call."""
_RENEW_BEFORE_SECONDS = 2 * 3600
"""Evidence must outlive its certificate, so collateral that ends within two hours is no use any more."""


class CollateralSource(Protocol):
    """Where the endorsements of a quote come from."""

    async def collateral(self, quote: bytes) -> Collateral:
        """Return the collateral of the quote's platform."""
        ...


class AttestationCollateral:
    """The attestation service, asked again every hour; what it gave last is used while it does not answer."""

    def __init__(self, bootstrap: str, trust_domain: str, clock: Callable[[], float] = time.time) -> None:
        self._bootstrap = bootstrap
        self._trust_domain = trust_domain
        self._clock = clock
        self._held: Collateral | None = None
        self._asked_at = 0.0
        self._valid_until = 0.0

    async def collateral(self, quote: bytes) -> Collateral:
        """Raises what the attestation service refuses with, where nothing that it gave before is of use."""
        now = self._clock()
        held = self._held if now < self._valid_until - _RENEW_BEFORE_SECONDS else None
        # A clock that was set back must not make the hour longer.
        if held is not None and 0 <= now - self._asked_at < _HOLD_SECONDS:
            return held
        try:
            return await self._ask(quote, now)
        except MeshError:
            if held is None:
                raise
            return held

    async def _ask(self, quote: bytes, now: float) -> Collateral:
        async with bootstrap_channel(self._bootstrap, self._trust_domain) as channel:
            stub = collateral_pb2_grpc.CollateralServiceStub(channel)
            with remote_errors():
                response = await stub.GetCollateral(
                    collateral_pb2.GetCollateralRequest(quote=quote), timeout=_TIMEOUT_SECONDS
                )
        self._held = Collateral.decode(response.collateral)
        self._valid_until = response.valid_until_ms / 1000
        self._asked_at = now
        return self._held
