"""The ledger as a process: nothing that it acknowledged is lost when it is killed, and damage keeps it down."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import grpc.aio
import pytest
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.errors import MeshError
from libs.events.outbox import DEFAULT_MAX_BYTES, DEFAULT_PART_BYTES
from libs.events.publish import Committed
from libs.events.records import MAX_ENTRY_BYTES, Record, RecordHeader, open_record, parse_entry
from libs.events.vault import VaultKey
from libs.identity.sealed import release_info
from libs.rpc.errors import reason_of
from libs.transparency import checkpoint, leaf
from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind
from libs.transparency.merkle import leaf_hash, verify_consistency, verify_inclusion
from libs.transparency.note import VerifierKey
from services.kms.decisions import Decisions
from services.ledger.storage import segments
from services.ledger.storage.segment_files import SEGMENTS
from tests.fakes.joined_mesh import JoinedMesh

from .live import LiveMesh, Router

TENANT = "ab" * 16
ORIGIN = "mesh.test/ledger/1"
PATIENCE_SECONDS = 60.0


@pytest.fixture
async def live(mesh: JoinedMesh) -> AsyncIterator[LiveMesh]:
    async with LiveMesh(mesh).running() as running:
        yield running


class Client:
    """The ledger as a router calls it."""

    def __init__(self, router: Router) -> None:
        self.router = router

    async def stub(self) -> Any:
        return ledger_pb2_grpc.LedgerServiceStub(await self.router.ledger.channel(PATIENCE_SECONDS))

    async def open_vault(self) -> VaultKey:
        request = ledger_pb2.OpenVaultRequest(tenant_id=TENANT)
        response = await (await self.stub()).OpenVault(request, timeout=5)
        info = release_info(
            f"ledger-vault/{response.vault_id.hex()}", response.vault_epoch, self.router.member.spiffe_id
        )
        key = self.router.receiver.open(response.sealed_key, info)
        return VaultKey(response.vault_id, response.vault_epoch, key, TENANT)

    async def tail(self, request: ledger_pb2.TailRequest) -> list[ledger_pb2.TailResponse]:
        return [response async for response in (await self.stub()).Tail(request, timeout=PATIENCE_SECONDS)]

    async def first_of(self, kind: Kind) -> ledger_pb2.LoggedEntry:
        """Follow the log until it has an entry of this kind."""
        request = ledger_pb2.TailRequest(from_index=0, follow=True)
        async for response in (await self.stub()).Tail(request, timeout=PATIENCE_SECONDS):
            for entry in response.entries:
                if leaf.parse(entry.leaf_data).kind is kind:
                    return cast(ledger_pb2.LoggedEntry, entry)
        raise AssertionError(f"no entry of kind {kind.name}")

    async def checkpoint(self, at_least: int) -> tuple[checkpoint.Checkpoint, bytes]:
        """A verified checkpoint of at least that size, and its note."""
        stub = await self.stub()
        key = self.router.ledger.lease.appraisal.workload_claims["checkpoint_key"]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    response = await stub.GetCheckpoint(ledger_pb2.GetCheckpointRequest(), timeout=5)
                except grpc.aio.AioRpcError as error:
                    if reason_of(error) != "NO_CHECKPOINT":
                        raise
                    continue
                signed = checkpoint.verify(response.checkpoint, VerifierKey(ORIGIN, bytes.fromhex(key)))
                if signed.size >= at_least:
                    return signed, response.checkpoint


async def commit(router: Router, vault: VaultKey, number: int) -> Committed:
    committed = await router.publisher.commit(Kind.RECEIPT, {"n": number}, vault=vault, timeout=PATIENCE_SECONDS)
    router.publisher.released(committed)
    return committed


def index_of(committed: Committed) -> int:
    return int.from_bytes(committed.acknowledgement.statement[8:16], "big")


async def test_nothing_acknowledged_is_lost_when_the_ledger_is_killed(live: LiveMesh) -> None:
    async with live.router() as router:
        client = Client(router)
        await live.start()
        vault = await client.open_vault()
        first = [await commit(router, vault, number) for number in range(5)]
        earlier, _ = await client.checkpoint(index_of(first[-1]) + 1)
        token = (await client.tail(ledger_pb2.TailRequest(from_index=0)))[-1].token

        running = [asyncio.create_task(commit(router, vault, 100 + number)) for number in range(200)]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        assert await live.kill() == -signal.SIGKILL
        await live.start()
        committed = [*first, *await asyncio.gather(*running), await commit(router, vault, 999)]

        assert await client.open_vault() == vault
        later, note = await client.checkpoint(index_of(committed[-1]) + 1)
        stub = await client.stub()
        proof = await stub.GetConsistencyProof(
            ledger_pb2.GetConsistencyProofRequest(first=earlier.size, second=later.size), timeout=5
        )
        verify_consistency(earlier.size, later.size, list(proof.path), earlier.root, later.root)
        assert await client.tail(ledger_pb2.TailRequest(token=token))  # It is the same log, only longer.

        entries = await everything_since_it_started(client, 2)
        assert [entry.index for entry in entries] == list(range(len(entries)))
        check_every_receipt_is_there_once(entries, committed, vault)
        check_nothing_else_was_said(entries)
        request = ledger_pb2.TailRequest(vault_id=vault.vault_id, issuer=router.publisher.issuer, max_batch=50)
        selected = [entry for batch in await client.tail(request) for entry in batch.entries]
        assert selected == [entry for entry in entries if entry.vault_id == vault.vault_id]
        for each in (committed[0], committed[-1]):
            included = await stub.GetInclusionProof(
                ledger_pb2.GetInclusionProofRequest(entry_id=each.entry_id, size=later.size), timeout=5
            )
            hashed = leaf_hash(each.acknowledgement.leaf_data)
            assert (included.index, included.leaf_hash) == (index_of(each), hashed)
            verify_inclusion(hashed, included.index, later.size, list(included.path), later.root)
        assert await checkpoint_over_https(live, router) >= later.size
        assert checkpoint.parse(note).origin == ORIGIN
        assert await live.kill(signal.SIGTERM) == 0


async def test_nothing_is_lost_when_the_examiner_is_killed(live: LiveMesh) -> None:
    async with live.router() as router:
        client = Client(router)
        await live.start()
        vault = await client.open_vault()
        running = [asyncio.create_task(commit(router, vault, number)) for number in range(300)]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        os.kill(live.process.child("services.ledger.examiner"), signal.SIGKILL)
        code, said = await live.ended()
        assert code > 0
        assert "EXAMINER_GONE" in said
        await live.start()
        committed = await asyncio.gather(*running)
        batches = await client.tail(ledger_pb2.TailRequest(from_index=0, max_batch=50))
        entries = [entry for batch in batches for entry in batch.entries]
        check_every_receipt_is_there_once(entries, committed, vault)
        check_nothing_was_refused(entries)


def check_every_receipt_is_there_once(
    entries: list[ledger_pb2.LoggedEntry], committed: list[Committed], vault: VaultKey
) -> None:
    by_id = {entry_id(public.issuer, public.issuer_seq): entry for entry, public in parsed(entries)}
    assert len(by_id) == len(entries)
    assert len({index_of(each) for each in committed}) == len(committed)
    for each in committed:
        entry = by_id[each.entry_id]
        assert (entry.index, entry.leaf_data) == (index_of(each), each.acknowledgement.leaf_data)
        public = leaf.parse(entry.leaf_data)
        header = RecordHeader(len(entry.body), public.kind, entry.vault_epoch, entry.vault_id, public.commitment)
        opened = open_record(Record(header, entry.body), public.issuer, public.issuer_seq, vault)
        assert opened.canonical == each.entry


async def everything_since_it_started(client: Client, times: int) -> list[ledger_pb2.LoggedEntry]:
    """All of the log, once it says that the ledger began so often: that goes its own way through the broker."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            batches = await client.tail(ledger_pb2.TailRequest(from_index=0, max_batch=50))
            entries = [entry for batch in batches for entry in batch.entries]
            if [public.kind for _, public in parsed(entries)].count(Kind.START) >= times:
                return entries


