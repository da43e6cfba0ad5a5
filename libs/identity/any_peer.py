"""It is responsible for reaching a role that has several instances: whichever is there, the same one while it is.

Each is a `Peer` of its own, appraised like any other, so it makes no difference to trust which one answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import grpc.aio
import structlog

from libs.errors import MeshError
from libs.identity.instances import preferred_first, telling_most
from libs.identity.lease import Lease
from libs.identity.peers import Peer, PeerUnavailable

log = structlog.get_logger()


class Channels(Protocol):
    """A role of the mesh, one instance or any, as an appraised peer."""

    async def channel(self, timeout: float) -> grpc.aio.Channel: ...


class AnyPeer:
    """Several instances, in order of preference. MUST be given at least one."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self._peers = tuple(peers)
        self._chosen = self._peers[0]

    @property
    def lease(self) -> Lease:
        """The instance that answered last, as last appraised. Raises `PeerUnavailable` before the first connection."""
        return self._chosen.lease

    async def channel(self, timeout: float) -> grpc.aio.Channel:
        """Return a channel to an appraised instance.

        Raises what says most about why there is none: a refusal of either side before an absence.
        """
        errors: list[MeshError] = []
        for peer in preferred_first(self._peers, self._chosen):
            share = timeout / len(self._peers)
            try:
                async with asyncio.timeout(share):
                    channel = await peer.channel(share)
            except MeshError as error:
                errors.append(error)
            except TimeoutError:
                errors.append(PeerUnavailable(f"no connection within {share:.1f} s"))
            else:
                if peer is not self._chosen:
                    log.warning("another instance is used", peer=peer.lease.certificate.spiffe_id)
                    self._chosen = peer
                return channel
        raise telling_most(errors)
