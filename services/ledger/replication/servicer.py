"""Wire to domain; decides nothing but who may ask: the other members."""

from __future__ import annotations

from collections.abc import AsyncIterator

from teemesh.ledger.v1 import replication_pb2 as pb
from teemesh.ledger.v1 import replication_pb2_grpc as pb_grpc

from libs.errors import Code, MeshError
from libs.rpc.calls import Context
from libs.rpc.policies import MethodRule, ServiceBinding, current_caller
from services.ledger.replication.exchange import NOTHING_REACHED, Ballot, Heading, Taken
from services.ledger.replication.follower import Follower
from services.ledger.replication.frame_files import FrameName
from services.ledger.replication.keyring_copy import MAX_BYTES, KeyringCopy, KeyringMalformed
from services.ledger.replication.leading import Known, Leading
from services.ledger.replication.others import PIECE_BYTES
from services.ledger.replication.reach import Reach
from services.ledger.replication.replica import AppendMalformed
from services.ledger.replication.settings import Replication
from services.ledger.replication.signing import Signing, TreeNotTaken
from services.ledger.storage import frames

_SERVICE = "teemesh.ledger.v1.LedgerReplicationService"
_MEMBERS = MethodRule(roles=frozenset({"ledger"}))
_ANYONE = MethodRule(roles=frozenset({"ledger", "router", "kms", "registry", "job", "operator", "auditor"}))
_MOST_BYTES = frames.MAX_SIZE + PIECE_BYTES

METHODS = {
    f"/{_SERVICE}/AskVote": _MEMBERS,
    f"/{_SERVICE}/AppendFrames": _MEMBERS,
    f"/{_SERVICE}/KeepKeyring": _MEMBERS,
    f"/{_SERVICE}/ReadKeyring": _MEMBERS,
    f"/{_SERVICE}/ShowTree": _MEMBERS,
    f"/{_SERVICE}/LookAround": _MEMBERS,
    f"/{_SERVICE}/GetStanding": _ANYONE,
}


class NotAMember(MeshError):
    """The caller is a ledger, but none of this log's members."""

    code = Code.PERMISSION_DENIED
    reason = "NOT_A_MEMBER"


class MemberOfAnotherLog(MeshError):
    """The caller's log began otherwise than this one: give all members one seed policy."""

    reason = "MEMBER_OF_ANOTHER_LOG"


