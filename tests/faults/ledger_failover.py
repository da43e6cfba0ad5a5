"""Take the writer of a log on three members away, again and again, under load, and prove that the log stayed one.

`python -m tests.faults.ledger_failover --rounds 20 --seed 1` prints what happened, and exits 0 only if everything held.
The writer is killed, stopped for a while, or cut off from the other members while everyone else still reaches it; or
another member is, has no room left, or is damaged; or the witness is killed. A reader follows the log over all of it by
its resume tokens. What the witness cosigned is a beginning of the log, whoever wrote it. At the end all are stopped,
and every member's copy must prove itself.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from libs.rpc.hardening import ssl_hardening

ssl_hardening()

import grpc.aio  # noqa: E402 - gRPC comes after the hardening
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc  # noqa: E402

from libs.audit.log.reading import Question, read_log  # noqa: E402
from libs.errors import MeshError  # noqa: E402
from libs.events.publish import Committed  # noqa: E402
from libs.events.vault import VaultKey  # noqa: E402
from libs.identity.sealed import release_info  # noqa: E402
from libs.transparency import checkpoint, leaf  # noqa: E402
from libs.transparency.chain import chain_next, chain_start, entry_id  # noqa: E402
from libs.transparency.checkpoint import Checkpoint  # noqa: E402
from libs.transparency.cosignature import verify_quorum  # noqa: E402
from libs.transparency.leaf import Kind  # noqa: E402
from libs.transparency.merkle import CompactRange, leaf_hash  # noqa: E402
from libs.transparency.note import VerifierKey  # noqa: E402
from services.cli.ledger.files import LogFolder  # noqa: E402
from services.devtee.machine import Machine  # noqa: E402
from services.ledger.storage.recovery import CHECKPOINT_WITNESSED  # noqa: E402
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh  # noqa: E402
from tests.fakes.running_witness import RunningWitness, attested_witness  # noqa: E402
from tests.faults.member_faults import Faults  # noqa: E402
from tests.unit.services.ledger.live import Router  # noqa: E402
from tests.unit.services.ledger.live_group import LiveGroup  # noqa: E402

ORIGIN = f"{TRUST_DOMAIN}/ledger/1"
TENANT = "ab" * 16
_AT_ONCE = 16
_CALL_SECONDS = 10.0
_LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 90.0


@dataclass(slots=True)
class Witnessed:
    """What was seen from outside while members came and went."""

    committed: list[Committed] = field(default_factory=list)
    late: int = 0
    """Commits that nobody acknowledged in time; they may be in the log all the same."""
    roots: dict[int, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    """Every root that a verified checkpoint gave a size."""
    cosigned: set[int] = field(default_factory=set)
    """Sizes of trees that the witness cosigned; their roots are among the others."""
    cosigning: asyncio.Event = field(default_factory=asyncio.Event)
    """Another one was seen."""
    followed: list[ledger_pb2.LoggedEntry] = field(default_factory=list)
    resumed: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """How long each fault kept the log from acknowledging."""
    wrong: list[str] = field(default_factory=list)
    entries: int = 0

    @property
    def holds(self) -> bool:
        return bool(self.committed and self.cosigned) and not self.wrong

    def report(self) -> str:
        lines = [
            f"acknowledged   {len(self.committed)}, and {self.late} too late to wait for",
            f"log            {self.entries} entries",
            f"checkpoints    {sum(map(len, self.roots.values()))} of {len(self.roots)} sizes",
            f"cosigned       {len(self.cosigned)} sizes",
            f"followed       {len(self.followed)} entries, resumed {self.resumed} times",
            "",
            f"{'fault':<20} {'times':>5} {'written again after (s): median':>34} {'longest':>8}",
        ]
        for name, seconds in self.seconds.items():
            lines.append(f"{name:<20} {len(seconds):>5} {statistics.median(seconds):>34.1f} {max(seconds):>8.1f}")
        return "\n".join([*lines, "", *self.wrong])


class Bystander:
    """Writes, reads and watches as routers, auditors and tools do, whatever happens to the members."""

    def __init__(self, live: LiveGroup, router: Router, vault: VaultKey, seen: Witnessed) -> None:
        self._live = live
        self._router = router
        self._vault = vault
        self._seen = seen
        self._number = 0

    async def write(self) -> None:
        """Commit one entry after the other, for ever."""
        while True:
            self._number += 1
            try:
                await self.commit(self._number, _CALL_SECONDS)
            except MeshError:
                self._seen.late += 1

    async def commit(self, number: int, timeout: float) -> None:
        """Commit one entry. Raises `MeshError`."""
        publisher = self._router.publisher
        committed = await publisher.commit(Kind.RECEIPT, {"n": number}, vault=self._vault, timeout=timeout)
        publisher.released(committed)
        self._seen.committed.append(committed)

    async def follow(self) -> None:
        """Read the log for ever, with one token after the other, from whichever member answers."""
        token, head = b"", chain_start(ORIGIN)
        while True:
            for name in self._live.names:
                try:
                    async for response in self._tail(name, token):
                        for entry in response.entries:
                            if entry.index != len(self._seen.followed):
                                self._seen.wrong.append(f"the reader got leaf {entry.index} out of turn")
                            head = chain_next(head, entry.index, leaf_hash(entry.leaf_data))
                            self._seen.followed.append(entry)
                        if response.chain_after != head:
                            self._seen.wrong.append(f"{name} gave the reader another chain")
                        token = response.token
                except MeshError as error:
                    if error.reason == "LOG_DIVERGED":
                        self._seen.wrong.append(f"{name} says that the log diverged")
                except (grpc.aio.AioRpcError, TimeoutError):
                    pass
                self._seen.resumed += 1
                await asyncio.sleep(_LOOK_SECONDS)

    async def watch(self, name: str) -> None:
        """Take down every checkpoint that a member releases."""
        peer = self._router.member.peer("ledger", self._live.targets[name])
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                stub = ledger_pb2_grpc.LedgerServiceStub(await peer.channel(2))
                key = peer.lease.appraisal.workload_claims["checkpoint_key"]
                response = await stub.GetCheckpoint(ledger_pb2.GetCheckpointRequest(), timeout=2)
            except (MeshError, grpc.aio.AioRpcError):
                continue
            signed = checkpoint.verify(response.checkpoint, VerifierKey(ORIGIN, bytes.fromhex(key)))
            if signed.size not in self._seen.roots:
                await self._hold_to_majority(signed.size)
            self._seen.roots[signed.size].add(signed.root)

    async def watch_witnessed(self, witness: RunningWitness) -> None:
        """Take down every tree that the witness has cosigned, as members keep it."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for name in self._live.names:
                if (tree := cosigned_at(self._live, name, witness)) is None:
                    continue
                if tree.size not in self._seen.cosigned:
                    await self._hold_to_majority(tree.size)
                self._seen.cosigned.add(tree.size)
                self._seen.cosigning.set()
                self._seen.roots[tree.size].add(tree.root)

    async def _hold_to_majority(self, size: int) -> None:
        """A tree that is out must be durable on a majority. Who does not answer may hold it."""
        names = self._live.names
        standings = await asyncio.gather(*(self._live.standing(self._live.member, name) for name in names))
        lacking = sum(standing is not None and standing.size < size for standing in standings)
        if lacking > len(names) // 2:
            self._seen.wrong.append(f"a tree of {size} leaves is out, and {lacking} members do not hold it")

    async def _tail(self, name: str, token: bytes) -> AsyncIterator[ledger_pb2.TailResponse]:
        peer = self._router.member.peer("ledger", self._live.targets[name])
        stub = ledger_pb2_grpc.LedgerServiceStub(await peer.channel(2))
        call = stub.Tail(ledger_pb2.TailRequest(token=token, follow=True), timeout=15)
        if not token:
            call.cancel()
            call = stub.Tail(ledger_pb2.TailRequest(from_index=0, follow=True), timeout=15)
        try:
            while True:
                async with asyncio.timeout(3):
                    response = await call.read()
                if not isinstance(response, ledger_pb2.TailResponse):
                    return
                yield response
        finally:
            call.cancel()


