"""It is responsible for reaching the one member of a log that writes, whichever it is now.

The members are asked what they are before each use, the one that wrote last first. What one of them says wrongly costs
time alone: it is the appraised member's own acknowledgement that counts, whoever was believed to write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from teemesh.ledger.v1 import replication_pb2, replication_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.instances import is_away, preferred_first, telling_most
from libs.identity.lease import Lease
from libs.identity.peers import Peer, PeerUnavailable
from libs.identity.renewal import Credential
from libs.rpc.errors import remote_errors
from libs.rpc.watched import WatchedChannel

_PAUSE_SECONDS = 0.2
_ASK_SECONDS = 3.0
"""How long one member may take to say what it is: the next one may be the writer."""

log = structlog.get_logger()


class NoWriter(MeshError):
    """No member of the log that answers writes it. There will be a writer again: ask later."""

    code = Code.UNAVAILABLE
    reason = "NO_WRITER"


class LedgerWriter:
    """The members of a log, in order of preference. MUST be given at least one."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self._peers = tuple(peers)
        self._chosen = self._peers[0]

    @property
    def lease(self) -> Lease:
        """The member that was found to write last, as appraised last. Raises `PeerUnavailable` before any was."""
        return self._chosen.lease

    @property
    def credential(self) -> Credential:
        """What this service shows that member."""
        return self._chosen.credential

    async def channel(self, timeout: float) -> WatchedChannel:
        """Return a channel to the appraised writer. While there is none, the members are asked again.

        Raises `NoWriter`, or what says most about why no member answers.
        """
        ends_at = asyncio.get_running_loop().time() + timeout
        while True:
            left = ends_at - asyncio.get_running_loop().time()
            try:
                return await self._find(left)
            except MeshError as error:
                if not is_away(error) or left <= _PAUSE_SECONDS:
                    raise
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _find(self, timeout: float) -> WatchedChannel:
        """Ask each member once; each has a share of the time that is left."""
        ends_at = asyncio.get_running_loop().time() + timeout
        errors: list[MeshError] = []
        order = sorted(preferred_first(self._peers, self._chosen), key=lambda peer: peer.is_away)
        for asked, peer in enumerate(order):
            share = min(max(ends_at - asyncio.get_running_loop().time(), 0.0) / (len(order) - asked), _ASK_SECONDS)
            try:
                async with asyncio.timeout(share):
                    channel = await peer.channel(share)
                    writes = await _writes(channel, share)
            except MeshError as error:
                errors.append(error)
            except TimeoutError:
                errors.append(PeerUnavailable(f"no answer within {share:.1f} s"))
            else:
                if writes:
                    self._choose(peer)
                    return channel
        raise telling_most([NoWriter("no member of the log that answers writes now: ask again"), *errors])

    def _choose(self, peer: Peer) -> None:
        if peer is not self._chosen:
            log.warning("another member writes the log", peer=peer.lease.certificate.spiffe_id)
            self._chosen = peer


async def _writes(channel: WatchedChannel, timeout: float) -> bool:
    stub = replication_pb2_grpc.LedgerReplicationServiceStub(channel)
    with remote_errors():
        standing = await stub.GetStanding(replication_pb2.GetStandingRequest(), timeout=timeout)
    return bool(standing.role == replication_pb2.MEMBER_ROLE_WRITER)