def check_nothing_else_was_said(entries: list[ledger_pb2.LoggedEntry]) -> None:
    kinds = [public.kind for _, public in parsed(entries)]
    # The KMS, two starts of the ledger, and the router each began with a keyset; the KMS recorded its policy.
    assert (kinds.count(Kind.KEYSET), kinds.count(Kind.START), kinds.count(Kind.POLICY)) == (4, 2, 1)
    check_nothing_was_refused(entries)


def check_nothing_was_refused(entries: list[ledger_pb2.LoggedEntry]) -> None:
    assert not {Kind.GAP, Kind.CONFLICT, Kind.QUARANTINE} & {public.kind for _, public in parsed(entries)}


def parsed(entries: list[ledger_pb2.LoggedEntry]) -> list[tuple[ledger_pb2.LoggedEntry, leaf.Leaf]]:
    return [(entry, leaf.parse(entry.leaf_data)) for entry in entries]


async def checkpoint_over_https(live: LiveMesh, router: Router) -> int:
    context = ssl.create_default_context(cadata=router.member.ca_pem.decode())
    url = f"https://{live.https}/checkpoint"
    async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as response:
        assert response.status == 200
        return checkpoint.parse(await response.read()).size


async def test_damage_keeps_the_ledger_down_and_names_its_place(live: LiveMesh) -> None:
    async with live.router() as router:
        client = Client(router)
        await live.start()
        vault = await client.open_vault()
        await commit(router, vault, 1)
        await client.checkpoint(1)
        await live.kill()
    path = live.data_dir / SEGMENTS / segments.file_name(0)
    whole = flip(path, 5000)
    await live.start(ready=False)
    code, said = await live.ended()
    assert (code, "LOG_DAMAGED" in said, path.name in said) == (3, True, True)
    restore(path, whole[: segments.HEADER_SIZE])
    await live.start(ready=False)
    code, said = await live.ended()
    assert (code, "LOG_ROLLED_BACK" in said) == (4, True)


