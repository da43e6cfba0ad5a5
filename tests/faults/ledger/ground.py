"""A real ledger process over a real nats-server, writers that never rest, and an independent record of what they saw.

What is recorded: every entry's own bytes, what was acknowledged about it, every tree that was released, every leaf that
was ever read, and every number that the ledger must refuse. `prove` holds the log against it (I1, I2, I3, I5, I6).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.audit.log.reading import Question, read_log
from libs.errors import MeshError
from libs.events.connect import NatsLink, connect_nats
from libs.events.publish import Committed, EventSettings, LedgerUnavailable, Publisher, open_publisher
from libs.events.records import SALT_SIZE, Record, RecordHeader, open_record, parse_entry
from libs.events.sending import Timing
from libs.events.subjects import inbox_prefix
from libs.events.vault import VaultKey
from libs.identity.member import Member
from libs.transparency import checkpoint, leaf
from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind
from libs.transparency.merkle import CompactRange, leaf_hash
from services.cli.ledger.files import LogFolder
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh
from tests.fakes.ports import free_port
from tests.fakes.running_broker import RunningBroker, running_broker
from tests.faults.ledger.outcome import Outcome
from tests.faults.ledger_failover import open_vault
from tests.unit.services.ledger.live import LiveMesh, Router

PATIENCE_SECONDS = 60.0
_WRITERS = 6
_PAUSE_SECONDS = 0.02
_LOOK_SECONDS = 0.1
_SETTLE_SECONDS = 20.0
_CALL_SECONDS = 5.0
_NO_VAULT = VaultKey(b"\x0f" * 16, 1, bytes(32), "0f" * 16)


class BreakableMesh(LiveMesh):
    """A mesh whose broker can be killed, or stopped while its store is meddled with, and comes back where it was."""

    def __init__(self, mesh: JoinedMesh) -> None:
        super().__init__(mesh)
        self._ports = free_port(), free_port()
        self._stop: asyncio.Event
        self._life: asyncio.Task[None]

    @property
    def store(self) -> Path:
        """Where nats-server keeps the stream."""
        return self.broker.member.settings.state_dir / "jetstream"

    @asynccontextmanager
    async def publisher(
        self, member: Member, log_key: Ed25519PrivateKey, *, reserve_bytes: int = 0
    ) -> AsyncIterator[Publisher]:
        """One that sends again sooner than in production: what is lost is lost on purpose here."""
        settings = EventSettings(self.broker.url, self.broker.target, self.mesh.folder / f"{member.role}-outbox")
        async with open_publisher(
            member,
            settings,
            self.ledger(member),
            log_key=log_key,
            reserve_bytes=reserve_bytes,
            timing=Timing(resend_seconds=0.5),
        ) as publisher:
            yield publisher

    async def start_broker(self) -> None:
        self._stop, up = asyncio.Event(), asyncio.Event()
        self._life = asyncio.create_task(self._live(up))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await up.wait()

    async def stop_broker(self) -> None:
        self._stop.set()
        await self._life

    async def kill_broker(self) -> None:
        """Kill nats-server, and wait until its supervisor has another one answer."""
        before = self.broker.nats.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        await self.broker.nats.until_ended()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.broker.nats.until_ready()

    async def _live(self, up: asyncio.Event) -> None:
        target, nats = self._ports
        opened = running_broker(self.mesh, self.kms, listen=f"127.0.0.1:{target}", nats_port=nats)
        async with opened as self.broker:
            up.set()
            await self._stop.wait()

    @asynccontextmanager
    async def _broker(self) -> AsyncIterator[RunningBroker]:
        await self.start_broker()
        try:
            yield self.broker
        finally:
            await self.stop_broker()


@dataclass(slots=True)
class Seen:
    """What was seen from outside."""

    committed: list[Committed] = field(default_factory=list)
    late: set[bytes] = field(default_factory=set)
    """Entries that nobody acknowledged in time: their issuer sends them until they are in the log all the same."""
    trees: set[tuple[int, bytes]] = field(default_factory=set)
    leaves: dict[int, bytes] = field(default_factory=dict)
    at_fault: set[tuple[bytes, int]] = field(default_factory=set)
    """Issuers and numbers of what is to be refused, and said in the log to be."""


class Ground:
    """Where faults of a running ledger are tried. Open with `ground`."""

    def __init__(self, live: BreakableMesh, router: Router, vault: VaultKey) -> None:
        self.live = live
        self.router = router
        self.vault = vault
        self.seen = Seen()
        self.equivocators: set[bytes] = set()
        """Issuers that gave a number to two entries: the second reading must say so of each, and of nobody else."""
        self._number = 0

    async def commit(self, timeout: float = PATIENCE_SECONDS) -> Committed:
        """Commit one more entry. Raises `MeshError`."""
        self._number += 1
        body = {"n": self._number}
        committed = await self.router.publisher.commit(Kind.RECEIPT, body, vault=self.vault, timeout=timeout)
        self.router.publisher.released(committed)
        self.seen.committed.append(committed)
        return committed

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Write and watch while the body runs; what is under way at its end is waited for."""
        async with asyncio.TaskGroup() as tasks:
            ending = asyncio.Event()
            for _ in range(_WRITERS):
                tasks.create_task(self._write(ending))
            tasks.create_task(self._watch(ending))
            tasks.create_task(self._be_at_fault(ending))
            try:
                yield
            finally:
                ending.set()

    async def start(self) -> None:
        """Start the ledger, and wait until it acknowledges."""
        await self.live.start()
        await self.commit()

    async def stub(self) -> Any:
        return ledger_pb2_grpc.LedgerServiceStub(await self.router.ledger.channel(PATIENCE_SECONDS))

    async def read(self) -> list[ledger_pb2.LoggedEntry]:
        """The whole log."""
        request = ledger_pb2.TailRequest(from_index=0, max_batch=256)
        call = (await self.stub()).Tail(request, timeout=PATIENCE_SECONDS)
        return [entry async for response in call for entry in response.entries]

    async def count(self, kind: Kind) -> int:
        """How many entries of a kind are in the log."""
        return sum(leaf.parse(entry.leaf_data).kind is kind for entry in await self.read())

    async def is_said(self, kind: Kind, beyond: int) -> bool:
        """Say whether more entries of a kind come to be in the log: what is owed is said later than it is found."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await self.count(kind) <= beyond:
                    await self.commit()
                return True
        return False

    @asynccontextmanager
    async def stream(self, member: Member) -> AsyncIterator[NatsLink]:
        """A connection to nats-server with what a member's role may do."""
        async with connect_nats(
            self.live.broker.url,
            member.broker(self.live.broker.target),
            server_name=f"broker.{TRUST_DOMAIN}",
            name=f"{member.role}/fault",
            inbox_prefix=inbox_prefix(member.role),
        ) as link:
            yield link

    async def prove(self, outcome: Outcome) -> None:
        """Hold the log against everything that was seen."""
        await self.commit()
        await self._look()
        entries = await self._read_with_late()
        outcome.wrong += _contradictions(entries, self.seen, self.vault)
        outcome.wrong += await self._second_reading()
        outcome.counts["entries acknowledged"] += len(self.seen.committed)
        outcome.counts["entries acknowledged to nobody"] += len(self.seen.late)
        outcome.counts["faults said"] += len(self.seen.at_fault)
        self.seen.committed.clear()
        self.seen.late.clear()
        self.seen.at_fault.clear()

    async def _second_reading(self) -> list[str]:
        """What stays wrong. A ledger that was killed early says by its next start alone who it was."""
        ending = asyncio.get_running_loop().time() + _SETTLE_SECONDS
        while True:
            found = await asyncio.to_thread(read_log, LogFolder(self.live.data_dir), Question())
            wrong = self._unexpected([each.what for each in found.findings.wrong])
            if not wrong or asyncio.get_running_loop().time() > ending:
                return wrong
            await asyncio.sleep(_LOOK_SECONDS)

    def _unexpected(self, said: Sequence[str]) -> list[str]:
        """Everything but that equivocators did what they did, which must be said."""
        rest, wrong = list(said), []
        for issuer in self.equivocators:
            name = issuer.hex()[:16]
            named = [what for what in rest if name in what and "two entries" in what]
            rest = [what for what in rest if what not in named]
            if not named:
                wrong.append(f"I2: nothing is said of {name}, who gave a number to two entries")
        return [*wrong, *(f"I2: {what}" for what in rest)]

    async def _read_with_late(self) -> list[ledger_pb2.LoggedEntry]:
        """Read the log once what came too late for its writer is in it, and what is said of others' faults, or as it is
        when that took too long.
        """
        ending = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while True:
            entries = await self.read()
            if not _missing(entries, self.seen) or asyncio.get_running_loop().time() > ending:
                return entries
            await asyncio.sleep(_LOOK_SECONDS)

    async def _write(self, ending: asyncio.Event) -> None:
        while not ending.is_set():
            try:
                await self.commit()
            except LedgerUnavailable as error:
                self.seen.late.add(error.entry_id)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _be_at_fault(self, ending: asyncio.Event) -> None:
        """Hand in, now and then, what no ledger takes: sealed in a vault that it never opened."""
        while not ending.is_set():
            one = await self.router.publisher.enqueue(Kind.RECEIPT, {"n": 0}, vault=_NO_VAULT)
            self.seen.at_fault.add((one.issuer, one.issuer_seq))
            await asyncio.sleep(_LOOK_SECONDS)

    async def _watch(self, ending: asyncio.Event) -> None:
        """Take down every tree that is released."""
        while not ending.is_set():
            with suppress(MeshError, grpc.aio.AioRpcError):
                await self._look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> None:
        stub = ledger_pb2_grpc.LedgerServiceStub(await self.router.ledger.channel(_CALL_SECONDS))
        response = await stub.GetCheckpoint(ledger_pb2.GetCheckpointRequest(), timeout=_CALL_SECONDS)
        tree = checkpoint.parse(response.checkpoint)
        self.seen.trees.add((tree.size, tree.root))


