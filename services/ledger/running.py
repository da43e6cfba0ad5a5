"""It is responsible for wiring an opened log to its keys, its stream and its readers, and for running it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.events.connect import connect_nats
from libs.events.subjects import inbox_prefix
from libs.identity.member import Member
from libs.policy.document import Policy
from services.ledger.checkpoints.announcing import Announcing, SigningKeys
from services.ledger.checkpoints.attesting import submission_of
from services.ledger.checkpoints.auditing import AuditorProcess, Checkpoints
from services.ledger.checkpoints.proofs import Proofs
from services.ledger.checkpoints.split_view import keep
from services.ledger.checkpoints.witnessing import Asked, Witnessing
from services.ledger.config import Config
from services.ledger.growth import Growth
from services.ledger.holding import Alone, Holding, Term
from services.ledger.intake.acknowledging import Acknowledgements, OwnAcknowledgements
from services.ledger.intake.admission import Admission, LogView
from services.ledger.intake.arrivals import Arrivals
from services.ledger.intake.committing import Committing
from services.ledger.intake.examining import open_examiner
from services.ledger.intake.introduction import Introduction
from services.ledger.intake.logged_writers import LoggedWriters
from services.ledger.intake.own import OwnEntries
from services.ledger.intake.policies import LoggedPolicies
from services.ledger.intake.position import Position
from services.ledger.intake.rejections import Rejections
from services.ledger.intake.room import Room
from services.ledger.intake.sequencer import Sequencer
from services.ledger.intake.stream import Intake
from services.ledger.keys import KeySource, ReleasedKey, while_away
from services.ledger.opening import restore
from services.ledger.serving.servicer import Ledger, LedgerServicer, Reading
from services.ledger.serving.tail import KEY_NAME as RESUME_KEY
from services.ledger.serving.tail import Tail
from services.ledger.serving.tiles import Tiles
from services.ledger.storage.breaking import ending_when_broken
from services.ledger.storage.keyring import KEY_NAME as KEYRING_KEY
from services.ledger.storage.keyring import KeyringFile
from services.ledger.storage.scrubbing import Scrubber
from services.ledger.storage.store import LogStore
from services.ledger.vaults.closed import ClosedVaults
from services.ledger.vaults.erasing import Erasing
from services.ledger.vaults.erasures import Erasures
from services.ledger.vaults.orders import VaultOrders
from services.ledger.vaults.prune_orders import PruneOrders
from services.ledger.vaults.retention import Retention
from services.ledger.vaults.vaults import Vaults


@dataclass(frozen=True, slots=True)
class Opened:
    """The log on this disk, and the keys born with this process."""

    store: LogStore
    auditor: AuditorProcess
    ack_key: Ed25519PrivateKey
    log_key: Ed25519PrivateKey
    build: bytes
    """SHA-256 of the measured app-compose: which code this is."""
    asked: Asked
    """Who witnesses it."""

    @property
    def signing_keys(self) -> SigningKeys:
        return SigningKeys(self.ack_key.public_key().public_bytes_raw(), self.auditor.checkpoint_key)


@dataclass(frozen=True, slots=True)
class Trust:
    """By what writers are judged."""

    policies: LoggedPolicies
    ca_certificate: bytes
    in_force: Callable[[], Policy]
    """Returns the policy under which operators order; raises where it may be stale."""


async def open_reading(config: Config, opened: Opened, keys: KeySource, growth: Growth) -> Reading:
    """Return what can be read of a log, as far as `growth` says that it counts. Waits for its key."""
    store = opened.store
    checkpoints = Checkpoints(
        opened.auditor,
        growth,
        _watermark_syncer(store),
        config.checkpoint_seconds,
        has_witnesses=bool(opened.asked.witnesses),
    )
    tail = Tail(store, growth, checkpoints, keys, await _wait(keys, RESUME_KEY))
    proofs, closed = Proofs(store, growth, checkpoints), ClosedVaults(store, growth)
    return Reading(growth, checkpoints, proofs, store.reader, tail, closed, store.prunings, Tiles(store, checkpoints))


async def keep_sound(config: Config, opened: Opened) -> None:
    """Watch over the auditor, and have the log read again by and by, for ever.

    Raises `AuditorGone` or `LogDamaged`.
    """
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(opened.auditor.watch())
        tasks.create_task(Scrubber(opened.store, config.scrub_megabytes_per_second).keep())


@asynccontextmanager
async def running_alone(
    member: Member,
    servicer: LedgerServicer,
    introduction: Introduction,
    config: Config,
    opened: Opened,
    trust: Trust,
    keys: KeySource,
    thread: ThreadPoolExecutor,
) -> AsyncIterator[Reading]:
    """Run a log that is on this machine alone while the body runs. Raises what the log's own state refuses."""
    store = opened.store
    reading = await open_reading(config, opened, keys, Growth(store.head.size, store.head.root()))
    term = Term(store.last_epoch + 1, Alone())
    async with (
        running(member, introduction, config, opened, trust, keys, reading, term, thread) as ledger,
        asyncio.TaskGroup() as tasks,
    ):
        servicer.begin(ledger)
        background = [
            tasks.create_task(reading.checkpoints.keep()),
            tasks.create_task(keep_sound(config, opened)),
        ]
        yield reading
        for task in background:
            task.cancel()


