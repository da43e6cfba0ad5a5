"""Tenants share an outbox: whoever floods it while the ledger is silent leaves room for others, over restarts too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.errors import MeshError
from libs.events.batches import encode_batch
from libs.events.issuer import Issuer
from libs.events.kinds import Kind
from libs.events.outbox import open_outbox
from libs.events.outbox_items import Acknowledged, Cut, RecordFacts, Stored
from libs.events.publish import EventSettings, LedgerUnavailable, Publisher, open_publisher
from libs.events.records import MAX_BODY_BYTES
from libs.events.vault import VaultKey
from tests.unit.libs.events.conftest import FAST, VAULT, Mesh, member_with

PATIENCE_SECONDS = 60.0
OTHERS = replace(VAULT, vault_id=b"\x0e" * 16, tenant="0f" * 16)
OUTBOX_BYTES = 16 * MAX_BODY_BYTES
ENTRY_BYTES = MAX_BODY_BYTES // 4


@asynccontextmanager
async def small_publisher(mesh: Mesh) -> AsyncIterator[Publisher]:
    outbox = mesh.folder / "outbox"
    settings = EventSettings(mesh.broker.url, "127.0.0.1:9", outbox, outbox_max_bytes=OUTBOX_BYTES)
    member = member_with(mesh.ca, mesh.router_files, mesh.log_key)
    opened = open_publisher(member, settings, mesh.peer, log_key=mesh.log_key, timing=FAST)
    async with mesh.reading(), opened as publisher:
        yield publisher


async def flood(publisher: Publisher, vault: VaultKey) -> tuple[int, str]:
    """Have as many entries logged as may be; return how many, and why no more."""
    count = 0
    try:
        while True:
            await publisher.enqueue(Kind.USAGE, {"padding": "x" * ENTRY_BYTES}, vault=vault)
            count += 1
    except MeshError as error:
        return count, error.reason


async def test_one_that_floods_a_silent_ledger_has_half_of_the_outbox_and_others_find_room(mesh: Mesh) -> None:
    mesh.ledger.silent = True
    async with asyncio.timeout(PATIENCE_SECONDS), small_publisher(mesh) as publisher:
        count, why = await flood(publisher, VAULT)
        assert why == "OUTBOX_SHARE_FULL"
        assert 0.4 * OUTBOX_BYTES < count * ENTRY_BYTES < 0.5 * OUTBOX_BYTES
        with pytest.raises(MeshError) as refused:
            publisher.require_room(tenant=VAULT.tenant)
        assert refused.value.reason == "OUTBOX_SHARE_FULL"
        publisher.require_room(tenant=OTHERS.tenant)
        others, why = await flood(publisher, OTHERS)
        assert (others > 0.3 * count, why) == (True, "OUTBOX_SHARE_FULL")
        publisher.require_room()
        mesh.ledger.silent = False
        mesh.ledger.wake()
        await publisher.commit(Kind.POLICY, {}, vault=None, timeout=PATIENCE_SECONDS)
        publisher.require_room(tenant=VAULT.tenant)


async def test_what_a_receipt_needs_said_of_it_needs_no_share(mesh: Mesh) -> None:
    mesh.ledger.silent = True
    async with asyncio.timeout(PATIENCE_SECONDS), small_publisher(mesh) as publisher:
        receipt = asyncio.create_task(publisher.commit(Kind.RECEIPT, {}, vault=VAULT, timeout=1.0))
        await asyncio.sleep(0)
        await flood(publisher, VAULT)
        held = publisher._outbox.state.held(VAULT.tenant)
        with pytest.raises(LedgerUnavailable):
            await receipt
        mesh.ledger.silent = False
        mesh.ledger.wake()
        await publisher.commit(Kind.POLICY, {}, vault=None, timeout=PATIENCE_SECONDS)
        assert publisher._outbox.state.uncut(publisher.issuer) == []
        assert publisher._outbox.state.held(VAULT.tenant) < held


def batch_of(issuer: Issuer, *vaults: VaultKey) -> Stored:
    sealed = [issuer.seal(Kind.RECEIPT, {"padding": "x" * 1000}, vault) for vault in vaults]
    message = encode_batch(issuer.id, sealed[0].issuer_seq, [one.record for one in sealed], issuer.key)
    facts = tuple(RecordFacts.of(one.record, one.tenant) for one in sealed)
    return Stored(issuer.id, sealed[0].issuer_seq, message, facts)


async def test_what_is_whose_is_known_after_a_restart_and_given_back_once_it_is_done_with(tmp_path: Path) -> None:
    issuer = Issuer(Ed25519PrivateKey.generate())
    async with open_outbox(tmp_path, issuer.id) as outbox:
        written = outbox.append(batch_of(issuer, VAULT, VAULT, OTHERS))
        held = outbox.state.held(VAULT.tenant)
        assert held > 2000, "also before it is durable"
        await written
    async with open_outbox(tmp_path, b"\x0b" * 32) as outbox:
        assert (outbox.state.held(VAULT.tenant), outbox.state.held(OTHERS.tenant)) == (held, held // 2)
        for number in (1, 2):
            outbox.append(Acknowledged(issuer.id, number, 1, bytes(112)))
        await outbox.append(Cut(issuer.id, 1))
        assert outbox.state.held(VAULT.tenant) == held // 2
        await outbox.append(Cut(issuer.id, 2))
        assert (outbox.state.held(VAULT.tenant), outbox.state.held(OTHERS.tenant)) == (0, held // 2)
