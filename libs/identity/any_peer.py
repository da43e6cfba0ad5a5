"""It is responsible for reaching a role that has several instances: whichever is there, the same one while it answers.

Each is a `Peer` of its own, appraised like any other, so it makes no difference to trust which one answers. One that
cannot be reached is passed over, and so is one whose connection is there but silent, or that says that it cannot serve
now, until something on that connection is served or it is made anew: the others are tried first.

Nothing is sent twice from here. A call that got no answer may have been carried out, so it fails, and the next channel
is another instance's. Whoever called decides whether to ask again: for statements, policies, revocations, certificates
and keys by epoch one may, for what comes is the same or as good, and the log has one entry more. A signature by a named
key is not asked for again, because each entry is to be one that the workload wanted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from libs.errors import MeshError
from libs.identity.instances import preferred_first, telling_most
from libs.identity.lease import Lease
from libs.identity.peers import Peer, PeerUnavailable
from libs.identity.renewal import Credential
from libs.rpc.watched import WatchedChannel

log = structlog.get_logger()


class Channels(Protocol):
    """A role of the mesh, one instance or any, as an appraised peer."""

    async def channel(self, timeout: float) -> WatchedChannel: ...


class AnyPeer:
    """Several instances, in order of preference. MUST be given at least one."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self._peers = tuple(peers)
        self._chosen = self._peers[0]

    @property
    def lease(self) -> Lease:
        """The instance that was chosen last, as appraised last. Raises `PeerUnavailable` before any connection."""
        return self._chosen.lease

    @property
    def credential(self) -> Credential:
        """What this service shows the instance that was chosen last."""
        return self._chosen.credential

    async def channel(self, timeout: float) -> WatchedChannel:
        """Return a channel to an appraised instance, those away last; each has a share of the time that is left.

        Raises what says most about why there is none: a refusal of either side before an absence.
        """
        ends_at = asyncio.get_running_loop().time() + timeout
        errors: list[MeshError] = []
        order = sorted(preferred_first(self._peers, self._chosen), key=lambda peer: peer.is_away)
        for asked, peer in enumerate(order):
            share = max(ends_at - asyncio.get_running_loop().time(), 0.0) / (len(order) - asked)
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
