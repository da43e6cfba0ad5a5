"""The commit path of a life: the ledger's own from what came of the stream to its outbox.

The seam is the network, at both ends. What came is handed in as the stream would; what the ledger has to say of others
is durable in its outbox, which nothing empties as no broker is ever there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.events.answers import Answers
from libs.events.connect import NatsLink
from libs.events.issuer import Issuer
from libs.events.keyset import Keyset
from libs.events.outbox import open_outbox
from libs.events.publish import Publisher
from libs.events.sending import Sender, Timing
from libs.events.vault import VaultKey
from libs.transparency.acknowledgement import Acknowledgement, Statement
from libs.transparency.chain import entry_id
from services.ledger.growth import Growth
from services.ledger.holding import Alone
from services.ledger.intake.acknowledging import Acknowledgements
from services.ledger.intake.admission import Admission, LogView
from services.ledger.intake.arrivals import Arrivals
from services.ledger.intake.committing import Committing
from services.ledger.intake.logged_writers import LoggedWriters
from services.ledger.intake.owed import Owed, Paying
from services.ledger.intake.policies import LoggedPolicies
from services.ledger.intake.position import Start
from services.ledger.intake.rejections import Rejections
from services.ledger.intake.sequencer import Sequencer
from services.ledger.storage.store import LogStore
from services.ledger.vaults.erasures import Erasures
from tests.fakes.examiner_here import ExaminerHere
from tests.fakes.written_log import SOURCE, VAULT, tag_of
from tests.faults.ledger.plan import Came, Plan
from tests.faults.ledger.told import Acknowledged, Tell

OUTBOX = "outbox"
"""In the log's folder, so that one cut of the power meets both."""


class Commits:
    """What a life commits, and what it pays of what it owes."""

    def __init__(
        self,
        store: LogStore,
        rejections: Rejections,
        owed: Owed,
        publisher: Publisher,
        plan: Plan,
        thread: ThreadPoolExecutor,
        tell: Tell,
    ) -> None:
        epoch = store.last_epoch + 1
        growth = Growth(store.head.size, store.head.root())
        key = Ed25519PrivateKey.from_private_bytes(plan.ack_key)
        progress = store.index.progress
        view = LogView(
            is_logged=store.index.has,
            highest=lambda issuer: 0 if (known := progress(issuer)) is None else known.highest,
            writer=LoggedWriters(store.index, store.reader).of,
        )
        self._arrivals = Arrivals(_OneVault(), ExaminerHere())
        self._paying = Paying(owed, publisher)
        self._committing = Committing(
            admission=Admission(LoggedPolicies(store.description), view, b"", Erasures()),
            sequencer=Sequencer(store, epoch=epoch, tag=tag_of, clock=began_ns),
            rejections=rejections,
            acknowledgements=_Followed(store, rejections, key, epoch, growth, tell),
            owed=owed,
            issuer=publisher.issuer,
            growth=growth,
            holding=Alone(),
            thread=thread,
            clock=lambda: 0.0,
        )
        self._committing.begin(Start(SOURCE, store.head.source_high))

    async def commit(self, group: Sequence[Came]) -> None:
        await self._committing.commit(await self._arrivals.read(group))

    async def pay(self) -> None:
        await self._paying.pay()


class _Followed(Acknowledgements):
    """Every issuer waits for its answers; they are told before anything else happens."""

    def __init__(
        self,
        store: LogStore,
        rejections: Rejections,
        key: Ed25519PrivateKey,
        epoch: int,
        growth: Growth,
        tell: Tell,
    ) -> None:
        super().__init__(store, rejections, key, epoch, lambda: growth.size)
        self._tell_all = tell

    def follows(self, issuer: bytes) -> bool:
        return True

    def deliver(self, acknowledgements: Iterable[Acknowledgement]) -> None:
        for each in acknowledgements:
            said = Statement.parse(each.statement)
            self._tell_all(Acknowledged(said.index, entry_id(said.issuer, said.issuer_seq), said.leaf_hash))


class _OneVault:
    """The keys of a KMS that has one vault."""

    def holds(self, vault_id: bytes, epoch: int) -> bool:
        return (vault_id, epoch) == (VAULT.vault_id, VAULT.epoch)

    async def key(self, vault_id: bytes, epoch: int) -> VaultKey:
        return VAULT


@asynccontextmanager
async def publishing(folder: Path, plan: Plan) -> AsyncIterator[Publisher]:
    """The mesh's publisher, as far as what it stores: a new start of the ledger, introduced.

    Raises what opening an outbox does; in a group `OutboxFailed`.
    """
    issuer = Issuer(Ed25519PrivateKey.generate())
    shown = plan.keyset
    async with open_outbox(folder / OUTBOX, issuer.id) as outbox, asyncio.TaskGroup() as tasks:
        sender = Sender(issuer, outbox, NatsLink(), 1, Timing(), tasks)
        publisher = Publisher(issuer, outbox, sender, Answers(outbox, issuer.id))
        collecting = tasks.create_task(sender.collect())
        await publisher.introduce(
            Keyset(issuer.spki, issuer.boot, shown.certificate, shown.evidence, None, outbox.previous)
        )
        yield publisher
        await sender.flush()
        collecting.cancel()


def began_ns() -> int:
    """The log's clock, which stands."""
    return 1_800_000_000 * 10**9
