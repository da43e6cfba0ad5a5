"""What a router forgets: keys at once, copies when it is done, whatever comes while a key is on its way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.errors import Code
from libs.events.erasure import KEY_RETIRED, Authority, ErasureDone, ErasureEntry, ErasureOrdered, HoldChanged
from libs.events.records import Entry
from libs.events.vault import vault_epoch
from libs.identity.member import Member
from libs.identity.peers import Peer
from libs.identity.sealed import ReceiverKey, release_info, seal
from libs.policy.orders import HOLD_VAULT, Order, SignedOrder
from libs.policy.vault_orders import VaultPart
from libs.rpc.errors import STATUS_DETAILS_KEY, RemoteRefused, status_of
from libs.transparency.leaf import Kind
from services.router.errors import NotFound
from services.router.proof.erasures import ErasureReading
from services.router.proof.store import ReceiptStore, open_receipt_store
from services.router.proof.vaults import Vaults

from .test_store import stored

TENANT, ROUTER = "ab" * 16, "spiffe://mesh.test/router/1"
VAULT = b"\x0a" * 16
WHOLE = VaultPart(VAULT, None)
PATIENCE_SECONDS = 20.0
ORDER = SignedOrder(Order("mesh.test", HOLD_VAULT, VAULT.hex(), 2**33)).signed_by(Ed25519PrivateKey.generate())
ORDERED = ErasureOrdered(WHOLE, 1, Authority(1, ORDER))
DONE = ErasureDone(WHOLE, bytes(32), 1, 1, bytes(32), 1, KEY_RETIRED)


def this_month() -> int:
    return vault_epoch(time.time())


class Ledger(ledger_pb2_grpc.LedgerServiceServicer):
    """A ledger with one vault, whose entries of kind ERASURE the test writes."""

    def __init__(self) -> None:
        self.receiver = ReceiverKey()
        self.requests: list[ledger_pb2.TailRequest] = []
        self.entries: list[ledger_pb2.LoggedEntry] = []
        self.grown = asyncio.Event()
        self.opening = asyncio.Event()
        self.answer_opening = asyncio.Event()
        self.answer_opening.set()
        self.another_log = False

    def say(self, said: ErasureEntry) -> None:
        number = len(self.entries) + 1
        entry = Entry(Kind.ERASURE, bytes(32), number, bytes(32), None, said.body())
        self.entries.append(ledger_pb2.LoggedEntry(index=number, body=bytes(32) + entry.canonical()))
        grown, self.grown = self.grown, asyncio.Event()
        grown.set()

    async def OpenVault(self, request: Any, context: Any) -> ledger_pb2.OpenVaultResponse:  # noqa: N802
        self.opening.set()
        await self.answer_opening.wait()
        epoch = this_month()
        info = release_info(f"ledger-vault/{VAULT.hex()}", epoch, ROUTER)
        sealed = seal(bytes([len(self.entries)]) * 32, self.receiver.public.hex(), info)
        return ledger_pb2.OpenVaultResponse(vault_id=VAULT, vault_epoch=epoch, sealed_key=sealed)

    async def Tail(self, request: Any, context: Any) -> AsyncIterator[ledger_pb2.TailResponse]:  # noqa: N802
        self.requests.append(request)
        if self.another_log:
            self.another_log = False
            await refuse(context)
        at = int(request.token.split()[-1]) if request.token else request.from_index
        while True:
            grown = self.grown
            for entry in self.entries[at:]:
                at = entry.index
                yield ledger_pb2.TailResponse(entries=[entry], token=b"after %d" % at)
            await grown.wait()


async def refuse(context: Any) -> None:
    error = RemoteRefused(Code.FAILED_PRECONDITION, "LOG_DIVERGED", "another log")
    status = status_of(error)
    await context.abort(
        grpc.StatusCode.FAILED_PRECONDITION, "another log", ((STATUS_DETAILS_KEY, status.SerializeToString()),)
    )


class Reaching:
    """The router as a member, and its way to the ledger."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.spiffe_id = ROUTER

    async def channel(self, timeout: float) -> grpc.aio.Channel:
        return self._channel


