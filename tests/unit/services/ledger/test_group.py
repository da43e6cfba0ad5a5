"""A log on three members, each a process: one writes, a majority decides, and nothing acknowledged is ever lost."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256

import grpc.aio
import pytest
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from teemesh.ledger.v1 import replication_pb2 as pb
from teemesh.ledger.v1 import replication_pb2_grpc as pb_grpc

from libs.identity.member import Member
from libs.rpc.calls import Context
from libs.rpc.errors import reason_of
from libs.transparency.leaf import Kind
from libs.transparency.note import VerifierKey
from services.ledger.checkpoints.witnesses import open_witnesses
from services.ledger.config import WitnessSettings
from services.ledger.replication.cutting import START_ANEW
from services.ledger.replication.servicer import ReplicationServicer, replication_binding
from services.ledger.storage import description
from tests.fakes.joined_mesh import JoinedMesh
from tests.fakes.running_witness import RunningWitness
from tests.unit.services.witness.conftest import KEY, GrowingLog

from .live_group import PATIENCE_SECONDS, LiveGroup
from .test_process import ORIGIN, Client, check_every_receipt_is_there_once, commit, index_of, parsed

_LOOK_SECONDS = 0.05


@pytest.fixture
async def live(mesh: JoinedMesh) -> AsyncIterator[LiveGroup]:
    async with LiveGroup(mesh).running() as running:
        assert isinstance(running, LiveGroup)
        yield running


class Stand:
    """This test in the place of a member, whose certificate it has."""

    def __init__(self, live: LiveGroup, member: Member, target: str) -> None:
        self._live = live
        self._member = member
        self._target = target

    async def stub(self) -> pb_grpc.LedgerReplicationServiceStub:
        channel = await self._member.peer("ledger", self._live.targets[self._target]).channel(PATIENCE_SECONDS)
        return pb_grpc.LedgerReplicationServiceStub(channel)

    @property
    def log(self) -> bytes:
        described = description.read(self._live.places[self._target].data_dir)
        return sha256(described.document()).digest()

    async def vote(self, epoch: int, *, log: bytes | None = None) -> pb.AskVoteResponse:
        """Ask for a vote, with a log as long as any."""
        request = pb.AskVoteRequest(log=log or self.log, epoch=epoch, last_epoch=2**32, size=2**32)
        return await (await self.stub()).AskVote(request, timeout=5)

    def trial(self, epoch: int) -> pb.AskVoteRequest:
        return pb.AskVoteRequest(log=self.log, epoch=epoch, last_epoch=2**32, size=2**32, trial=True)

    async def look(self) -> pb.LookAroundResponse:
        return await (await self.stub()).LookAround(pb.LookAroundRequest(log=self.log), timeout=10)

    async def show(self, note: bytes) -> pb.ShowTreeResponse:
        return await (await self.stub()).ShowTree(pb.ShowTreeRequest(log=self.log, note=note), timeout=10)

    async def append(self, epoch: int, frames: bytes = b"") -> pb.AppendFramesResponse:
        heading = pb.AppendHeading(log=self.log, epoch=epoch, previous=pb.FrameName(hash=bytes(32)))

        async def parts() -> AsyncIterator[pb.AppendFramesRequest]:
            yield pb.AppendFramesRequest(heading=heading)
            yield pb.AppendFramesRequest(frames=frames)

        return await (await self.stub()).AppendFrames(parts(), timeout=5)


class Bystander(ReplicationServicer):
    """A member that has promised nothing, holds nothing, and says so."""

    def __init__(self) -> None:
        """It has no log."""

    async def AskVote(  # noqa: N802
        self, request: pb.AskVoteRequest, context: Context
    ) -> pb.AskVoteResponse:
        return pb.AskVoteResponse()


@asynccontextmanager
async def bystanders(live: LiveGroup, *names: str) -> AsyncIterator[None]:
    """Have these members answer what another asks when it starts, and do nothing else."""
    async with AsyncExitStack() as stack:
        for name in names:
            joining = live.mesh.member("ledger", live.kms, instance=name, listen=live.targets[name])
            member = await stack.enter_async_context(joining)
            serving = await stack.enter_async_context(member.serve([replication_binding(Bystander())]))
            serving.ready()
        yield


@asynccontextmanager
async def standing_in(live: LiveGroup, name: str, target: str, role: str = "ledger") -> AsyncIterator[Stand]:
    """Be a member towards another one."""
    async with live.mesh.member(role, live.kms, instance=name) as member:
        yield Stand(live, member, target)


async def test_a_member_takes_over_when_the_writer_is_killed_and_nothing_acknowledged_is_lost(live: LiveGroup) -> None:
    async with live.router() as router:
        client = Client(router)
        await live.start_all()
        vault = await client.open_vault()
        first = [await commit(router, vault, number) for number in range(5)]
        token = (await client.tail(ledger_pb2.TailRequest(from_index=0)))[-1].token
        writer = await live.writer(live.member)
        running = [asyncio.create_task(commit(router, vault, 100 + number)) for number in range(100)]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        await live.kill_member(writer)
        committed = [*first, *await asyncio.gather(*running)]
        assert await client.open_vault() == vault
        assert await client.tail(ledger_pb2.TailRequest(token=token))  # It is the same log, only longer.

        batches = await client.tail(ledger_pb2.TailRequest(from_index=0, max_batch=50))
        entries = [entry for batch in batches for entry in batch.entries]
        assert [entry.index for entry in entries] == list(range(len(entries)))
        check_every_receipt_is_there_once(entries, committed, vault)
        assert not {Kind.GAP, Kind.CONFLICT, Kind.QUARANTINE} & {public.kind for _, public in parsed(entries)}
        # Whoever is left serves the same, and says who writes to whom it cannot serve.
        (follower,) = {*live.names} - {writer, await live.writer(live.member)}
        await live.until_committed(live.member, follower, index_of(committed[-1]) + 1)
        stub = ledger_pb2_grpc.LedgerServiceStub(
            await router.member.peer("ledger", live.targets[follower]).channel(PATIENCE_SECONDS)
        )
        for each in (committed[0], committed[-1]):
            entry = await stub.GetEntry(ledger_pb2.GetEntryRequest(entry_id=each.entry_id), timeout=5)
            assert entry.entry.index == index_of(each)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.OpenVault(ledger_pb2.OpenVaultRequest(tenant_id="ab" * 16), timeout=5)
        assert reason_of(refused.value) == "NOT_WRITER"
        with pytest.raises(grpc.aio.AioRpcError) as behind:
            await stub.GetEntry(ledger_pb2.GetEntryRequest(index=10**6), timeout=5)
        assert reason_of(behind.value) == "LOG_BEHIND"


async def test_without_a_majority_nothing_is_acknowledged_and_with_one_it_goes_on(live: LiveGroup) -> None:
    async with live.router() as router:
        client = Client(router)
        await live.start_all()
        vault = await client.open_vault()
        await commit(router, vault, 1)
        writer = await live.writer(live.member)
        others = [name for name in live.names if name != writer]
        for name in others:
            await live.kill_member(name)
        waiting = asyncio.create_task(commit(router, vault, 2))
        # Alone it gives up, and starts as what it is: a follower without a writer.
        await live.start_anew(writer, ready=False)
        assert not waiting.done()
        await live.processes[others[0]].start()
        committed = await waiting
        assert index_of(committed) < (await client.tail(ledger_pb2.TailRequest(from_index=0)))[-1].log_size


async def test_a_writer_that_others_hear_and_that_loses_the_broker_lets_another_write(live: LiveGroup) -> None:
    async with live.router() as router:
        client = Client(router)
        await live.start_all()
        vault = await client.open_vault()
        await commit(router, vault, 1)
        writer = await live.writer(live.member)
        live.to_broker[writer].cut()
        waiting = asyncio.create_task(commit(router, vault, 2))
        code, said = await live.processes[writer].ended()
        assert (code, "WRITER_CUT_OFF" in said) == (START_ANEW, True), said
        await waiting
        assert await live.writer(live.member) != writer


async def test_a_member_that_is_elected_below_what_was_cosigned_writes_nothing(mesh: JoinedMesh) -> None:
    """The witness has seen five leaves; the members' disks, all of them, know of none."""
    seen, key = GrowingLog(ORIGIN).grow(5), VerifierKey(ORIGIN, KEY.public_key().public_bytes_raw())
    witness = RunningWitness(mesh.folder / "w", [{"origin": ORIGIN, "verifier_keys": [key.text()]}])
    group = LiveGroup(mesh)
    async with witness.running():
        told = WitnessSettings(witness.url, witness.keys[0].text(), witness.ca)
        async with open_witnesses([told]) as (cosigner,):
            await cosigner.add_checkpoint(seen.request(0, 5))
        group.witnesses.append(witness.settings)
        async with group.running(), asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*(each.start(ready=False) for each in group.processes.values()))
            ending = [asyncio.create_task(each.ended()) for each in group.processes.values()]
            ended, others = await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
            for each in others:
                each.cancel()
            code, said = ended.pop().result()
    assert (code, "LOG_ROLLED_BACK" in said, "witness.example/w1" in said) == (4, True, True), said