@asynccontextmanager
async def ground(mesh: JoinedMesh) -> AsyncIterator[Ground]:
    """Everything that a ledger needs, the ledger itself, and a router that writes to it."""
    live = BreakableMesh(mesh)
    async with live.running(), live.router() as router:
        await live.start()
        yield Ground(live, router, await open_vault(router))


def _contradictions(entries: Sequence[ledger_pb2.LoggedEntry], seen: Seen, vault: VaultKey) -> list[str]:
    publics = [leaf.parse(entry.leaf_data) for entry in entries]
    ids = [entry_id(public.issuer, public.issuer_seq) for public in publics]
    wrong = [f"I1: entry {name.hex()[:12]} is there twice" for name, count in Counter(ids).items() if count > 1]
    wrong += _missing(entries, seen)
    place = {name: index for index, name in enumerate(ids)}
    for committed in seen.committed:
        index = int.from_bytes(committed.acknowledgement.statement[8:16], "big")
        if place.get(committed.entry_id) != index:
            wrong.append(f"I1: an entry was acknowledged at {index} and is at {place.get(committed.entry_id)}")
        elif _opened(entries[index], publics[index], vault) != committed.entry:
            wrong.append(f"I1: entry {index} opens to something else than was written")
    tree, roots = CompactRange(), {0: CompactRange().root()}
    for size, entry in enumerate(entries, 1):
        tree.append(leaf_hash(entry.leaf_data))
        roots[size] = tree.root()
    wrong += [
        f"I3: the released tree of {size} leaves is not a beginning of this log"
        for size, root in seen.trees
        if roots.get(size) != root
    ]
    for index, entry in enumerate(entries):
        if seen.leaves.setdefault(index, entry.leaf_data) != entry.leaf_data:
            wrong.append(f"I5: index {index} has another leaf than it had")
    return wrong


