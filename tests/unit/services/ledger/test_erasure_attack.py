"""After an erasure nothing that is left anywhere opens an entry of the vault, and every proof still verifies.

The ledger is the real process; KMS, nats-server and what a router keeps of receipts around it are real too.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.errors import MeshError
from libs.events.erasure import ErasureDone, ErasureOrdered, parse_erasure
from libs.events.publish import Committed
from libs.events.records import parse_entry
from libs.events.vault import PUBLIC_VAULT_ID, VaultKey
from libs.events.whole_frames import entries_of
from libs.policy.orders import ERASE_VAULT, HOLD_VAULT, RELEASE_VAULT
from libs.policy.vault_orders import VaultPart, verify_erasure
from libs.rpc.errors import reason_of
from libs.transparency import checkpoint, leaf
from libs.transparency.leaf import Kind
from libs.transparency.merkle import leaf_hash, verify_consistency, verify_inclusion
from services.router.errors import NotFound
from services.router.proof.erasures import ErasureReading
from services.router.proof.kept_receipts import StoredReceipt
from services.router.proof.store import ReceiptStore, open_receipt_store
from services.router.proof.vaults import Vaults
from tests.fakes.joined_mesh import JoinedMesh
from tests.fakes.secrets import Secrets

from .live import LiveMesh, Router
from .live_group import LiveGroup
from .vault_attack import Loot, files_below, released_by_the_kms, rows_in

ERASED_TENANT, OTHER_TENANT = "ab" * 16, "cd" * 16
PATIENCE_SECONDS = 60.0
ENTRIES = 4
STRIDE = 6
"""An erasure has a dozen writes and syncs: with 1 the ledger dies before each of them, every other time half way."""
LEAST_DEATHS = 3


@pytest.fixture
async def live(mesh: JoinedMesh) -> AsyncIterator[LiveMesh]:
    async with LiveMesh(mesh).running() as running:
        yield running


@pytest.fixture
async def group(mesh: JoinedMesh) -> AsyncIterator[LiveGroup]:
    async with LiveGroup(mesh).running() as running:
        assert isinstance(running, LiveGroup)
        yield running


class Writer:
    """A router with its vault keys, its copies of receipts, and its reading of erasures."""

    def __init__(self, router: Router, store: ReceiptStore) -> None:
        self.router = router
        self.store = store
        self.vaults = Vaults(router.member, router.ledger, router.receiver)
        self.reading = ErasureReading(router.ledger, self.vaults, store.erased)

    async def stub(self) -> Any:
        return ledger_pb2_grpc.LedgerServiceStub(await self.router.ledger.channel(PATIENCE_SECONDS))

    async def write(self, tenant: str, number: int, vault: VaultKey | None = None) -> Committed:
        """Log a receipt and keep a copy, as a router does."""
        vault = vault or await self.vaults.key(tenant)
        publisher = self.router.publisher
        receipt_id = f"rcpt-{tenant[:2]}-{number}"
        body = {"receipt_id": receipt_id, "n": number}
        committed = await publisher.commit(Kind.RECEIPT, body, vault=vault, timeout=PATIENCE_SECONDS)
        publisher.released(committed)
        await self.store.receipts.put(
            StoredReceipt(
                receipt_id=receipt_id,
                chat_id=None,
                tenant_id=tenant,
                receipt=b"{}",
                entry=committed.entry,
                salt=committed.salt,
                entry_id=committed.entry_id,
                issuer_seq=committed.issuer_seq,
                vault_id=vault.vault_id,
                vault_epoch=vault.epoch,
            )
        )
        return committed


@asynccontextmanager
async def writer(live: LiveMesh) -> AsyncIterator[Writer]:
    path = live.mesh.folder / "receipts.sqlite"
    async with live.router() as router, open_receipt_store(path) as store, asyncio.TaskGroup() as tasks:
        made = Writer(router, store)
        following = tasks.create_task(made.reading.follow())
        yield made
        following.cancel()


@dataclass(frozen=True, slots=True)
class Proof:
    """What somebody took home."""

    index: int
    hashed: bytes
    path: tuple[bytes, ...]
    tree: checkpoint.Checkpoint

    def verify(self) -> None:
        verify_inclusion(self.hashed, self.index, self.tree.size, list(self.path), self.tree.root)


async def prove(stub: Any, committed: Committed) -> Proof:
    """Ask until a checkpoint covers the entry."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with suppress(grpc.aio.AioRpcError):
                request = ledger_pb2.GetInclusionProofRequest(entry_id=committed.entry_id)
                proof = await stub.GetInclusionProof(request, timeout=5)
                if proof.checkpoint:
                    hashed = leaf_hash(committed.acknowledgement.leaf_data)
                    return Proof(proof.index, hashed, tuple(proof.path), checkpoint.parse(proof.checkpoint))
            await asyncio.sleep(0.05)


