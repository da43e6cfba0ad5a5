"""What witnesses cosigned is shown by every member of a log, under its own signature, and over a takeover."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.ledger.v1 import replication_pb2 as pb
from teemesh.ledger.v1 import replication_pb2_grpc as pb_grpc

from libs.rpc.errors import reason_of
from libs.transparency import checkpoint
from libs.transparency.cosignature import attach, cosign
from libs.transparency.note import VerifierKey
from services.cli.__main__ import main
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.witnessed import NotWitnessed, ask_witnessed, read_witnessed_access
from services.ledger.storage.recovery import CHECKPOINT_WITNESSED
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh
from tests.fakes.running_witness import RunningWitness, attested_witness

from .live_group import PATIENCE_SECONDS, LiveGroup
from .test_group import standing_in
from .test_process import ORIGIN, Client, commit, index_of

_LOOK_SECONDS = 0.05


@pytest.fixture
async def both(mesh: JoinedMesh) -> AsyncIterator[tuple[LiveGroup, RunningWitness]]:
    group, witness = LiveGroup(mesh), attested_witness(mesh, ORIGIN)
    async with witness.running():
        group.witnesses.append(witness.settings)
        async with group.running():
            yield group, witness


class Looker:
    """An operator whose commands know of one member."""

    def __init__(self, live: LiveGroup, witness: RunningWitness, name: str) -> None:
        self._live = live
        self._name = name
        self._witness = witness.keys[0].text()
        self.state = live.mesh.folder / f"state-of-{name}"

    async def describe(self) -> None:
        """Write what they know of it."""
        peer = self._live.member.peer("ledger", self._live.targets[self._name])
        await peer.channel(PATIENCE_SECONDS)
        vkey = VerifierKey(ORIGIN, bytes.fromhex(peer.lease.appraisal.workload_claims["checkpoint_key"]))
        key, certificate = self._live.operator_files()
        self.state.mkdir(exist_ok=True)
        for name, data in (("ca.pem", self._live.member.ca_pem), ("key.pem", key), ("cert.pem", certificate)):
            (self.state / name).write_bytes(data)
        described = {
            "trust_domain": TRUST_DOMAIN,
            "ledger_grpc": self._live.targets[self._name],
            "ledger_http": f"https://{self._live.places[self._name].https}",
            "ledger_vkey": vkey.text(),
            "witness_vkey": self._witness,
            "mesh_ca": "ca.pem",
            "operator_cert": "cert.pem",
            "operator_key": "key.pem",
        }
        (self.state / "mesh.json").write_text(json.dumps(described))

    async def until_witnessed(self, size: int) -> int:
        """Wait until `teemesh status` would say that so much is witnessed; return how much is."""
        access = read_witnessed_access(MeshReader(self.state / "mesh.json"))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                with suppress(NotWitnessed):
                    said = re.match("witnessed: ([0-9]+) entries", await ask_witnessed(access))
                    assert said is not None
                    if int(said[1]) >= size:
                        return int(said[1])
                await asyncio.sleep(_LOOK_SECONDS)

    async def run(self, *arguments: str) -> int:
        witnessed = ("--state", str(self.state), "--witness", self._witness)
        return await asyncio.to_thread(main, ["ledger", *arguments, *witnessed])


async def test_every_member_shows_what_was_witnessed_whoever_writes(
    both: tuple[LiveGroup, RunningWitness], tmp_path: Path
) -> None:
    live, witness = both
    async with live.router() as router:
        client = Client(router)
        await live.start_all()
        vault = await client.open_vault()
        first = index_of(await commit(router, vault, 1))
        writer = await live.writer(live.member)
        lookers = {name: Looker(live, witness, name) for name in live.names if name != writer}
        before = {}
        for number, (name, looker) in enumerate(lookers.items()):
            await looker.describe()
            before[name] = await looker.until_witnessed(first + 1)
            proof = str(tmp_path / f"{number}.tlog-proof")
            assert await looker.run("prove", str(first), "--output", proof) == 0
            assert await looker.run("tail") == 0

        gone, target = writer, next(iter(lookers))
        await live.kill_member(gone)
        async with standing_in(live, gone, target) as stand:
            await _refuse_forged(await stand.stub(), stand.log, live.places[target].data_dir)

        await live.writer(live.member)
        for name, looker in lookers.items():
            assert await looker.until_witnessed(1) >= before[name]
        last = index_of(await commit(router, vault, 2))
        for looker in lookers.values():
            assert await looker.until_witnessed(last + 1) > last


async def _refuse_forged(stub: pb_grpc.LedgerReplicationServiceStub, log: bytes, folder: Path) -> None:
    """Show a member, with the certificate of another, what no witness cosigned, and what it does not hold."""
    witnessed, stranger = (folder / CHECKPOINT_WITNESSED).read_bytes(), Ed25519PrivateKey.generate()
    tree = checkpoint.parse(witnessed)
    signed = checkpoint.sign(tree, stranger)
    larger = witnessed.replace(f"\n{tree.size}\n".encode(), f"\n{tree.size + 10**6}\n".encode())
    for note, is_witnessed, reason in (
        (signed, True, "QUORUM_NOT_REACHED"),
        (attach(signed, [cosign(tree, "witness.example/w1", stranger, 2**31)]), True, "QUORUM_NOT_REACHED"),
        (larger, True, "QUORUM_NOT_REACHED"),
        (larger, False, "TREE_NOT_TAKEN"),
        (checkpoint.sign(checkpoint.Checkpoint(ORIGIN, tree.size, bytes(32)), stranger), False, "TREE_DIFFERS"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ShowTree(pb.ShowTreeRequest(log=log, note=note, witnessed=is_witnessed), timeout=10)
        assert reason_of(refused.value) == reason