def _missing(entries: Sequence[ledger_pb2.LoggedEntry], seen: Seen) -> list[str]:
    """What is to come into the log by itself and is not there."""
    publics = [leaf.parse(entry.leaf_data) for entry in entries]
    late = seen.late - {entry_id(public.issuer, public.issuer_seq) for public in publics}
    said = {
        (bytes.fromhex(body["issuer"]), body["issuer_seq"])
        for entry, public in zip(entries, publics, strict=True)
        if public.kind is Kind.QUARANTINE
        for body in [parse_entry(entry.body[SALT_SIZE:]).body]
    }
    return [f"I1: entry {name.hex()[:12]} never came into the log" for name in late] + [
        f"I6: that number {number} was refused is not said" for _, number in seen.at_fault - said
    ]


def record_of(entry: ledger_pb2.LoggedEntry, public: leaf.Leaf) -> Record:
    """An entry of the log as its issuer sealed it."""
    header = RecordHeader(len(entry.body), public.kind, entry.vault_epoch, entry.vault_id, public.commitment)
    return Record(header, entry.body)


def _opened(entry: ledger_pb2.LoggedEntry, public: leaf.Leaf, vault: VaultKey) -> bytes:
    return open_record(record_of(entry, public), public.issuer, public.issuer_seq, vault).canonical
