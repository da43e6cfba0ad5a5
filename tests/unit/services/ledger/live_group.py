"""A log on several members, each a process of its own; KMS, guest agents and nats-server around them are real."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from itertools import permutations

import grpc.aio
from teemesh.ledger.v1 import replication_pb2, replication_pb2_grpc

from libs.errors import MeshError
from libs.identity.ledger_writer import LedgerWriter
from libs.identity.member import Member
from libs.identity.peers import Peer
from libs.rpc.errors import remote_errors
from services.ledger.replication.cutting import START_ANEW
from tests.fakes.cuttable import Way, way_to
from tests.fakes.joined_mesh import JoinedMesh
from tests.fakes.ports import free_port

from .live import LedgerProcess, LiveMesh, Place, Surroundings

_LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 60.0


class LiveGroup(LiveMesh):
    """The mesh around a log with several members."""

    def __init__(self, mesh: JoinedMesh, members: int = 3) -> None:
        super().__init__(mesh)
        self.names = tuple(f"member-{number}" for number in range(1, members + 1))
        self.targets = {name: f"127.0.0.1:{free_port()}" for name in self.names}
        self.processes: dict[str, LedgerProcess] = {}
        self.places: dict[str, Place] = {}
        self.ways: dict[tuple[str, str], Way] = {}
        """From one member to another."""
        self.to_broker: dict[str, Way] = {}
        """From each member to nats-server."""

    async def _configure(self, stack: AsyncExitStack, surroundings: Surroundings) -> None:
        for one, other in permutations(self.names, 2):
            self.ways[one, other] = await stack.enter_async_context(way_to(self.targets[other]))
        for name, target in self.targets.items():
            folder = self.mesh.folder / name
            folder.mkdir()
            guest = await stack.enter_async_context(self.mesh.guest(self.mesh.tds["ledger"]))
            https = f"127.0.0.1:{free_port()}"
            self.places[name] = place = Place(name, target, https, folder, guest, folder / "log")
            self.processes[name] = LedgerProcess(folder)
            replication = {
                "members": [{"instance": each, "address": self._address(name, each)} for each in self.names],
                "heartbeat_seconds": 0.2,
                "election_seconds": 1.5,
            }
            self.to_broker[name] = await stack.enter_async_context(way_to(f"127.0.0.1:{self.broker.nats.port}"))
            config = self.config(place, surroundings)
            events = {**config["events"], "nats_url": f"tls://{self.to_broker[name].address}"}
            self.processes[name].configure({**config, "events": events, "replication": replication})

    def _address(self, name: str, other: str) -> str:
        """Where a member reaches another; its own address is its own."""
        return self.targets[name] if name == other else self.ways[name, other].address

    def isolate(self, name: str) -> None:
        """Cut a member off from the other members, not from anyone else."""
        for pair, way in self.ways.items():
            if name in pair:
                way.cut()

    def mend(self) -> None:
        for way in self.ways.values():
            way.mend()

    async def stop(self) -> None:
        for process in self.processes.values():
            await process.kill()

    def ledger(self, member: Member) -> Peer | LedgerWriter:
        return member.ledger(tuple(self.targets.values()))

    async def start_all(self) -> None:
        """Start every member that does not run, and wait until they serve."""
        await asyncio.gather(*(each.start() for each in self.processes.values() if not each.runs))

    async def standing(self, member: Member, name: str) -> replication_pb2.GetStandingResponse | None:
        """What one of them says of itself; None where it does not answer."""
        try:
            channel = await member.peer("ledger", self.targets[name]).channel(2)
            stub = replication_pb2_grpc.LedgerReplicationServiceStub(channel)
            with remote_errors():
                return await stub.GetStanding(replication_pb2.GetStandingRequest(), timeout=2)
        except (MeshError, grpc.aio.AioRpcError):
            return None

    async def writer(self, member: Member, *, above_epoch: int = 0) -> str:
        """Wait until one writes in an epoch above that, and return its name."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                for name, process in self.processes.items():
                    standing = await self.standing(member, name) if process.runs else None
                    if (
                        standing is not None
                        and standing.role == replication_pb2.MEMBER_ROLE_WRITER
                        and standing.epoch > above_epoch
                    ):
                        return name
                await asyncio.sleep(_LOOK_SECONDS)

    async def until_committed(self, member: Member, name: str, size: int) -> None:
        """Wait until a member knows that a majority holds so many leaves."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                standing = await self.standing(member, name)
                if standing is not None and standing.committed >= size:
                    return
                await asyncio.sleep(_LOOK_SECONDS)

    async def kill_member(self, name: str) -> None:
        assert await self.processes[name].kill() == -signal.SIGKILL

    async def start_anew(self, name: str, *, ready: bool = True) -> None:
        """Wait until a member ends by itself, to be started again, and start it."""
        code, said = await self.processes[name].ended()
        assert code == START_ANEW, said
        await self.processes[name].start(ready=ready)
