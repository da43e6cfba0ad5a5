"""One member never counts as two: who answers is settled by its certificate, before it is asked anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc.aio
import pytest
from teemesh.ledger.v1 import replication_pb2 as pb
from teemesh.ledger.v1 import replication_pb2_grpc as pb_grpc

from libs.rpc.calls import Context
from services.ledger.replication.group import others_of
from services.ledger.replication.keyring_copy import NO_KEYRING
from services.ledger.replication.others import AnotherMember, OtherMember
from services.ledger.replication.promise import Extent
from services.ledger.replication.settings import MemberAddress, Replication

from .members import ballot, heading


@dataclass(frozen=True)
class Certificate:
    instance: str


@dataclass(frozen=True)
class Lease:
    certificate: Certificate


class Answering:
    """Whoever answers at the address, appraised; at port 1 nobody listens."""

    def __init__(self, instance: str, port: int = 1) -> None:
        self.lease = Lease(Certificate(instance))
        self.timeouts: list[float] = []
        self.channels: list[grpc.aio.Channel] = []
        self._port = port

    async def channel(self, timeout: float) -> grpc.aio.Channel:
        self.timeouts.append(timeout)
        self.channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{self._port}"))
        return self.channels[-1]


class Voter(pb_grpc.LedgerReplicationServiceServicer):
    """Says how long it is given, in the place of its epoch."""

    async def AskVote(  # noqa: N802
        self, request: pb.AskVoteRequest, context: Context
    ) -> pb.AskVoteResponse:
        return pb.AskVoteResponse(epoch=round(context.time_remaining()), last_epoch=3, size=9)


CALLS: tuple[Callable[[OtherMember], Awaitable[object]], ...] = (
    lambda other: other.vote(ballot(1), trial=True),
    lambda other: other.vote(ballot(1), trial=False),
    lambda other: other.append(heading(1), b""),
    lambda other: other.keep_keyring(NO_KEYRING),
    lambda other: other.read_keyring(),
    lambda other: other.show(b"a note", witnessed=True),
    lambda other: other.reached(),
)


@pytest.mark.parametrize("call", CALLS)
async def test_another_member_at_a_members_address_is_asked_nothing(
    call: Callable[[OtherMember], Awaitable[object]],
) -> None:
    with pytest.raises(AnotherMember):
        await call(OtherMember("two", Answering("three"), bytes(32), 1.0))


async def test_each_other_member_is_sought_at_its_address_and_votes_as_slowly_as_is_configured() -> None:
    settings = Replication(tuple(MemberAddress(name, f"{name}:1") for name in ("one", "two", "three")), 0.5, 70.0)
    peers = {f"{name}:1": Answering("another") for name in ("two", "three")}
    others = others_of(settings, "one", lambda address: peers[address], bytes(32))
    assert [other.instance for other in others] == ["two", "three"]
    for other in others:
        with pytest.raises(AnotherMember):
            await other.vote(ballot(1), trial=True)
    assert [peer.timeouts for peer in peers.values()] == [[70.0], [70.0]]


async def test_a_disk_may_take_as_long_for_a_vote_as_is_configured() -> None:
    server = grpc.aio.server()
    voter = Voter()  # type: ignore[abstract]  # The other methods stay unimplemented.
    pb_grpc.add_LedgerReplicationServiceServicer_to_server(voter, server)
    peer = Answering("two", server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    vote = await OtherMember("two", peer, bytes(32), 500.0).vote(ballot(1), trial=False)
    await peer.channels[0].close()
    await server.stop(0)
    assert peer.timeouts == [500.0]
    # gRPC rounds what is left of a deadline up.
    assert 400 < vote.epoch < 510
    assert vote.extent == Extent(3, 9)
