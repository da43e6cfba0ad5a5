"""It is responsible for reaching the attestation service's bootstrap listener, for those who have no identity yet.

Its leaf is taken as it comes: everything that the listener hands out is signed by a vendor.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio

from libs.identity.certificate import pem_of
from libs.rpc.channel import fetch_leaf, open_channel

_TIMEOUT_SECONDS = 20.0


@asynccontextmanager
async def bootstrap_channel(bootstrap: str, trust_domain: str) -> AsyncIterator[grpc.aio.Channel]:
    """Yield a channel to `bootstrap` (host:port)."""
    server_name = f"attestation-bootstrap.{trust_domain}"
    leaf = await fetch_leaf(bootstrap, server_name=server_name, timeout=_TIMEOUT_SECONDS)
    async with open_channel(bootstrap, root_pem=pem_of(leaf), server_name=server_name) as channel:
        yield channel