def flip(path: Path, at: int) -> bytes:
    """Damage a file and return what it was."""
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    return whole


def restore(path: Path, data: bytes) -> None:
    path.write_bytes(data)


async def test_a_request_that_is_refused_is_told_with_its_reason(live: LiveMesh) -> None:
    async with live.router() as router:
        client = Client(router)
        await live.start()
        await client.open_vault()
        with pytest.raises(MeshError) as rejected:
            await router.publisher.commit(Kind.POLICY, {"n": 1}, vault=None, timeout=PATIENCE_SECONDS)
        assert rejected.value.reason == "ENTRY_REJECTED"
        assert "KIND_NOT_ALLOWED" in str(rejected.value)
        for method, request, reason in (
            ("OpenVault", ledger_pb2.OpenVaultRequest(tenant_id="nobody"), "TENANT_ID_MALFORMED"),
            ("GetEntry", ledger_pb2.GetEntryRequest(index=10**6), "ENTRY_UNKNOWN"),
            ("GetEntry", ledger_pb2.GetEntryRequest(entry_id=bytes(32)), "ENTRY_UNKNOWN"),
            ("GetInclusionProof", ledger_pb2.GetInclusionProofRequest(index=0, size=10**6), "SIZE_NOT_REACHED"),
            ("GetConsistencyProof", ledger_pb2.GetConsistencyProofRequest(first=2, second=1), "SIZE_NOT_REACHED"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await getattr(await client.stub(), method)(request, timeout=5)
            assert reason_of(refused.value) == reason
        # The number that is refused is named in the log, so that nobody looks for it.
        body = parse_entry((await client.first_of(Kind.QUARANTINE)).body[32:]).body
        assert (body["reason"], body["issuer"]) == ("KIND_NOT_ALLOWED", router.publisher.issuer.hex())


async def until_crowded(decisions: Decisions) -> str:
    """Record until there is no room for what is not essential; return the refusal."""
    while True:
        try:
            await decisions.record_later({"decision": "refused", "reason": "x" * (MAX_ENTRY_BYTES // 2)})
        except MeshError as error:
            return error.reason


async def test_a_crowded_outbox_of_the_kms_does_not_keep_the_ledger_that_empties_it_from_starting(
    mesh: JoinedMesh,
) -> None:
    """The KMS gives no outward certificate then, and nothing leaves its outbox before this ledger acknowledges it."""
    # A part of the outbox leaves it whole: what is not reserved holds more than one.
    reserve = DEFAULT_MAX_BYTES - 3 * DEFAULT_PART_BYTES // 2
    async with LiveMesh(mesh, kms_reserve_bytes=reserve).running() as live:
        assert await until_crowded(live.decisions) == "OUTBOX_FULL"
        await live.start()