async def fail_over(live: LiveGroup, witness: RunningWitness, *, rounds: int, seed: int) -> Witnessed:
    """Do `rounds` faults under load, each once the log is written again and everyone has it; then prove."""
    seen, chance = Witnessed(), random.Random(seed)  # noqa: S311 - an order, not a secret
    async with live.router() as router:
        await live.start_all()
        vault = await open_vault(router)
        bystander = Bystander(live, router, vault, seen)
        faults = Faults(live, witness, chance)
        await bystander.commit(0, _PATIENCE_SECONDS)
        async with _busy(live, bystander, witness):
            for number in range(rounds):
                fault = faults.all[number % len(faults.all)] if number else chance.choice(faults.all[:3])
                began = time.monotonic()
                restarting = asyncio.create_task(_named(fault))
                await _written_again(bystander, number)
                again = time.monotonic() - began
                seen.seconds[await restarting].append(again)
                await until_all_run(live)
            await bystander.commit(-1, _PATIENCE_SECONDS)
            await _until_cosigned(live, seen)
        await prove(live, router, seen)
    return seen


async def _named(fault: Callable[[], Awaitable[str]]) -> str:
    return await fault()


async def _written_again(bystander: Bystander, number: int) -> None:
    await bystander.commit(1_000_000 + number, _PATIENCE_SECONDS)


