"""It is responsible for the vendor endorsements that this service staples to its evidence.

They come from the attestation service's bootstrap listener. Nothing on the way is trusted: the vendor signed them, and
whoever appraises the evidence checks that.
"""

from __future__ import annotations

import time
from typing import Protocol

from teemesh.attestation.v1 import collateral_pb2, collateral_pb2_grpc

from libs.identity.endorsements import bootstrap_channel
from libs.rpc.errors import remote_errors
from libs.tee.collateral import Collateral

_TIMEOUT_SECONDS = 20.0
_RENEW_BEFORE_SECONDS = 2 * 3600
"""Evidence must outlive its certificate, so collateral that ends within two hours is fetched anew."""


class CollateralSource(Protocol):
    """Where the endorsements of a quote come from."""

    async def collateral(self, quote: bytes) -> Collateral:
        """Return the collateral of the quote's platform."""
        ...


class AttestationCollateral:
    """The attestation service, asked again when what it gave is about to end."""

    def __init__(self, bootstrap: str, trust_domain: str) -> None:
        self._bootstrap = bootstrap
        self._trust_domain = trust_domain
        self._held: Collateral | None = None
        self._valid_until = 0.0

    async def collateral(self, quote: bytes) -> Collateral:
        if self._held is not None and time.time() < self._valid_until - _RENEW_BEFORE_SECONDS:
            return self._held
        async with bootstrap_channel(self._bootstrap, self._trust_domain) as channel:
            stub = collateral_pb2_grpc.CollateralServiceStub(channel)
            with remote_errors():
                response = await stub.GetCollateral(
                    collateral_pb2.GetCollateralRequest(quote=quote), timeout=_TIMEOUT_SECONDS
                )
        self._held = Collateral.decode(response.collateral)
        self._valid_until = response.valid_until_ms / 1000
        return self._held
