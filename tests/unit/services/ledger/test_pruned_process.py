"""A ledger process on a pruned log: it starts, says what is gone, proves all of it, goes on, and takes it back."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from teemesh.ledger.v1 import ledger_pb2

from libs.audit.log.findings import Status
from libs.audit.log.reading import Question, read_log
from libs.events.publish import Committed
from libs.events.records import Record, RecordHeader, open_record
from libs.events.vault import VaultKey
from libs.policy.orders import PRUNE_LOG
from libs.policy.prune_orders import Pruning
from libs.transparency import leaf
from libs.transparency.merkle import leaf_hash, verify_inclusion
from services.cli.ledger.files import LogFolder
from services.ledger.storage.segment_files import BARE, SEGMENTS
from tests.fakes.joined_mesh import JoinedMesh

from .live import LiveMesh
from .test_process import ORIGIN, Client, check_nothing_was_refused, commit, index_of

ROOT = Path(__file__).parents[4]


@pytest.fixture
async def live(mesh: JoinedMesh) -> AsyncIterator[LiveMesh]:
    async with LiveMesh(mesh).running() as running:
        yield running


async def pruning(live: LiveMesh, given: bytes, *options: str) -> tuple[int, str]:
    """Run what prunes a log, and puts back, as `teemesh ledger prune` and `restore --pruned` do."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.ledger.pruning", str(live.data_dir), *options),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate(given)
    assert process.returncode is not None
    return process.returncode, said.decode()


async def entry_of(client: Client, committed: Committed) -> ledger_pb2.LoggedEntry:
    stub = await client.stub()
    found: ledger_pb2.LoggedEntry = (
        await stub.GetEntry(ledger_pb2.GetEntryRequest(entry_id=committed.entry_id), timeout=5)
    ).entry
    assert (found.index, found.leaf_data) == (index_of(committed), committed.acknowledgement.leaf_data)
    return found


def opened(entry: ledger_pb2.LoggedEntry, vault: VaultKey) -> bytes:
    public = leaf.parse(entry.leaf_data)
    header = RecordHeader(len(entry.body), public.kind, entry.vault_epoch, entry.vault_id, public.commitment)
    return open_record(Record(header, entry.body), public.issuer, public.issuer_seq, vault).canonical


async def check_proven(client: Client, committed: Committed) -> None:
    """What is gone from the files is proven as before, in a tree that this process signed."""
    signed, _ = await client.checkpoint(index_of(committed) + 1)
    stub = await client.stub()
    request = ledger_pb2.GetInclusionProofRequest(index=index_of(committed), size=signed.size)
    proof = await stub.GetInclusionProof(request, timeout=5)
    hashed = leaf_hash(committed.acknowledgement.leaf_data)
    verify_inclusion(hashed, index_of(committed), signed.size, list(proof.path), signed.root)


async def pruned(live: LiveMesh, client: Client, vault: VaultKey) -> tuple[list[Committed], Path, bytes]:
    """Have a log pruned whose ledger seals at every stop; return its receipts, and the segment as it was."""
    committed = [await commit(client.router, vault, number) for number in range(5)]
    await client.checkpoint(index_of(committed[-1]) + 1)
    assert await live.kill(signal.SIGTERM) == 0
    await live.start()
    first, active = sorted((live.data_dir / SEGMENTS).iterdir())
    whole, limit = first.read_bytes(), int(active.stem)
    async with live.operator() as operator:
        order = live.order(PRUNE_LOG, Pruning(ORIGIN, limit).subject)
        allowed = await operator.AllowPruning(ledger_pb2.AllowPruningRequest(signed_order=order), timeout=20)
    await client.checkpoint(allowed.index + 1)
    archive = json.dumps([{first.name: hashlib.sha256(whole).hexdigest()}]).encode()
    code, said = await pruning(live, archive)
    assert (code != 0, "LOG_LOCKED" in said) == (True, True), said
    assert await live.kill(signal.SIGTERM) == 0
    code, said = await pruning(live, archive)
    assert (code, json.loads(said)) == (0, {"pruned": [first.name], "held": []})
    assert not first.exists()
    assert (live.data_dir / BARE / first.name).exists()
    return committed, first, whole


async def test_ledger_on_a_pruned_log_serves_and_goes_on_and_takes_back_what_was_pruned(live: LiveMesh) -> None:
    async with live.router() as router:
        client = Client(router)
        await live.process.start(command=("-m", "tests.faults.sealing"))
        vault = await client.open_vault()
        token = (await client.tail(ledger_pb2.TailRequest(from_index=0)))[-1].token
        old, segment, whole = await pruned(live, client, vault)

        for _ in range(2):  # At first the bare segment is read, then passed over; and once the end was no clean one.
            await live.start()
            new = await commit(router, vault, 100)
            for committed in (*old, new):
                await check_proven(client, committed)
            missing = [(await entry_of(client, committed)).missing for committed in old]
            assert {(each.reason, each.first_held) for each in missing} == {("ENTRY_PRUNED", missing[0].first_held)}
            assert not any([(await entry_of(client, committed)).body for committed in old])
            assert opened(await entry_of(client, new), vault) == new.entry
            for start in (ledger_pb2.TailRequest(from_index=0), ledger_pb2.TailRequest(token=token)):
                entries = [entry for batch in await client.tail(start) for entry in batch.entries]
                first = entries[0].index
                assert [entry.index for entry in entries] == list(range(first, first + len(entries)))
                assert entries[-1].index >= index_of(new)
                gone = {entry.index for entry in entries if entry.HasField("missing")}
                assert gone == {index_of(committed) for committed in old}
                check_nothing_was_refused(entries)
            assert read_log(LogFolder(live.data_dir), Question()).findings.worst is Status.SOUND
            await live.kill()

        assert await pruning(live, whole, "--put-back", "0") == (0, "")
        assert segment.read_bytes() == whole
        await live.start()
        for committed in (*old, await commit(router, vault, 200)):
            assert opened(await entry_of(client, committed), vault) == committed.entry
            await check_proven(client, committed)
        assert await live.kill(signal.SIGTERM) == 0
    assert read_log(LogFolder(live.data_dir), Question()).findings.worst is Status.SOUND
