"""One life of a small log in a process of its own: start, commits, faults of others, shares, signed trees, and the end.

It is the ledger's own code from what the stream brought down to its files, its auditor, and its outbox, without the
network around them (`commits`): thousands of lives are lived in minutes. What it was told of, an acknowledgement or a
signed tree, it tells at once.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.errors import MeshError
from libs.transparency import checkpoint, cose_receipt, cosignature
from services.ledger.auditor import Auditor
from services.ledger.intake.owed import Owed
from services.ledger.intake.rejections import Rejections
from services.ledger.storage.breaking import ending_when_broken
from services.ledger.storage.keyring import Keyring, KeyringFile, VaultShares
from services.ledger.storage.segments import Geometry
from services.ledger.storage.store import LogStore
from tests.fakes.written_log import ORIGIN, VAULT
from tests.faults.ledger.commits import Commits, began_ns, publishing
from tests.faults.ledger.disk import Disk, Trouble
from tests.faults.ledger.plan import Plan, end_of
from tests.faults.ledger.recording import Recording
from tests.faults.ledger.told import Ended, Kept, Lived, Signed, Tell, Told

GEOMETRY = Geometry(block_leaves=4, segment_leaves=4, segment_bytes=1 << 30, zeros_ahead=600, sealed_at_stop=3)
"""Small, so that a life of a few entries cuts segments."""
ONE_SEGMENT = Geometry(block_leaves=4, segment_leaves=1 << 18, segment_bytes=1 << 30, zeros_ahead=600)
INDEX_KEY = b"\x08" * 32
KEYRING_KEY = b"\x44" * 32
_WITNESS_KEY = Ed25519PrivateKey.from_private_bytes(b"\x0c" * 32)
WITNESS = cosignature.CosignerKey(
    "witness.example", cosignature.Algorithm.ED25519, _WITNESS_KEY.public_key().public_bytes_raw()
)
_PAYS_EVERY = 4
_LIFE_SECONDS = 60.0
_PROCESSES = multiprocessing.get_context("fork")
"""Cheap; so whoever lives MUST have no threads, see `apart`."""


def open_log(folder: Path, plan: Plan) -> LogStore:
    """Open a log as a life does. Raises what the ledger's start raises."""
    key = Ed25519PrivateKey.from_private_bytes(plan.ack_key)
    return LogStore(folder, sign=key.sign, clock=began_ns, index_key=INDEX_KEY, geometry=plan.geometry)


def said_of(folder: Path) -> Path:
    """Where the lives of a log leave what they say."""
    return folder.with_name(f"{folder.name}.said")


def auditor_of(folder: Path, plan: Plan) -> Auditor:
    """The auditor of a life, which has read nothing yet."""
    key = Ed25519PrivateKey.from_private_bytes(plan.checkpoint_key)
    return Auditor(
        folder,
        ORIGIN,
        lambda tree: checkpoint.sign(tree, key),
        lambda tree: cose_receipt.sign(tree, key),
        plan.geometry,
    )


def keyring_of(folder: Path, log_id: bytes) -> Keyring:
    """Open the keyring. Raises `LogDamaged`."""
    return KeyringFile(folder, log_id).load(KEYRING_KEY)


async def live(folder: Path, plan: Plan, tell: Tell) -> None:
    """Take in what of the plan was not read yet, and sign. Raises what the ledger's start and writing raise."""
    with ExitStack() as closings:
        store = closings.enter_context(open_log(folder, plan))
        rejections = closings.enter_context(closing(Rejections(folder)))
        owed = closings.enter_context(closing(Owed(folder)))
        thread = closings.enter_context(ThreadPoolExecutor(1))
        auditor = auditor_of(folder, plan)
        shares, keyring = KeyringFile(folder, store.log_id), keyring_of(folder, store.log_id)
        async with publishing(folder, plan) as publisher:
            commits = Commits(store, rejections, owed, publisher, plan, thread, tell)
            for number, group in enumerate(plan.groups):
                if end_of(group) > store.head.source_high:
                    await commits.commit(group)
                if number < plan.generations:
                    keyring = Keyring(keyring.generation + 1, (_vault(keyring.generation + 1),))
                    shares.store(keyring, KEYRING_KEY, 1)
                    tell(Kept(keyring.generation))
                if number % 2:
                    _sign(store, auditor, tell)
                if number % _PAYS_EVERY == 1:
                    await commits.pay()
            _sign(store, auditor, tell)


def run(folder: Path, plan: Plan, trouble: Trouble | None = Trouble()) -> Lived:  # noqa: B008 - it is frozen
    """Live in a process of its own, with trouble; return when that has ended. Without any, every change is told."""
    ours, theirs = _PROCESSES.Pipe(duplex=False)
    child = _PROCESSES.Process(target=_live_apart, args=(folder, plan, trouble, theirs))
    child.start()
    theirs.close()
    told: list[Told] = []
    with ours:
        while ours.poll(_LIFE_SECONDS):
            try:
                told.append(ours.recv())
            except EOFError:
                break
        else:
            child.kill()
            raise TimeoutError(f"a life with {trouble} does not end")
    child.join()
    assert child.exitcode is not None
    return Lived(child.exitcode, tuple(told))


def _live_apart(folder: Path, plan: Plan, trouble: Trouble | None, telling: Connection) -> None:
    with said_of(folder).open("ab") as said:
        os.dup2(said.fileno(), sys.stderr.fileno())
        os.dup2(said.fileno(), sys.stdout.fileno())
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    disk = Recording(folder, telling.send) if trouble is None else Disk(trouble, telling.send)
    disk.install()
    failed = False
    try:
        with ending_when_broken():
            asyncio.run(live(folder, plan, telling.send))
    except* (OSError, MeshError):
        # As a service's own entry point does with what nobody expected.
        sys.stderr.write(traceback.format_exc(limit=-1))
        failed = True
    if failed:
        sys.exit(1)
    telling.send(Ended(disk.steps, tuple(disk.writes)))


def _sign(store: LogStore, auditor: Auditor, tell: Tell) -> None:
    with ending_when_broken():
        store.sync_watermark()
        note = auditor.checkpoint(store.head.size, store.head.root())
        tell(Signed(note))
        cosigned = cosignature.cosign(checkpoint.parse(note), WITNESS.name, _WITNESS_KEY, 7)
        auditor.witnessed(cosignature.attach(note, [cosigned]))


def _vault(generation: int) -> VaultShares:
    return VaultShares(VAULT.vault_id, VAULT.tenant, b"\x22" * 32, {VAULT.epoch: generation.to_bytes(32, "big")})
