"""It is responsible for channels to other members: only to the very key whose evidence was appraised.

The peer's leaf is taken by a handshake and appraised; the gRPC channel then has that leaf as its only root, so no other
key can answer on it. Whoever holds a `Peer` asks it for the channel before each use: warm it costs nothing, except that
the peer is judged again where policy has changed since. When either side has a new key, or the end is near, another
connection is made in the background first, and only then do new calls move; what runs stays where it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import structlog
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.certificate import CertificateNotAccepted, MeshCertificate, pem_of
from libs.identity.freshness import PolicyKeeper
from libs.identity.judge import Judge
from libs.identity.lease import Lease
from libs.identity.link import Link
from libs.identity.renewal import Credential, Identity
from libs.identity.strangers import name_stranger, named_if_refused
from libs.rpc.channel import MESSAGE_BYTES, CertificateRefused, fetch_leaf, open_channel
from libs.rpc.errors import RemoteRefused, remote_errors
from libs.rpc.watched import WatchedChannel

_REPLACE_SECONDS = 10.0
_LAST_SECONDS = 1.0
"""No call starts on a connection that ends within this time."""

log = structlog.get_logger()


class PeerUnavailable(MeshError):
    """The peer cannot be reached, or not within the time allowed."""

    code = Code.UNAVAILABLE
    reason = "PEER_UNAVAILABLE"


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
        *,
        answer_bytes: int = MESSAGE_BYTES,
    ) -> None:
        """A message of its answers may have `answer_bytes`."""
        self._answer_bytes = answer_bytes
        self._role = role
        self._target = target
        self._identity = identity
        self._judge = Judge(identity, policy, ca_spki, clock)
        self._clock = clock
        self._link: Link | None = None
        self._retired: list[Link] = []
        """Links that get no new calls, until nothing runs on them or what they rest on ends."""
        self.refusal: str | None = None
        """Why it was last judged unfit, by its reason; None once it is appraised again."""
        self._connecting = asyncio.Lock()
        self._replacing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def lease(self) -> Lease:
        """The peer as last appraised. Raises `PeerUnavailable` before the first connection."""
        if self._link is None:
            raise PeerUnavailable(f"no connection to {self._role} at {self._target} yet")
        return self._link.lease

    @property
    def credential(self) -> Credential:
        """What new calls show of this service: the newest one only once the peer has accepted it."""
        return self._identity.current if self._link is None else self._link.credential

    def live_lease(self) -> Lease | None:
        """The lease of the connection that new calls get, judged last; None when the next `channel` has to connect."""
        return self._link.lease if self._link is not None and self.is_live(self._link) else None

    @property
    def is_idle(self) -> bool:
        """Whether there is no connection, and none is being made or closed."""
        return not self._links() and not self._connecting.locked() and not self._tasks

    @property
    def is_away(self) -> bool:
        """Whether the last that is known of its connection is that nobody served there."""
        return self._link is not None and self._link.channel.is_away

    def is_live(self, link: Link) -> bool:
        """Whether a call may start on this very link, which need not be the one that new calls get.

        One that was given up is not live from then on, though its connection takes a moment to end. Nobody is judged
        here, so that many peers can be asked: where policy has overtaken the peer, `link` judges it before the call.
        """
        return self._is_kept(link) and link.is_ready and self._clock() < link.takes_calls_until - _LAST_SECONDS

    async def channel(self, timeout: float) -> WatchedChannel:
        """Return a channel to the appraised peer. Raises `PeerUnavailable` or the refusal of either side."""
        link = self._live() or await self.link(timeout)
        return link.channel

    def is_newest(self, link: Link) -> bool:
        """Whether this very link is the one that new calls get."""
        return link is self._link

    async def link(self, timeout: float, preferred: Link | None = None) -> Link:
        """Return the link that new calls get, unless one is preferred that is still live.

        Raises `PeerUnavailable` or the refusal of either side.
        """
        if preferred is not None and self._is_believed(preferred):
            return preferred
        if (link := self._live()) is not None:
            return link
        try:
            async with asyncio.timeout(timeout), self._connecting:
                if (link := self._live()) is None:
                    link = await self._connect(timeout)
                    self._use(link)
                return link
        except TimeoutError as error:
            raise PeerUnavailable(f"{self._role} at {self._target} did not answer within {timeout:.1f} s") from error

    def end_named(self) -> None:
        """Close the channels to the peer, and end what runs on them, at once if the policy's revocations name it."""
        for link in self._links():
            try:
                link.require_not_named()
            except MeshError as error:
                self._refuse(link, error)

    def judging(self) -> Iterator[None]:
        """With each step, judge a link that policy has overtaken; a refusal closes it and ends what runs on it."""
        for link in self._links():
            if self._is_kept(link) and link.is_overtaken:
                self._judge_again(link)
                yield

    def sweep(self) -> None:
        """Replace what nears its end, have what still runs rest on the newest keys, and end what is over."""
        if (link := self._link) is not None:
            if link.until <= self._clock():
                self._drop(link)
            elif link.is_ready and link.is_ageing(self._identity.current):
                self._replace_later(link)
        for retired in list(self._retired):
            if retired.is_over:
                self._drop(retired)
            elif retired.channel.running:
                self._start(_hand_over(retired, self._identity.current))

    def disconnect(self) -> None:
        """End the connection and what runs on it: the next call makes another."""
        if self._link is not None:
            self._drop(self._link)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        links = self._links()
        self._link, self._retired = None, []
        for link in links:
            await link.close()

    def _links(self) -> list[Link]:
        return [*self._retired, *([] if self._link is None else [self._link])]

    def _is_kept(self, link: Link) -> bool:
        return link is self._link or link in self._retired

    def _live(self) -> Link | None:
        return self._link if self._link is not None and self._is_believed(self._link) else None

    def _is_believed(self, link: Link) -> bool:
        """Whether a call may start on this link, by the policy of now."""
        if link.is_overtaken and self.is_live(link):
            self._judge_again(link)
        return self.is_live(link)

    def _judge_again(self, link: Link) -> None:
        try:
            link.judge_again()
        except MeshError as error:
            self._refuse(link, error)

    def _refuse(self, link: Link, error: MeshError) -> None:
        log.warning("peer refused", peer=link.lease.certificate.spiffe_id, reason=error.reason)
        self.refusal = error.reason
        self._drop(link)

    def _replace_later(self, link: Link) -> None:
        if self._replacing is None or self._replacing.done():
            self._replacing = self._start(self._replace(link))

    async def _replace(self, old: Link) -> None:
        """Make before break: while this runs, and if it fails, calls go on over the old link."""
        credential = self._identity.current
        await _hand_over(old, credential)
        try:
            async with asyncio.timeout(_REPLACE_SECONDS), self._connecting:
                if self._link is old:
                    self._use(await self._connect(_REPLACE_SECONDS))
        except (MeshError, TimeoutError) as error:
            log.warning("connection not replaced yet", peer=old.lease.certificate.spiffe_id, detail=str(error))

    async def _connect(self, timeout: float) -> Link:
        credential = self._identity.current
        certificate = await self._take_leaf(credential, timeout)
        try:
            return await self._appraise(certificate, credential, timeout)
        except RemoteRefused as error:
            # It may have been renewed since the handshake: then the pin is to a leaf that it shows no more.
            again = await self._take_leaf(credential, timeout) if error.code is Code.UNAVAILABLE else certificate
            if again == certificate:
                raise
        return await self._appraise(again, credential, timeout)

    async def _take_leaf(self, credential: Credential, timeout: float) -> MeshCertificate:
        trust_domain = credential.certificate.trust_domain
        server_name = f"{self._role}.{trust_domain}"
        try:
            leaf = await fetch_leaf(
                self._target,
                server_name=server_name,
                timeout=timeout,
                ca_pem=pem_of(self._identity.ca_certificate),
                key_pem=credential.key_pem,
                certificate_pem=credential.certificate.pem,
            )
        except CertificateRefused as refusal:
            await name_stranger(self._target, server_name, timeout, refusal)
            raise
        with named_if_refused(self._target, leaf):
            certificate = self._judge.certificate(leaf)
            if (certificate.role, certificate.trust_domain) != (self._role, trust_domain):
                raise CertificateNotAccepted(f"{self._target} is {certificate.spiffe_id}, not a {self._role}")
        return certificate

    async def _appraise(self, certificate: MeshCertificate, credential: Credential, timeout: float) -> Link:
        """Open a channel to that very key; appraise its evidence, and present this service's."""
        channel = open_channel(
            self._target,
            root_pem=certificate.pem,
            server_name=certificate.server_name,
            key_pem=credential.key_pem,
            certificate_pem=credential.certificate.pem,
            answer_bytes=self._answer_bytes,
        )
        stub = evidence_pb2_grpc.EvidenceServiceStub(channel)
        try:
            with remote_errors():
                theirs = await stub.GetEvidence(
                    evidence_pb2.GetEvidenceRequest(digest=certificate.evidence_digest or b""), timeout=timeout
                )
                with named_if_refused(self._target, certificate.der):
                    lease = self._judge.lease(certificate, theirs.document)
                accepted = await stub.PresentEvidence(
                    evidence_pb2.PresentEvidenceRequest(document=credential.evidence.document), timeout=timeout
                )
            if lease.policy is not self._judge.policy:
                # Whoever is not connected yet is not judged again, and the peer chooses how long its answers take.
                lease = self._judge.lease(certificate, theirs.document)
        except BaseException:
            await channel.close(None)
            raise
        self.refusal = None
        log.info("peer appraised", peer=certificate.spiffe_id, until=int(lease.until))
        return Link(channel, lease, credential, accepted.lease_until_ms / 1000, self._judge, self._forgotten)

    def _forgotten(self, link: Link) -> None:
        """Connect anew, evidence and all, for the next call when the peer no longer knows this service."""
        if self._link is link:
            log.info("the peer wants evidence again", peer=link.lease.certificate.spiffe_id)
            self._link = None
            self._retired.append(link)

    def _use(self, link: Link) -> None:
        """Use the new channel from now on; what still runs on the old one goes on for as long as it is believed."""
        old, self._link = self._link, link
        if old is not None:
            self._retired.append(old)

    def _drop(self, link: Link) -> None:
        """End a link and what runs on it."""
        if self._link is link:
            self._link = None
        else:
            self._retired.remove(link)
        self._start(link.close())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _hand_over(link: Link, following: Credential) -> None:
    """Name the next key to the peer. Without it the link ends with the certificate that it began with."""
    try:
        await link.hand_over(following)
    except MeshError as error:
        log.warning(
            "successor not taken", peer=link.lease.certificate.spiffe_id, reason=error.reason, detail=str(error)
        )