async def test_who_is_no_member_or_comes_from_the_past_changes_nothing(live: LiveGroup) -> None:
    await live.start_all()
    writer = await live.writer(live.member)
    standing = await live.standing(live.member, writer)
    assert standing is not None
    far_on = standing.epoch + 1000  # No elections come to that while this runs.
    gone, target = (name for name in live.names if name != writer)
    await live.kill_member(gone)
    await live.until_committed(live.member, target, 1)
    async with standing_in(live, gone, target) as stand:
        said = await stand.vote(far_on)
        assert not said.granted  # It hears its writer well.
        assert (said.last_epoch, said.size > 0) == (standing.epoch, True)
        assert not (await stand.append(standing.epoch)).HasField("held")
        assert not (await stand.append(standing.epoch - 1)).HasField("held")
        with pytest.raises(grpc.aio.AioRpcError) as other_log:
            await stand.vote(far_on, log=bytes(32))
        assert reason_of(other_log.value) == "MEMBER_OF_ANOTHER_LOG"
        reached = await stand.look()
        assert (reached.witnesses, reached.kms, reached.broker) == (True, True, True)
    for name, role, reason in (("stranger", "ledger", "NOT_A_MEMBER"), (gone, "router", "ROLE_NOT_ALLOWED")):
        async with standing_in(live, name, target, role) as stand:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stand.vote(far_on)
            assert reason_of(refused.value) == reason
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stand.append(far_on)
            assert reason_of(refused.value) == reason
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stand.look()
            assert reason_of(refused.value) == reason
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stand.show(b"a tree")
            assert reason_of(refused.value) == reason
    after = await live.standing(live.member, target)
    assert after is not None
    assert standing.epoch <= after.epoch < far_on


async def test_a_vote_is_not_given_twice_when_the_voter_dies_before_it_answers(live: LiveGroup) -> None:
    """It dies when the new promise is in place, and nobody was told of it."""
    voter, first, second = live.names
    async with bystanders(live, first, second):
        process = live.processes[voter]
        await process.start(command=("-m", "tests.faults.dying", "ledger"), options=("--step", "3", "--serving"))
        async with standing_in(live, first, voter) as stand:
            await _until_patience_ends(stand)
            process.send(signal.SIGUSR1)
            with pytest.raises(grpc.aio.AioRpcError):
                await stand.vote(7)
            assert (await process.ended())[0] == -signal.SIGKILL
        await process.start()
        async with standing_in(live, second, voter) as stand:
            await _until_patience_ends(stand, epoch=8)
            assert (await stand.vote(7)).granted is False
        async with standing_in(live, first, voter) as stand:
            assert (await stand.vote(7)).granted


async def _until_patience_ends(stand: Stand, epoch: int = 7) -> None:
    """Wait until the member gives its vote to somebody: there may have been a writer when it started."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if (await (await stand.stub()).AskVote(stand.trial(epoch), timeout=5)).granted:
                return
            await asyncio.sleep(_LOOK_SECONDS)
