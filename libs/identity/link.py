"""It is responsible for one connection to an appraised peer, and for what it rests on while both sides renew.

Each side names its next key over the connection, under the key that the connection showed, and the other appraises it.
So what runs here goes on for as long as both are believed, whatever becomes of the certificates that it began with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import grpc.aio
import structlog
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc

from libs.errors import MeshError
from libs.identity.handover import Successor, name_successor
from libs.identity.judge import Judge
from libs.identity.lease import Lease, longer
from libs.identity.renewal import Credential
from libs.rpc.errors import remote_errors
from libs.rpc.watched import WatchedChannel

_CALL_SECONDS = 10.0
_RETRY_SECONDS = 1.0
_SILENCE_SECONDS = 25.0
"""The server gives a sign of life every ten seconds."""
_MARGIN_SECONDS = 30.0
_MARGIN_SHARE = 0.25

log = structlog.get_logger()


class Link:
    """A channel to one key of a peer."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        lease: Lease,
        credential: Credential,
        accepted_until: float,
        judge: Judge,
        refused: Callable[[Link], None],
    ) -> None:
        """`refused` is called when a call was answered that the server does not know this service."""
        self._bare = channel
        self.channel = WatchedChannel(channel, lambda: refused(self))
        self.lease = lease
        """Of the key that the connection showed, as judged last."""
        self.credential = credential
        """What the connection shows of this service."""
        self.is_superseded = False
        """The peer has announced another key: new calls belong on a connection to that one."""
        self._newest = lease
        self._judged_under = lease.policy
        self._presented = credential
        self._accepted_until = accepted_until
        self._judge = judge
        self._own_until = self.until
        self._margin = min(_MARGIN_SECONDS, (self.until - judge.clock()) * _MARGIN_SHARE)
        self._handing_over = asyncio.Lock()
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    @property
    def until(self) -> float:
        """When the connection ends unless one side names another key: as long as both sides believe each other."""
        return min(self._newest.until, self._accepted_until)

    @property
    def takes_calls_until(self) -> float:
        """When nothing new may start here: what the connection began with has ended, though what runs may go on."""
        return min(self.until, self._own_until)

    @property
    def is_ready(self) -> bool:
        """Whether the connection is there; if not, what ran on it has failed already."""
        return self._bare.get_state() is grpc.ChannelConnectivity.READY

    @property
    def is_over(self) -> bool:
        """Whether nothing may, can or will run here any more, given that no new calls come.

        An idle connection is kept until what it began with ends: somebody may be about to use it.
        """
        now = self._judge.clock()
        return not self.is_ready or self.until <= now or (not self.channel.running and self._own_until <= now)

    def is_ageing(self, credential: Credential) -> bool:
        """Whether another connection should take the new calls: one side has a new key, or the end is near."""
        near = self.until - self._margin <= self._judge.clock()
        return near or self.is_superseded or self.credential is not credential

    @property
    def is_overtaken(self) -> bool:
        """Whether policy has changed since the peer was judged: nothing may start here before it is judged again."""
        return self._judged_under is not self._judge.policy

    def require_not_named(self) -> None:
        """Raise if revocations name the peer, by what was found of it before."""
        self._judge.require_not_named(self._newest, self.lease.certificate)

    def judge_again(self) -> None:
        """Judge the peer's newest key, and the one that the connection showed, under the policy of now.

        Raises what `appraise_peer` raises.
        """
        self._judge.require_not_revoked(self.lease.certificate)
        judged = self._judge.lease(self._newest.certificate, self._newest.evidence.document)
        if self._newest is self.lease:
            self.lease = judged
        self._newest = judged
        self._judged_under = judged.policy

    async def hand_over(self, following: Credential) -> None:
        """Have the server let this connection rest on a later credential. Raises its refusal."""
        if self._presented is following or self._handing_over.locked():
            return
        async with self._handing_over:
            successor = name_successor(self.credential, following)
            stub = evidence_pb2_grpc.EvidenceServiceStub(self._bare)
            with remote_errors():
                accepted = await stub.PresentEvidence(
                    evidence_pb2.PresentEvidenceRequest(
                        document=successor.document,
                        next_certificate=successor.certificate,
                        signature=successor.signature,
                    ),
                    timeout=_CALL_SECONDS,
                )
            self._presented = following
            self._accepted_until = max(self._accepted_until, accepted.lease_until_ms / 1000)

    async def close(self) -> None:
        """End the connection and what runs on it."""
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await self._bare.close(None)

    async def _watch(self) -> None:
        """Take what the server announces, while there is a connection that could rest on it."""
        while self.is_ready:
            try:
                await self._take_successors()
            except TimeoutError:
                self.channel.is_away = True
                log.warning("the peer's renewals fell silent", peer=self.lease.certificate.spiffe_id)
            except MeshError as error:
                log.info("the peer's renewals are not heard", reason=error.reason, detail=str(error))
            await asyncio.sleep(_RETRY_SECONDS)

    async def _take_successors(self) -> None:
        shown = self.lease.certificate.spki_sha256
        stub = evidence_pb2_grpc.EvidenceServiceStub(self._bare)
        call = stub.WatchRenewals(evidence_pb2.WatchRenewalsRequest(spki_sha256=shown))
        try:
            while True:
                with remote_errors():
                    async with asyncio.timeout(_SILENCE_SECONDS):
                        message = await call.read()
                if not isinstance(message, evidence_pb2.WatchRenewalsResponse):
                    return
                self.channel.is_away = False
                if message.HasField("successor"):
                    said = message.successor
                    self._take(Successor(said.certificate, said.document, said.signature))
        finally:
            call.cancel()

    def _take(self, successor: Successor) -> None:
        """Rest on the peer's next key if it earns a lease; if not, this one ends with what it has."""
        shown = self.lease.certificate
        try:
            lease = self._judge.successor(successor, shown)
        except MeshError as error:
            log.warning("successor refused", peer=shown.spiffe_id, reason=error.reason, detail=str(error))
            return
        self._newest = longer(self._newest, lease)
        self.is_superseded = True
        log.info("the peer renewed", peer=shown.spiffe_id, until=int(self.until))