@asynccontextmanager
async def _busy(live: LiveGroup, bystander: Bystander, witness: RunningWitness) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        busy = [
            *(tasks.create_task(bystander.write()) for _ in range(_AT_ONCE)),
            tasks.create_task(bystander.follow()),
            *(tasks.create_task(bystander.watch(name)) for name in live.names),
            tasks.create_task(bystander.watch_witnessed(witness)),
        ]
        yield
        for task in busy:
            task.cancel()


def cosigned_at(live: LiveGroup, name: str, witness: RunningWitness) -> Checkpoint | None:
    """The newest tree that a member keeps as cosigned, verified; None where it keeps none."""
    try:
        note = (live.places[name].data_dir / CHECKPOINT_WITNESSED).read_bytes()
    except FileNotFoundError:
        return None
    verify_quorum(note, witness.keys, 1)
    return checkpoint.parse(note)


async def _until_cosigned(live: LiveGroup, seen: Witnessed) -> None:
    """Wait until the witness has cosigned what a majority holds now, under whoever writes now."""
    standing = await live.standing(live.member, await live.writer(live.member))
    size = 0 if standing is None else standing.committed
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while max(seen.cosigned, default=0) < size:
            seen.cosigning.clear()
            await seen.cosigning.wait()


async def open_vault(router: Router) -> VaultKey:
    stub = ledger_pb2_grpc.LedgerServiceStub(await router.ledger.channel(_PATIENCE_SECONDS))
    answer = await stub.OpenVault(ledger_pb2.OpenVaultRequest(tenant_id=TENANT), timeout=_CALL_SECONDS)
    info = release_info(f"ledger-vault/{answer.vault_id.hex()}", answer.vault_epoch, router.member.spiffe_id)
    return VaultKey(answer.vault_id, answer.vault_epoch, router.receiver.open(answer.sealed_key, info), TENANT)