class Bench:
    def __init__(self, ledger: Ledger, channel: grpc.aio.Channel, store: ReceiptStore) -> None:
        self.ledger, self.store = ledger, store
        reaching = Reaching(channel)
        self.vaults = Vaults(cast(Member, reaching), cast(Peer, reaching), ledger.receiver)
        self.reading = ErasureReading(reaching, self.vaults, store.erased)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
            following = tasks.create_task(self.reading.follow())
            yield
            following.cancel()

    async def until_read(self, token: bytes) -> None:
        while await self.store.erased.place() != token:  # noqa: ASYNC110 - the store tells nobody.
            await asyncio.sleep(0.01)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    ledger, server = Ledger(), grpc.aio.server()  # type: ignore[abstract]  # The other methods stay unimplemented.
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(ledger, server)
    address = f"unix:{tmp_path}/ledger.sock"
    server.add_insecure_port(address)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel, open_receipt_store(tmp_path / "r.db") as store:
            yield Bench(ledger, channel, store)
    finally:
        await server.stop(None)


async def has_copy(store: ReceiptStore) -> bool:
    try:
        await store.receipts.find("rcpt-1", "t1")
    except NotFound:
        return False
    return True


async def test_at_the_order_the_key_goes_and_the_copies_once_it_is_done(bench: Bench) -> None:
    await bench.store.receipts.put(replace(stored(1), vault_id=VAULT, vault_epoch=this_month()))
    first = await bench.vaults.key(TENANT)
    assert await bench.vaults.key(TENANT) is first
    async with bench.following():
        bench.ledger.say(ORDERED)
        await bench.until_read(b"after 1")
        assert (await bench.vaults.key(TENANT)).key != first.key
        assert await has_copy(bench.store)
        bench.ledger.say(DONE)
        await bench.until_read(b"after 2")
        assert not await has_copy(bench.store)


async def test_a_hold_and_another_vault_or_month_make_it_forget_nothing(bench: Bench) -> None:
    await bench.store.receipts.put(replace(stored(1), vault_id=VAULT, vault_epoch=this_month()))
    first = await bench.vaults.key(TENANT)
    async with bench.following():
        bench.ledger.say(HoldChanged(VAULT, True, 1, ORDER))
        for part in (VaultPart(b"\x0b" * 16, None), VaultPart(VAULT, this_month() - 1)):
            bench.ledger.say(replace(ORDERED, part=part))
            bench.ledger.say(replace(DONE, part=part))
        await bench.until_read(b"after 5")
        assert await bench.vaults.key(TENANT) is first
        assert await has_copy(bench.store)


async def test_a_key_that_was_on_its_way_when_its_vault_was_closed_is_not_kept(bench: Bench) -> None:
    bench.ledger.answer_opening.clear()
    asked = asyncio.ensure_future(bench.vaults.key(TENANT))
    await bench.ledger.opening.wait()
    bench.vaults.drop(WHOLE)
    bench.ledger.answer_opening.set()
    first = await asked
    assert await bench.vaults.key(TENANT) is not first


async def test_reading_goes_on_where_it_stopped_and_from_the_start_in_another_log(bench: Bench) -> None:
    async with bench.following():
        bench.ledger.say(ORDERED)
        await bench.until_read(b"after 1")
    bench.ledger.another_log = True
    async with bench.following():
        bench.ledger.say(DONE)
        await bench.until_read(b"after 2")
    begun = [(request.token, request.WhichOneof("start")) for request in bench.ledger.requests]
    assert begun == [(b"", "from_index"), (b"after 1", "token"), (b"", "from_index")]
    assert {tuple(request.kinds) for request in bench.ledger.requests} == {(int(Kind.ERASURE),)}
