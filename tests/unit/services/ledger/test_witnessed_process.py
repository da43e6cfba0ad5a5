"""A ledger and a witness as processes: cosigned over a restart with another key, and no disk of before starts again."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.events.records import SALT_SIZE, parse_entry
from libs.transparency import checkpoint, cose_receipt, proof_file
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.cosignature import verify_quorum
from libs.transparency.leaf import Kind
from libs.transparency.note import VerifierKey
from tests.fakes.joined_mesh import JoinedMesh
from tests.fakes.running_witness import RunningWitness, attested_witness

from .live import LiveMesh
from .test_process import ORIGIN, PATIENCE_SECONDS, Client, commit, index_of


@pytest.fixture
async def both(mesh: JoinedMesh) -> AsyncIterator[tuple[LiveMesh, RunningWitness]]:
    live, witness = LiveMesh(mesh), attested_witness(mesh, ORIGIN)
    async with witness.running():
        live.witnesses.append(witness.settings)
        async with live.running():
            yield live, witness


async def witnessed(live: LiveMesh, ca_pem: bytes, at_least: int) -> tuple[Checkpoint, bytes]:
    """The newest witnessed checkpoint over HTTPS, once it is of that size."""
    context = ssl.create_default_context(cadata=ca_pem.decode())
    url = f"https://{live.https}/checkpoint.witnessed"
    async with asyncio.timeout(PATIENCE_SECONDS), aiohttp.ClientSession() as session:
        while True:
            async with session.get(url, ssl=context) as response:
                note = await response.read()
                if response.status == 200 and checkpoint.parse(note).size >= at_least:
                    return checkpoint.parse(note), note


async def first_of(stub: ledger_pb2_grpc.LedgerServiceStub, kind: Kind) -> ledger_pb2.LoggedEntry:
    """The first entry of a kind, once the log has one."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for response in stub.Tail(ledger_pb2.TailRequest(from_index=0, follow=True, kinds=[kind])):
            if response.entries:
                return response.entries[0]
    raise AssertionError("a tail that follows ended")


def put_back(image: Path, data_dir: Path) -> None:
    shutil.rmtree(data_dir)
    shutil.copytree(image, data_dir)


async def test_a_witness_follows_the_log_over_a_restart_and_not_back(both: tuple[LiveMesh, RunningWitness]) -> None:
    live, witness = both
    async with live.router() as router:
        client = Client(router)
        await live.start()
        vault = await client.open_vault()
        first = await commit(router, vault, 1)
        tree, note = await witnessed(live, router.member.ca_pem, index_of(first) + 1)
        key = VerifierKey(ORIGIN, bytes.fromhex(router.ledger.lease.appraisal.workload_claims["checkpoint_key"]))
        assert (checkpoint.verify(note, key), verify_quorum(note, witness.keys, 1)) == (tree, ("witness.example/w1",))
        proof = await (await client.stub()).GetTlogProof(
            ledger_pb2.GetTlogProofRequest(entry_id=first.entry_id), timeout=5
        )
        proven = proof_file.verify(proof.proof, key, witness.keys, 1)
        assert (proven.leaf.kind, proven.index) == (Kind.RECEIPT, index_of(first))
        cose = await (await client.stub()).GetCoseReceipt(
            ledger_pb2.GetCoseReceiptRequest(index=index_of(first)), timeout=5
        )
        assert cose.leaf_data == first.acknowledgement.leaf_data
        assert len(cose_receipt.verify(cose.receipt, cose.leaf_data, key)) == 32

        entry = await first_of(await client.stub(), Kind.WITNESS)
        logged = parse_entry(entry.body[SALT_SIZE:]).body["checkpoint"].encode()
        assert verify_quorum(logged, witness.keys, 1) == ("witness.example/w1",)
        assert checkpoint.verify(logged, key).size <= entry.index
        keys = parse_entry((await first_of(await client.stub(), Kind.LOGKEY)).body[SALT_SIZE:]).body
        assert keys["checkpoint_key"] == key.public_key.hex()

        await live.kill()
        image = await asyncio.to_thread(shutil.copytree, live.data_dir, live.data_dir.with_name("image"))
        await live.start()
        later = await commit(router, vault, 2)
        grown, note = await witnessed(live, router.member.ca_pem, index_of(later) + 1)
        assert grown.size > tree.size
        assert checkpoint.parse(note) == grown

        await live.kill()
        await asyncio.to_thread(put_back, image, live.data_dir)
        await live.start(ready=False)
        code, said = await live.ended()
        assert (code, "LOG_ROLLED_BACK" in said, "witness.example/w1" in said) == (4, True, True)