async def until_all_run(live: LiveGroup) -> None:
    """Start again who ended to be started again, and wait until every member holds what the writer does."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            for name, process in live.processes.items():
                if not process.runs:
                    await live.start_anew(name)
            writer = await live.writer(live.member)
            standing = await live.standing(live.member, writer)
            if standing is not None and all(other.answers for other in standing.others):
                size = standing.committed
                if all(other.held >= size for other in standing.others):
                    return
            await asyncio.sleep(_LOOK_SECONDS)


async def prove(live: LiveGroup, router: Router, seen: Witnessed) -> None:
    """Hold everything that was seen against the log, as each member has it now."""
    writer = await live.writer(live.member)
    standing = await live.standing(live.member, writer)
    assert standing is not None
    logs = []
    for name in live.names:
        await live.until_committed(live.member, name, standing.committed)
        logs.append((await _read(live, router, name))[: standing.committed])
    whole = logs[0]
    seen.entries = len(whole)
    for name, log in zip(live.names, logs, strict=True):
        if [entry.SerializeToString() for entry in log] != [entry.SerializeToString() for entry in whole]:
            seen.wrong.append(f"{name} has another log")
    seen.wrong.extend(_contradictions(whole, seen))
    await asyncio.gather(*(process.kill(signal.SIGTERM) for process in live.processes.values()))
    for name, place in live.places.items():
        reading = await asyncio.to_thread(read_log, LogFolder(place.data_dir), Question())
        seen.wrong.extend(f"{name}'s copy: {each.what}" for each in reading.findings.wrong)


def _contradictions(whole: Sequence[ledger_pb2.LoggedEntry], seen: Witnessed) -> list[str]:
    wrong = []
    publics = [leaf.parse(entry.leaf_data) for entry in whole]
    twice = [name for name, count in Counter((p.issuer, p.issuer_seq) for p in publics).items() if count > 1]
    wrong += [f"issuer {issuer.hex()[:8]} has entry {number} twice" for issuer, number in twice]
    place = {entry_id(public.issuer, public.issuer_seq): index for index, public in enumerate(publics)}
    for committed in seen.committed:
        index = int.from_bytes(committed.acknowledgement.statement[8:16], "big")
        if place.get(committed.entry_id) != index:
            wrong.append(f"an entry was acknowledged at {index} and is at {place.get(committed.entry_id)}")
        elif whole[index].leaf_data != committed.acknowledgement.leaf_data:
            wrong.append(f"entry {index} is another than the one acknowledged")
    wrong += [f"{public.kind.name} is in the log" for public in publics if public.kind in (Kind.CONFLICT, Kind.GAP)]
    tree, roots = CompactRange(), {0: CompactRange().root()}
    for size, entry in enumerate(whole, 1):
        tree.append(leaf_hash(entry.leaf_data))
        roots[size] = tree.root()
    wrong += [
        f"a checkpoint of {size} leaves is not of this log"
        for size, signed in seen.roots.items()
        if signed != {roots.get(size)}
    ]
    pairs = zip(seen.followed, whole, strict=False)
    wrong += [f"the reader got another leaf {entry.index}" for entry, logged in pairs if entry != logged]
    return wrong


async def _read(live: LiveGroup, router: Router, name: str) -> list[ledger_pb2.LoggedEntry]:
    stub = ledger_pb2_grpc.LedgerServiceStub(await router.member.peer("ledger", live.targets[name]).channel(5))
    request = ledger_pb2.TailRequest(from_index=0, max_batch=256)
    return [entry async for response in stub.Tail(request, timeout=60) for entry in response.entries]


async def run(rounds: int, seed: int) -> Witnessed:
    """Make everything anew, and take the writer away."""
    with tempfile.TemporaryDirectory(prefix="mesh") as folder:
        mesh = JoinedMesh(Path(folder), Machine.create(int(time.time())))
        group, witness = LiveGroup(mesh), attested_witness(mesh, ORIGIN)
        async with witness.running():
            group.witnesses.append(witness.settings)
            async with group.running():
                return await fail_over(group, witness, rounds=rounds, seed=seed)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.ledger_failover", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="how many faults there are (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="of their order (default: 1)")
    arguments = parser.parse_args()
    seen = asyncio.run(run(arguments.rounds, arguments.seed))
    sys.stdout.write(seen.report() + "\n")
    return 0 if seen.holds else 1


if __name__ == "__main__":
    sys.exit(main())