class ReplicationServicer(pb_grpc.LedgerReplicationServiceServicer):
    """See `replication.proto`."""

    def __init__(self, settings: Replication, own: str, log_digest: bytes, follower: Follower) -> None:
        self._others = frozenset(each.instance for each in settings.others(own))
        self._log = log_digest
        self._follower = follower
        self._leading: Leading | None = None
        self._reach: Reach | None = None
        self._signing: Signing | None = None

    def looks(self, reach: Reach) -> None:
        """This member can look around from now on. Until then it says that it reaches nothing."""
        self._reach = reach

    def signs(self, signing: Signing) -> None:
        """This member signs what it is shown from now on. Until then it takes no tree."""
        self._signing = signing

    def writes(self, leading: Leading) -> None:
        """This member writes from now on."""
        self._leading = leading

    async def AskVote(  # noqa: N802
        self, request: pb.AskVoteRequest, context: Context
    ) -> pb.AskVoteResponse:
        candidate = self._member(request.log)
        ballot = Ballot(request.epoch, request.last_epoch, request.size)
        vote = await self._follower.vote(candidate, ballot, trial=request.trial)
        epoch, generation = vote.keyring
        return pb.AskVoteResponse(
            granted=vote.granted,
            epoch=vote.epoch,
            settled=vote.settled,
            keyring_epoch=epoch,
            keyring_generation=generation,
            last_epoch=vote.extent.last_epoch,
            size=vote.extent.size,
        )

    async def AppendFrames(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.AppendFramesRequest], context: Context
    ) -> pb.AppendFramesResponse:
        heading, data = None, bytearray()
        async for part in request_iterator:
            if (part.WhichOneof("part") == "heading") != (heading is None):
                raise AppendMalformed("a heading comes first, once, and then frames")
            heading = heading or part.heading
            data += part.frames
            if len(data) > _MOST_BYTES:
                raise AppendMalformed(f"at most {_MOST_BYTES} bytes are taken at once")
        if heading is None:
            raise AppendMalformed("a heading comes first, once, and then frames")
        taken = await self._follower.take(self._member(heading.log), _heading(heading), bytes(data))
        return _wire_taken(taken)

    async def KeepKeyring(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.KeepKeyringRequest], context: Context
    ) -> pb.KeepKeyringResponse:
        first, content = None, bytearray()
        async for part in request_iterator:
            first = first or part
            content += part.content
            if len(content) > MAX_BYTES or (part.epoch, part.generation) != (first.epoch, first.generation):
                raise KeyringMalformed(f"a keyring is one writer's, and has at most {MAX_BYTES} bytes")
        if first is None:
            raise KeyringMalformed("there is no keyring in it")
        copy = KeyringCopy(first.epoch, first.generation, bytes(content))
        epoch = await self._follower.keep_keyring(self._member(first.log), copy)
        return pb.KeepKeyringResponse(epoch=epoch)

    async def ReadKeyring(  # noqa: N802
        self, request: pb.ReadKeyringRequest, context: Context
    ) -> AsyncIterator[pb.ReadKeyringResponse]:
        self._member(request.log)
        copy = self._follower.keyring
        for start in range(0, max(len(copy.content), 1), PIECE_BYTES):
            yield pb.ReadKeyringResponse(
                epoch=copy.epoch, generation=copy.generation, content=copy.content[start : start + PIECE_BYTES]
            )

    async def ShowTree(  # noqa: N802
        self, request: pb.ShowTreeRequest, context: Context
    ) -> pb.ShowTreeResponse:
        self._member(request.log)
        if self._signing is None:
            raise TreeNotTaken("this member does not serve yet")
        await self._signing.take(request.note, witnessed=request.witnessed)
        return pb.ShowTreeResponse()

    async def LookAround(  # noqa: N802
        self, request: pb.LookAroundRequest, context: Context
    ) -> pb.LookAroundResponse:
        self._member(request.log)
        reached = NOTHING_REACHED if self._reach is None else await self._reach.look()
        return pb.LookAroundResponse(witnesses=reached.witnesses, kms=reached.kms, broker=reached.broker)

    async def GetStanding(  # noqa: N802
        self, request: pb.GetStandingRequest, context: Context
    ) -> pb.GetStandingResponse:
        follower, leading = self._follower, self._leading
        writes = leading is not None and leading.is_heard()
        return pb.GetStandingResponse(
            role=pb.MEMBER_ROLE_WRITER if writes else pb.MEMBER_ROLE_FOLLOWER,
            epoch=follower.epoch,
            writer=follower.allegiance.writer,
            size=follower.size,
            committed=follower.committed,
            others=[] if leading is None else [_wire_known(each) for each in leading.known()],
        )

    def _member(self, log_digest: bytes) -> str:
        """Return which other member calls. Raises `NotAMember`, `MemberOfAnotherLog`."""
        instance = current_caller().instance
        if instance not in self._others:
            raise NotAMember(f"{instance} is no other member of this log")
        if log_digest != self._log:
            raise MemberOfAnotherLog(f"the log.json of {instance} is another: give all members one seed policy")
        return instance


def replication_binding(servicer: ReplicationServicer) -> ServiceBinding:
    return ServiceBinding(
        name=_SERVICE,
        add=lambda server: pb_grpc.add_LedgerReplicationServiceServicer_to_server(servicer, server),
        methods=METHODS,
    )


def _heading(wire: pb.AppendHeading) -> Heading:
    return Heading(
        epoch=wire.epoch,
        previous=FrameName(wire.previous.size, wire.previous.hash),
        committed=wire.committed,
        begun=wire.begun,
    )


def _wire_taken(taken: Taken) -> pb.AppendFramesResponse:
    return pb.AppendFramesResponse(
        epoch=taken.epoch,
        held=None if taken.held is None else _wire_name(taken.held),
        recent=[_wire_name(name) for name in taken.recent],
    )


def _wire_known(known: Known) -> pb.OtherMember:
    return pb.OtherMember(instance=known.instance, held=known.held, answers=known.answers)


def _wire_name(name: FrameName) -> pb.FrameName:
    return pb.FrameName(size=name.size, hash=name.hash)
