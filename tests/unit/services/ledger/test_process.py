"""The ledger as a process: nothing that it acknowledged is lost when it is killed, and damage keeps it down."""

from __future__ import annotations

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.errors import MeshError
from libs.events.publish import Committed
from libs.events.records import Record, RecordHeader, open_record, parse_entry
from libs.events.vault import VaultKey
from libs.identity.sealed import release_info
from libs.rpc.errors import reason_of
from libs.transparency import checkpoint, leaf
from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind
from libs.transparency.merkle import leaf_hash, verify_consistency, verify_inclusion
from libs.transparency.note import VerifierKey
from services.ledger import segments
from services.ledger.scan import SEGMENTS
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
    """The ledger as a router calls it. The ledger may be away, or not ready: then it asks again."""

    def __init__(self, router: Router) -> None:
        self.router = router

    async def call(self, method: str, request: Any) -> Any:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    stub = ledger_pb2_grpc.LedgerServiceStub(await self.router.ledger.channel(5))
                    return await getattr(stub, method)(request, timeout=5)
                except MeshError:
                    await asyncio.sleep(0.05)
                except grpc.aio.AioRpcError as error:
                    if reason_of(error) not in (None, "LEDGER_NOT_READY", "NO_CHECKPOINT", "EVIDENCE_REQUIRED"):
                        raise
                    await asyncio.sleep(0.05)

    async def open_vault(self) -> VaultKey:
        response = await self.call("OpenVault", ledger_pb2.OpenVaultRequest(tenant_id=TENANT))
        info = release_info(
            f"ledger-vault/{response.vault_id.hex()}", response.vault_epoch, self.router.member.spiffe_id
        )
        key = self.router.receiver.open(response.sealed_key, info)
        return VaultKey(response.vault_id, response.vault_epoch, key, TENANT)

    async def tail(self, request: ledger_pb2.TailRequest) -> list[ledger_pb2.TailResponse]:
        stub = ledger_pb2_grpc.LedgerServiceStub(await self.router.ledger.channel(5))
        return [response async for response in stub.Tail(request, timeout=30)]

    async def checkpoint(self, at_least: int) -> tuple[checkpoint.Checkpoint, bytes]:
        """A verified checkpoint of at least that size, and its note."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                response = await self.call("GetCheckpoint", ledger_pb2.GetCheckpointRequest())
                key = self.router.ledger.lease.appraisal.workload_claims["checkpoint_key"]
                signed = checkpoint.verify(response.checkpoint, VerifierKey(ORIGIN, bytes.fromhex(key)))
                if signed.size >= at_least:
                    return signed, response.checkpoint
                await asyncio.sleep(0.05)


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
        proof = await client.call(
            "GetConsistencyProof", ledger_pb2.GetConsistencyProofRequest(first=earlier.size, second=later.size)
        )
        verify_consistency(earlier.size, later.size, list(proof.path), earlier.root, later.root)
        assert await client.tail(ledger_pb2.TailRequest(token=token))  # It is the same log, only longer.

        batches = await client.tail(ledger_pb2.TailRequest(from_index=0, max_batch=50))
        entries = [entry for batch in batches for entry in batch.entries]
        assert [entry.index for entry in entries] == list(range(len(entries)))
        check_every_receipt_is_there_once(entries, committed, vault)
        for each in (committed[0], committed[-1]):
            included = await client.call(
                "GetInclusionProof", ledger_pb2.GetInclusionProofRequest(entry_id=each.entry_id, size=later.size)
            )
            hashed = leaf_hash(each.acknowledgement.leaf_data)
            assert (included.index, included.leaf_hash) == (index_of(each), hashed)
            verify_inclusion(hashed, included.index, later.size, list(included.path), later.root)
        assert await checkpoint_over_https(live, router) >= later.size
        assert checkpoint.parse(note).origin == ORIGIN
        assert await live.kill(signal.SIGTERM) == 0


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
    kinds = [public.kind for _, public in parsed(entries)]
    # The KMS, two starts of the ledger, and the router each began with a keyset; the KMS recorded its policy.
    assert (kinds.count(Kind.KEYSET), kinds.count(Kind.START), kinds.count(Kind.POLICY)) == (4, 2, 1)
    assert not {Kind.GAP, Kind.CONFLICT, Kind.QUARANTINE} & set(kinds)


def parsed(entries: list[ledger_pb2.LoggedEntry]) -> list[tuple[ledger_pb2.LoggedEntry, leaf.Leaf]]:
    return [(entry, leaf.parse(entry.leaf_data)) for entry in entries]


async def checkpoint_over_https(live: LiveMesh, router: Router) -> int:
    context = ssl.create_default_context(cadata=router.member.ca_pem.decode())
    async with aiohttp.ClientSession() as session:
        async with session.get(f"https://{live.https}/checkpoint", ssl=context) as response:
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
    path: Path = live.data_dir / SEGMENTS / segments.file_name(0)
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    await live.start()
    code, said = await live.ended()
    assert (code, "LOG_DAMAGED" in said, path.name in said) == (3, True, True)
    path.write_bytes(whole[: segments.HEADER_SIZE])
    await live.start()
    code, said = await live.ended()
    assert (code, "LOG_ROLLED_BACK" in said) == (4, True)


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
                await client.call(method, request)
            assert reason_of(refused.value) == reason
        # The number that is refused is named in the log, so that nobody looks for it.
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (found := [each for each in await entries_of(client) if leaf_kind(each) is Kind.QUARANTINE]):
                await asyncio.sleep(0.05)
        body = parse_entry(found[0].body[32:]).body
        assert (body["reason"], body["issuer"]) == ("KIND_NOT_ALLOWED", router.publisher.issuer.hex())


async def entries_of(client: Client) -> list[ledger_pb2.LoggedEntry]:
    batches = await client.tail(ledger_pb2.TailRequest(from_index=0))
    return [entry for batch in batches for entry in batch.entries]


def leaf_kind(entry: ledger_pb2.LoggedEntry) -> Kind:
    return leaf.parse(entry.leaf_data).kind