async def erase(live: LiveMesh, vault_id: bytes, **order: Any) -> ledger_pb2.EraseVaultResponse:
    async with live.operator() as ledger:
        signed = live.order(ERASE_VAULT, VaultPart(vault_id, None).subject, **order)
        request = ledger_pb2.EraseVaultRequest(signed_order=signed)
        response: ledger_pb2.EraseVaultResponse = await ledger.EraseVault(request, timeout=PATIENCE_SECONDS)
        return response


async def test_nothing_that_is_left_opens_an_erased_entry_and_all_proofs_verify(live: LiveMesh) -> None:
    async with writer(live) as router:
        await live.start()
        committed = {
            tenant: [await router.write(tenant, number) for number in range(ENTRIES)]
            for tenant in (ERASED_TENANT, OTHER_TENANT)
        }
        everything = committed[ERASED_TENANT] + committed[OTHER_TENANT]
        stub = await router.stub()
        proofs = [await prove(stub, each) for each in everything]
        vault, kept = await router.vaults.key(ERASED_TENANT), await router.vaults.key(OTHER_TENANT)

        both = (vault.vault_id, kept.vault_id)
        before = Loot.of(await released_by_the_kms(live, both, [vault.epoch]), files_below(live.mesh.folder))
        secrets = Secrets(
            {
                "vault key": vault.key,
                **{f"salt {each.issuer_seq}": each.salt for each in committed[ERASED_TENANT]},
                **{f"entry {each.issuer_seq}": each.entry for each in committed[ERASED_TENANT]},
                **{f"share {share.hex()[:8]}": share for share in before.shares(vault.vault_id)},
            }
        )
        assert len(secrets.named) == 1 + 2 * ENTRIES + 2  # A share and a tag share among them.
        assert {name for data in before.files.values() for name in secrets.found_in(data)} >= {
            f"{what} {each.issuer_seq}" for what in ("salt", "entry") for each in committed[ERASED_TENANT]
        }

        erased = await erase(live, vault.vault_id)
        assert (erased.vault_id, erased.epoch, erased.key, erased.last_seq) == (vault.vault_id, 0, "retired", ENTRIES)
        await check_what_the_log_says(live, stub, erased, committed)
        await check_proofs(stub, proofs, everything)
        await until_forgotten(router, ERASED_TENANT)
        assert await has_copy(router, OTHER_TENANT, 0)
        assert found_in(secrets, files_below(live.mesh.folder)) == {}
        await check_the_tenant_may_return(router, vault)
        released = await released_by_the_kms(live, both, [vault.epoch])

    await live.kill()
    assert set(before.released) - set(released) == {f"ledger-vault/{vault.vault_id.hex()} {vault.epoch}"}
    # The root lives on, and what derives from it could be had again: so the attacker has the refused half too.
    loot = Loot.of({**before.released, **released}, files_below(live.mesh.folder))
    assert found_in(secrets, loot.files) == {}
    check_the_attack(loot, before, live, vault, kept, everything)