@asynccontextmanager
async def running(
    member: Member,
    introduction: Introduction,
    config: Config,
    opened: Opened,
    trust: Trust,
    keys: KeySource,
    reading: Reading,
    term: Term,
    thread: ThreadPoolExecutor,
) -> AsyncIterator[Ledger]:
    """Write the log while the body runs: wait for the keys, restore what the log says, then read the stream.

    `thread` is the one that writes the log. Raises what the log's own state refuses.
    """
    store, growth = opened.store, reading.growth
    erasures = Erasures()
    vaults = await _open_vaults(config, store, keys, erasures, term.holding)
    with closing(await asyncio.to_thread(Rejections, config.data_dir)) as rejections:
        admission = Admission(trust.policies, _view_of(store), trust.ca_certificate, erasures)
        await asyncio.to_thread(restore, store, admission, trust.policies, vaults, erasures, rejections)
        acknowledgements = Acknowledgements(store, rejections, opened.ack_key, term.epoch, lambda: growth.size)
        introduction.answering.begin(OwnAcknowledgements(acknowledgements, store.log_id))
        async with (
            open_examiner() as examiner,
            connect_nats(
                config.events.nats_url,
                member.broker(config.events.broker),
                server_name=f"broker.{member.trust_domain}",
                name=f"{member.role}/{member.instance}/intake",
                inbox_prefix=inbox_prefix(member.role),
            ) as link,
            asyncio.TaskGroup() as tasks,
        ):
            publisher = introduction.publisher
            own = OwnEntries(publisher)
            committing = Committing(
                admission=admission,
                sequencer=Sequencer(store, epoch=term.epoch, tag=vaults.tag, clock=time.time_ns),
                rejections=rejections,
                acknowledgements=acknowledgements,
                owed=introduction.owed,
                issuer=publisher.issuer,
                growth=growth,
                holding=term.holding,
                thread=thread,
            )
            position = Position(store, rejections, lambda issuer: admission.writer(issuer) is not None)
            intake = Intake(
                link,
                config.events.log_number,
                position,
                Arrivals(vaults, examiner),
                committing,
                max_bytes=config.stream_max_bytes,
                replicas=config.stream_replicas,
            )
            room = Room(link, config.events.log_number, committing, reading.checkpoints.covering)
            witnessing = Witnessing(
                opened.asked,
                reading.checkpoints,
                reading.proofs,
                lambda request: submission_of(member, request),
                lambda found: asyncio.to_thread(keep, config.data_dir, found),
            )
            in_force = trust.in_force
            erasing = Erasing(store, growth, erasures, vaults, keys, reading.checkpoints, own)
            vault_orders = VaultOrders(in_force, store, growth, vaults, erasures, erasing, own)
            retention = Retention(
                in_force, vaults, erasures, vault_orders, lambda entry: store.index.find(entry) is not None
            )
            announcing = Announcing(store, growth, reading.checkpoints, own)
            await own.start(term.epoch, opened.build, store.head.size)
            await announcing.begin(term.epoch, opened.signing_keys)
            background = [
                tasks.create_task(examiner.watch()),
                tasks.create_task(intake.run()),
                tasks.create_task(room.keep()),
                tasks.create_task(witnessing.keep()),
                tasks.create_task(erasing.keep()),
                tasks.create_task(announcing.keep_seals()),
                tasks.create_task(announcing.keep_witnessed()),
                tasks.create_task(retention.keep()),
            ]
            prune_orders = PruneOrders(in_force, store, growth, own)
            yield Ledger(vaults, acknowledgements, vault_orders, prune_orders, reading)
            for task in background:
                task.cancel()


async def _open_vaults(
    config: Config, store: LogStore, keys: KeySource, erasures: Erasures, holding: Holding
) -> Vaults:
    """Open the keyring under the key that it is under; what is written from now on is under the newest."""
    newest = await _wait(keys, KEYRING_KEY)
    file = KeyringFile(config.data_dir, store.log_id)
    stored_epoch = await asyncio.to_thread(file.key_epoch)
    opening = newest if stored_epoch in (None, newest.epoch) else await _wait(keys, KEYRING_KEY, stored_epoch or 0)
    return Vaults(file, await asyncio.to_thread(file.load, opening.key), newest, keys, erasures, holding=holding)


async def _wait(keys: KeySource, name: str, epoch: int = 0) -> ReleasedKey:
    async def ask() -> ReleasedKey:
        return await keys.release(name, epoch)

    return await while_away(ask, name)


def _view_of(store: LogStore) -> LogView:
    def highest(issuer: bytes) -> int:
        progress = store.index.progress(issuer)
        return 0 if progress is None else progress.highest

    return LogView(store.index.has, highest, LoggedWriters(store.index, store.reader).of)


def _watermark_syncer(store: LogStore) -> Callable[[], Awaitable[None]]:
    def sync() -> None:
        with ending_when_broken():
            store.sync_watermark()

    async def off_the_loop() -> None:
        await asyncio.to_thread(sync)

    return off_the_loop
