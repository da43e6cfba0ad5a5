"""It is responsible for asking another member: over its appraised channel, each call with a deadline.

Who answers is settled by the certificate: an address that leads to another instance than the one configured there is
refused, or one member could be counted as two.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import grpc.aio
from teemesh.ledger.v1 import replication_pb2 as pb
from teemesh.ledger.v1 import replication_pb2_grpc as pb_grpc

from libs.errors import Code, MeshError
from libs.rpc.errors import remote_errors
from services.ledger.replication.exchange import Ballot, Heading, Reached, Taken, Vote
from services.ledger.replication.frame_files import FrameName
from services.ledger.replication.keyring_copy import MAX_BYTES, KeyringCopy, KeyringMalformed
from services.ledger.replication.promise import Extent

PIECE_BYTES = 1 << 20
_APPEND_SECONDS = 10.0
_KEYRING_SECONDS = 10.0
_SHOW_SECONDS = 10.0
_REACH_SECONDS = 10.0
"""Longer than it asks around for itself."""


class AnotherMember(MeshError):
    """At a member's address another instance answers, or the ledger of another log."""

    code = Code.PERMISSION_DENIED
    reason = "ANOTHER_MEMBER"


class _Certificate(Protocol):
    @property
    def instance(self) -> str: ...


class _Lease(Protocol):
    @property
    def certificate(self) -> _Certificate: ...


class MemberPeer(Protocol):
    """A ledger as an appraised peer."""

    @property
    def lease(self) -> _Lease: ...

    async def channel(self, timeout: float) -> grpc.aio.Channel: ...


class OtherMember:
    """One of the other members."""

    def __init__(self, instance: str, peer: MemberPeer, log_digest: bytes, vote_seconds: float) -> None:
        """`log_digest` is SHA-256 of `log.json`, which is one on all members; `vote_seconds` is how long a vote, which
        is synced before it is told, may take.
        """
        self.instance = instance
        self._peer = peer
        self._log = log_digest
        self._vote_seconds = vote_seconds

    async def vote(self, ballot: Ballot, *, trial: bool) -> Vote:
        """Ask for its vote. Raises `MeshError`."""
        stub = await self._stub(self._vote_seconds)
        request = pb.AskVoteRequest(
            log=self._log, epoch=ballot.epoch, last_epoch=ballot.last_epoch, size=ballot.size, trial=trial
        )
        with remote_errors():
            answer = await stub.AskVote(request, timeout=self._vote_seconds)
        keyring, extent = (answer.keyring_epoch, answer.keyring_generation), Extent(answer.last_epoch, answer.size)
        return Vote(answer.granted, answer.epoch, answer.settled, keyring, extent)

    async def append(self, heading: Heading, data: bytes) -> Taken:
        """Give it frames, perhaps none. Raises `MeshError`."""
        stub = await self._stub(_APPEND_SECONDS)

        async def pieces() -> AsyncIterator[pb.AppendFramesRequest]:
            yield pb.AppendFramesRequest(heading=_wire_heading(self._log, heading))
            for start in range(0, len(data), PIECE_BYTES):
                yield pb.AppendFramesRequest(frames=data[start : start + PIECE_BYTES])

        with remote_errors():
            answer = await stub.AppendFrames(pieces(), timeout=_APPEND_SECONDS)
        held = FrameName(answer.held.size, answer.held.hash) if answer.HasField("held") else None
        return Taken(answer.epoch, held, tuple(FrameName(each.size, each.hash) for each in answer.recent))

    async def keep_keyring(self, copy: KeyringCopy) -> int:
        """Give it the keyring; return the epoch that it has promised itself to. Raises `MeshError`."""
        stub = await self._stub(_KEYRING_SECONDS)

        async def pieces() -> AsyncIterator[pb.KeepKeyringRequest]:
            for start in range(0, max(len(copy.content), 1), PIECE_BYTES):
                yield pb.KeepKeyringRequest(
                    log=self._log,
                    epoch=copy.epoch,
                    generation=copy.generation,
                    content=copy.content[start : start + PIECE_BYTES],
                )

        with remote_errors():
            answer = await stub.KeepKeyring(pieces(), timeout=_KEYRING_SECONDS)
        return int(answer.epoch)

    async def read_keyring(self) -> KeyringCopy:
        """Return its copy of the keyring. Raises `MeshError`."""
        stub = await self._stub(_KEYRING_SECONDS)
        copy = KeyringCopy(0, 0, b"")
        content = bytearray()
        call = stub.ReadKeyring(pb.ReadKeyringRequest(log=self._log), timeout=_KEYRING_SECONDS)
        with remote_errors():
            async for piece in call:
                copy = KeyringCopy(piece.epoch, piece.generation, b"")
                content += piece.content
                if len(content) > MAX_BYTES:
                    call.cancel()
                    raise KeyringMalformed(f"a keyring has at most {MAX_BYTES} bytes")
        return KeyringCopy(copy.epoch, copy.generation, bytes(content))

    async def show(self, note: bytes, *, witnessed: bool) -> None:
        """Show it a tree that is signed here or, with `witnessed`, cosigned. Raises `MeshError`."""
        stub = await self._stub(_SHOW_SECONDS)
        request = pb.ShowTreeRequest(log=self._log, note=note, witnessed=witnessed)
        with remote_errors():
            await stub.ShowTree(request, timeout=_SHOW_SECONDS)

    async def reached(self) -> Reached:
        """Have it look what it reaches, now. Raises `MeshError`."""
        stub = await self._stub(_REACH_SECONDS)
        with remote_errors():
            answer = await stub.LookAround(pb.LookAroundRequest(log=self._log), timeout=_REACH_SECONDS)
        return Reached(answer.witnesses, answer.kms, answer.broker)

    async def _stub(self, timeout: float) -> pb_grpc.LedgerReplicationServiceStub:
        channel = await self._peer.channel(timeout)
        answering = self._peer.lease.certificate.instance
        if answering != self.instance:
            raise AnotherMember(f"{answering} answers where {self.instance} is configured")
        return pb_grpc.LedgerReplicationServiceStub(channel)


def _wire_heading(log_digest: bytes, heading: Heading) -> pb.AppendHeading:
    return pb.AppendHeading(
        log=log_digest,
        epoch=heading.epoch,
        previous=pb.FrameName(size=heading.previous.size, hash=heading.previous.hash),
        committed=heading.committed,
        begun=heading.begun,
    )