def found_in(secrets: Secrets, files: Mapping[Path, bytes]) -> dict[str, list[str]]:
    """The files that hold any of these, and which."""
    return {str(path): found for path, data in files.items() if (found := secrets.found_in(data))}


async def has_copy(router: Writer, tenant: str, number: int) -> bool:
    try:
        await router.store.receipts.find(f"rcpt-{tenant[:2]}-{number}", tenant)
    except NotFound:
        return False
    return True


async def until_forgotten(router: Writer, tenant: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await has_copy(router, tenant, 0):  # noqa: ASYNC110 - the store tells nobody.
            await asyncio.sleep(0.05)


async def check_what_the_log_says(
    live: LiveMesh, stub: Any, erased: ledger_pb2.EraseVaultResponse, committed: dict[str, list[Committed]]
) -> None:
    said = []
    for index in (erased.ordered_index, erased.done_index):
        answer = await stub.GetEntry(ledger_pb2.GetEntryRequest(index=index), timeout=5)
        assert ERASED_TENANT.encode() not in answer.entry.body
        said.append(parse_erasure(parse_entry(answer.entry.body[32:]).body))
    ordered, done = said
    assert isinstance(ordered, ErasureOrdered)
    assert isinstance(done, ErasureDone)
    assert ordered.authority.order is not None
    assert verify_erasure(ordered.authority.order.document, live.kms.policy.current, 0) == done.part
    assert done.checkpoint_size > erased.ordered_index
    for tenant, entries in committed.items():
        for each in entries:
            answer = await stub.GetEntry(ledger_pb2.GetEntryRequest(entry_id=each.entry_id), timeout=5)
            assert answer.entry.leaf_data == each.acknowledgement.leaf_data
            missing = answer.entry.missing
            gone = tenant == ERASED_TENANT
            assert (missing.reason, missing.index) == (("ENTRY_ERASED", erased.ordered_index) if gone else ("", 0))
            assert bool(answer.entry.body) != gone
    tailed = [one async for one in stub.Tail(ledger_pb2.TailRequest(from_index=0), timeout=PATIENCE_SECONDS)]
    missing_in_tail = [entry.index for one in tailed for entry in one.entries if entry.missing.reason]
    assert missing_in_tail == [index_of(each) for each in committed[ERASED_TENANT]]
    await check_whole_frames(stub, [entry for one in tailed for entry in one.entries], committed[ERASED_TENANT])


async def check_whole_frames(stub: Any, tailed: list[ledger_pb2.LoggedEntry], erased: list[Committed]) -> None:
    """Frames go out, none with a body that is erased, and they say what entries say."""
    request = ledger_pb2.TailRequest(from_index=0, whole_frames=True)
    read: list[ledger_pb2.LoggedEntry] = []
    frames = 0
    async for one in stub.Tail(request, timeout=PATIENCE_SECONDS):
        for each in erased:
            assert not any(each.acknowledgement.leaf_data in frame for frame in one.frames)
        read += entries_of(one, len(read))
        frames += len(one.frames)
    assert frames
    assert read[: len(tailed)] == tailed


def index_of(committed: Committed) -> int:
    return int.from_bytes(committed.acknowledgement.statement[8:16], "big")


async def check_proofs(stub: Any, proofs: list[Proof], everything: list[Committed]) -> None:
    for proof, each in zip(proofs, everything, strict=True):
        proof.verify()
        newer = await prove(stub, each)
        newer.verify()
        request = ledger_pb2.GetConsistencyProofRequest(first=proof.tree.size, second=newer.tree.size)
        grown = await stub.GetConsistencyProof(request, timeout=5)
        verify_consistency(proof.tree.size, newer.tree.size, list(grown.path), proof.tree.root, newer.tree.root)


async def check_the_tenant_may_return(router: Writer, vault: VaultKey) -> None:
    with pytest.raises(MeshError, match="VAULT_ERASED") as rejected:
        await router.write(ERASED_TENANT, 100, vault)
    assert rejected.value.reason == "ENTRY_REJECTED"
    returned = await router.vaults.key(ERASED_TENANT)
    assert returned.vault_id != vault.vault_id
    await router.write(ERASED_TENANT, 101)


def check_the_attack(
    loot: Loot, before: Loot, live: LiveMesh, vault: VaultKey, kept: VaultKey, everything: list[Committed]
) -> None:
    rows = [row for _, row in rows_in(live.data_dir) if row.vault_id in (vault.vault_id, kept.vault_id)]
    assert len(rows) == len(everything)
    said = {each.entry for each in everything}
    for row in rows:
        # The same attack, with what was there before, opens them all.
        assert before.opens(row) in said
        assert (loot.opens(row) in said) == (row.vault_id == kept.vault_id)
        assert (loot.opens(row) is None) == (row.vault_id == vault.vault_id)
    # What is attacked is there: the broker still has every sealed body.
    stored = b"".join(data for path, data in loot.files.items() if path.suffix == ".blk")
    assert all(row.body in stored for row in rows)


async def test_nothing_on_any_members_disk_opens_an_erased_entry(group: LiveGroup) -> None:
    async with writer(group) as router:
        await group.start_all()
        group.target = group.targets[await group.writer(router.router.member)]
        said = {(await router.write(ERASED_TENANT, number)).entry for number in range(ENTRIES)}
        vault = await router.vaults.key(ERASED_TENANT)
        released = await released_by_the_kms(group, [vault.vault_id], [vault.epoch])
        # Each member has a copy, and the writer what it works with.
        before = await until_held_by(group, vault.vault_id, released, 1 + len(group.names))
        assert (await erase(group, vault.vault_id)).key == "retired"
        await until_held_by(group, vault.vault_id, released, 0)
        await until_forgotten(router, ERASED_TENANT)
    await group.stop()
    loot = Loot.of(released, files_below(group.mesh.folder))
    for place in group.places.values():
        rows = [row for _, row in rows_in(place.data_dir) if row.vault_id == vault.vault_id]
        assert {before.opens(row) for row in rows} == said
        assert not any(loot.opens(row) for row in rows)


async def until_held_by(live: LiveMesh, vault_id: bytes, released: dict[str, bytes], count: int) -> Loot:
    """Wait until so many files hold shares of a vault: a majority's do at once, the others' a little later."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            loot = Loot.of(released, files_below(live.mesh.folder))
            if len(loot.holding(vault_id)) == count:
                return loot
            await asyncio.sleep(0.05)


async def test_a_ledger_that_is_killed_in_the_middle_finishes_and_keeps_the_rest(live: LiveMesh) -> None:
    async with writer(live) as router:
        await live.start()
        await router.write(ERASED_TENANT, 1)
        other = await router.write(OTHER_TENANT, 1)
        vault = await router.vaults.key(ERASED_TENANT)
        erasing = asyncio.create_task(erase(live, vault.vault_id))
        await router_sees(router, ErasureOrdered)
        await live.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await erasing
        await live.start()
        await router_sees(router, ErasureDone)
        again = await erase(live, vault.vault_id)
        assert again.key == "retired"
        assert (await erase(live, vault.vault_id, not_after=2**33 + 1)) == again
        answer = await (await router.stub()).GetEntry(ledger_pb2.GetEntryRequest(entry_id=other.entry_id), timeout=5)
        assert answer.entry.body
        await router.write(OTHER_TENANT, 2)


async def test_a_ledger_that_dies_at_a_write_of_an_erasure_finishes_it_at_its_next_start(live: LiveMesh) -> None:
    async with writer(live) as router:
        unfinished: list[tuple[Committed, bytes]] = []
        for number in itertools.count():
            await live.start(dies_at=1 + number * STRIDE, torn=number % 2 == 1)
            for entry, vault_id in unfinished:
                assert (await erase(live, vault_id)).key == "retired"
                assert await missing_reason(router, entry) == "ENTRY_ERASED"
            assert await missing_reason(router, await router.write(OTHER_TENANT, number)) == ""
            tenant = f"{number + 1:032x}"
            entry, vault_id = await router.write(tenant, number), (await router.vaults.key(tenant)).vault_id
            live.arm()
            if await survives(live, vault_id):
                break
            await live.kill()
            unfinished = [(entry, vault_id)]
    assert number >= LEAST_DEATHS


async def survives(live: LiveMesh, vault_id: bytes) -> bool:
    """Whether the ledger gets to the end of an erasure."""
    try:
        await erase(live, vault_id)
    except grpc.aio.AioRpcError:
        return False
    return True


async def missing_reason(router: Writer, entry: Committed) -> str:
    request = ledger_pb2.GetEntryRequest(entry_id=entry.entry_id)
    answer = await (await router.stub()).GetEntry(request, timeout=5)
    return str(answer.entry.missing.reason)


async def router_sees(router: Writer, step: type) -> None:
    """Follow the log until it has such an entry."""
    request = ledger_pb2.TailRequest(from_index=0, follow=True, kinds=[int(Kind.ERASURE)])
    async for response in (await router.stub()).Tail(request, timeout=PATIENCE_SECONDS):
        for entry in response.entries:
            assert leaf.parse(entry.leaf_data).kind is Kind.ERASURE
            assert entry.vault_id == PUBLIC_VAULT_ID
            if isinstance(parse_erasure(parse_entry(entry.body[32:]).body), step):
                return


async def test_only_an_operator_with_an_order_erases_and_not_what_is_held(live: LiveMesh) -> None:
    async with writer(live) as router, live.operator() as ledger:
        await live.start()
        await router.write(ERASED_TENANT, 1)
        request = ledger_pb2.GetVaultRequest(tenant_id=ERASED_TENANT)
        described = await ledger.GetVault(request, timeout=5)
        vault = await router.vaults.key(ERASED_TENANT)
        assert (described.vault_id, list(described.epochs)) == (vault.vault_id, [vault.epoch])
        assert not described.held
        subject = vault.vault_id.hex()

        signed = ledger_pb2.EraseVaultRequest(signed_order=live.order(ERASE_VAULT, subject))
        assert await refusal((await router.stub()).EraseVault(signed, timeout=5)) == "ROLE_NOT_ALLOWED"
        alone = ledger_pb2.EraseVaultRequest(signed_order=live.order(ERASE_VAULT, subject, signers=1))
        assert await refusal(ledger.EraseVault(alone, timeout=5)) == "ORDER_SIGNATURES_INSUFFICIENT"
        stranger = ledger_pb2.GetVaultRequest(tenant_id=OTHER_TENANT)
        assert await refusal(ledger.GetVault(stranger, timeout=5)) == "VAULT_UNKNOWN"

        held = ledger_pb2.SetHoldRequest(signed_order=live.order(HOLD_VAULT, subject))
        assert (await ledger.SetHold(held, timeout=20)).held
        assert (await ledger.GetVault(request, timeout=5)).held
        assert await refusal(ledger.EraseVault(signed, timeout=5)) == "VAULT_HELD"
        await live.kill()
        await live.start()
    async with live.operator() as ledger:
        assert await refusal(ledger.EraseVault(signed, timeout=5)) == "VAULT_HELD"
        released = ledger_pb2.SetHoldRequest(signed_order=live.order(RELEASE_VAULT, subject))
        assert not (await ledger.SetHold(released, timeout=20)).held
        assert (await ledger.EraseVault(signed, timeout=PATIENCE_SECONDS)).key == "retired"


async def refusal(call: Any) -> str | None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return reason_of(refused.value)
