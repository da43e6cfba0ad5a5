"""Responsible for the cost of the ledger's acknowledgement: one commit, beside one small durable write on its disk.

The writer is a member of the running mesh like any other: attested by the router's own virtual TD, its entries sealed,
batched, published through the broker and acknowledged by the ledger that also serves the chats.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.config import load
from libs.events.publish import Publisher, open_publisher
from libs.events.vault import VaultKey
from libs.identity.member import Member, join
from libs.identity.sealed import ReceiverKey
from libs.transparency.leaf import Kind
from services.cli.mesh.layout import Layout
from services.router.config import Config
from services.router.proof.vaults import Vaults
from tests.bench import ledger_verify
from tests.bench.report import Row, Section
from tests.bench.samples import Action, Limit, side_by_side
from tests.mesh.running import RunningMesh

_BLOCK = secrets.token_bytes(4096)
_BODY_BYTES = 1500
"""About a receipt's."""
_ACK_SECONDS = 10.0
_AT_ONCE = 16


@asynccontextmanager
async def writing(mesh: RunningMesh, folder: Path) -> AsyncIterator[tuple[Member, Publisher, VaultKey]]:
    """Join the mesh as one more router, with a log key and an outbox of its own."""
    config = load(Layout(mesh.state).config("router"), Config)
    settings = replace(config.member, instance="bench", listen="127.0.0.1:0", state_dir=folder / "member")
    events = replace(config.events, outbox=folder / "outbox")
    log_key, receiver = Ed25519PrivateKey.generate(), ReceiverKey()
    claims = {"log_key": log_key.public_key().public_bytes_raw().hex(), "hpke_key": receiver.public.hex()}
    async with join(settings, "router", claims) as member:
        ledger = member.peer("ledger", config.ledger)
        vaults = Vaults(member, ledger, receiver)
        async with open_publisher(member, events, ledger, log_key=log_key, open_vault=vaults.key) as publisher:
            yield member, publisher, await vaults.key(secrets.token_hex(16))


def commit(publisher: Publisher, vault: VaultKey) -> Action:
    body = {"filler": secrets.token_hex(_BODY_BYTES // 2)}

    async def act() -> None:
        publisher.released(await publisher.commit(Kind.RECEIPT, body, vault=vault, timeout=_ACK_SECONDS))

    return act


@contextmanager
def synced_write(folder: Path) -> Iterator[Action]:
    """One 4 KiB append and fdatasync, in a thread as every durable write of the mesh is."""
    file = os.open(folder / "fdatasync", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write() -> None:
        os.write(file, _BLOCK)
        os.fdatasync(file)

    async def act() -> None:
        await asyncio.to_thread(write)

    try:
        yield act
    finally:
        os.close(file)


async def measure(mesh: RunningMesh, folder: Path, *, seconds: float) -> Section:
    async with writing(mesh, folder) as (_, publisher, vault):
        committing = commit(publisher, vault)
        with synced_write(folder) as write:
            synced, alone = await side_by_side([write, committing], Limit(count=300, seconds=seconds, in_a_row=10))
        (together,) = await side_by_side([committing], Limit(count=2000, seconds=seconds / 2), concurrency=_AT_ONCE)
    verifying, verified = await ledger_verify.measure(folder)
    return Section(
        "ledger",
        "one 4 KiB write and fdatasync on the same disk",
        "one receipt committed: sealed, stored, published, logged, acknowledged, verified, stored again",
        [
            Row("commit 1 at once", synced, alone),
            Row(f"commit {_AT_ONCE} at once (base: 1 at once)", alone, together),
            *verifying,
        ],
        [
            "durable writes one after another in a commit: outbox, broker, ledger, outbox; the router adds its copy",
            *verified,
        ],
    )
