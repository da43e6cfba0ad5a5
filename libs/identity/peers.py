"""It is responsible for channels to other members: only to the very key whose evidence was appraised.

The peer's leaf is taken by a handshake and appraised; the gRPC channel then has that leaf as its only root, so no other
key can answer on it. Whoever holds a `Peer` asks it for the channel before each use: warm it costs nothing, and when
the peer was restarted, renewed or refused, that is where it shows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import grpc
import grpc.aio
import structlog
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.certificate import CertificateNotAccepted, pem_of, verify_issued
from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import Lease, appraise_peer
from libs.identity.renewal import Credential, Identity
from libs.rpc.channel import fetch_leaf, open_channel
from libs.rpc.errors import remote_errors
from libs.rpc.watched import WatchedChannel

_REPLACE_BEFORE_SECONDS = 30.0
"""A lease this close to its end is replaced before use, so that no call starts on one that ends under it."""

log = structlog.get_logger()


class PeerUnavailable(MeshError):
    """The peer cannot be reached, or not within the time allowed."""

    code = Code.UNAVAILABLE
    reason = "PEER_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class _Link:
    channel: grpc.aio.Channel
    lease: Lease
    credential: Credential
    until: float


class Peer:
    """One other member, reached at one address."""

    def __init__(
        self,
        role: str,
        target: str,
        identity: Identity,
        policy: PolicyKeeper,
        ca_spki: Callable[[], bytes],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._role = role
        self._target = target
        self._identity = identity
        self._policy = policy
        self._ca_spki = ca_spki
        self._clock = clock
        self._link: _Link | None = None
        self.refusal: str | None = None
        """Why it was last judged unfit, by its reason; None once it is appraised again."""
        self._connecting = asyncio.Lock()
        self._looking: set[asyncio.Task[None]] = set()
        self._closing: dict[asyncio.Task[None], _Link] = {}
        """Links that get no new calls, until their last call or their lease ends."""

    @property
    def lease(self) -> Lease:
        """The peer as last appraised. Raises `PeerUnavailable` before the first connection."""
        if self._link is None:
            raise PeerUnavailable(f"no connection to {self._role} at {self._target} yet")
        return self._link.lease

    def live_lease(self) -> Lease | None:
        """The lease that a call started now would rest on; None when the next `channel` has to connect first."""
        link = self._live()
        return None if link is None else link.lease

    async def channel(self, timeout: float) -> grpc.aio.Channel:
        """Return a channel to the appraised peer. Raises `PeerUnavailable` or the refusal of either side."""
        if (link := self._live()) is not None:
            return link.channel
        try:
            async with asyncio.timeout(timeout):
                async with self._connecting:
                    if (link := self._live()) is None:
                        link = await self._connect(timeout)
                        self._replace(link)
                    return link.channel
        except TimeoutError as error:
            raise PeerUnavailable(f"{self._role} at {self._target} did not answer within {timeout:.1f} s") from error

    def reappraise(self) -> None:
        """Judge the peer again under the current policy; a refusal closes its channels and everything on them."""
        for task, retired in list(self._closing.items()):
            if self._judged(retired) is None:
                task.cancel()
                self._close_later(retired, 0)
        if (link := self._link) is not None:
            lease = self._judged(link)
            self._link = None if lease is None else replace(link, lease=lease, until=min(link.until, lease.until))
            if lease is None:
                self._close_later(link, 0)

    def sweep(self) -> None:
        """Close the channel when its lease has run out: nothing on it may outlive what it rests on."""
        if self._link is not None and self._link.until <= self._clock():
            self._close_later(self._link, 0)
            self._link = None

    async def close(self) -> None:
        closing = dict(self._closing)
        for task in (*closing, *self._looking):
            task.cancel()
        await asyncio.gather(*closing, *self._looking, return_exceptions=True)
        link, self._link = self._link, None
        for each in (*closing.values(), *([] if link is None else [link])):
            await each.channel.close(None)

    def _judged(self, link: _Link) -> Lease | None:
        """The lease that the peer's evidence earns under the current policy; None when it is refused."""
        certificate = link.lease.certificate
        try:
            return appraise_peer(
                certificate, link.lease.evidence.document, self._policy.current, self._ca_spki(), self._clock()
            )
        except MeshError as error:
            log.warning("peer refused", peer=certificate.spiffe_id, reason=error.reason)
            self.refusal = error.reason
            return None

    def _live(self) -> _Link | None:
        link = self._link
        if link is None or link.until - _REPLACE_BEFORE_SECONDS <= self._clock():
            return None
        if link.credential is not self._identity.current:
            return None
        return link if link.channel.get_state() is grpc.ChannelConnectivity.READY else None

    async def _connect(self, timeout: float) -> _Link:
        credential = self._identity.current
        server_name = f"{self._role}.{credential.certificate.trust_domain}"
        leaf = await fetch_leaf(
            self._target,
            server_name=server_name,
            timeout=timeout,
            ca_pem=pem_of(self._identity.ca_certificate),
            key_pem=credential.key_pem,
            certificate_pem=credential.certificate.pem,
        )
        certificate = verify_issued(leaf, self._identity.ca_certificate, self._clock())
        if (certificate.role, certificate.trust_domain) != (self._role, credential.certificate.trust_domain):
            raise CertificateNotAccepted(f"{self._target} is {certificate.spiffe_id}, not a {self._role}")
        channel = open_channel(
            self._target,
            root_pem=certificate.pem,
            server_name=server_name,
            key_pem=credential.key_pem,
            certificate_pem=credential.certificate.pem,
        )
        stub = evidence_pb2_grpc.EvidenceServiceStub(channel)
        try:
            with remote_errors():
                theirs = await stub.GetEvidence(evidence_pb2.GetEvidenceRequest(), timeout=timeout)
                lease = appraise_peer(
                    certificate, theirs.document, self._policy.current, self._ca_spki(), self._clock()
                )
                accepted = await stub.PresentEvidence(
                    evidence_pb2.PresentEvidenceRequest(document=credential.evidence.document), timeout=timeout
                )
        except BaseException:
            await channel.close(None)
            raise
        self.refusal = None
        log.info("peer appraised", peer=certificate.spiffe_id, until=int(lease.until))
        until = min(lease.until, accepted.lease_until_ms / 1000)
        watched = WatchedChannel(channel, lambda call: self._call_ended(call, watched))
        return _Link(watched, lease, credential, until)

    def _call_ended(self, call: grpc.aio.Call, channel: grpc.aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(self._look(call, channel))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look(self, call: grpc.aio.Call, channel: grpc.aio.Channel) -> None:
        """Connect anew, evidence and all, for the next call when the peer no longer knows this service."""
        if await call.code() is not grpc.StatusCode.UNAUTHENTICATED:
            return
        if (link := self._link) is not None and link.channel is channel:
            log.info("the peer wants evidence again", peer=link.lease.certificate.spiffe_id)
            self._link = None
            self._close_later(link, max(link.until - self._clock(), 0))

    def _replace(self, link: _Link) -> None:
        """Use the new channel from now on; what still runs on the old one may do so until its lease ends."""
        if (old := self._link) is not None:
            alive = old.channel.get_state() is grpc.ChannelConnectivity.READY
            self._close_later(old, max(old.until - self._clock(), 0) if alive else 0)
        self._link = link

    def _close_later(self, link: _Link, seconds: float) -> None:
        task = asyncio.get_running_loop().create_task(_close_after(link.channel, seconds))
        self._closing[task] = link
        task.add_done_callback(self._closing.pop)


async def _close_after(channel: grpc.aio.Channel, seconds: float) -> None:
    """Not `close(grace)`: a channel closes once only, so that one could no longer be cut short when policy moves."""
    await asyncio.sleep(seconds)
    await channel.close(None)
