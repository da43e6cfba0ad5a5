"""A ledger that erases: its log, keyring and clock are real, its stream a list, and what it waits for is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.events.erasure import ErasureDone, ErasureEntry, parse_erasure
from libs.events.outbox import OutboxFull
from libs.events.publish import LedgerUnavailable
from libs.events.records import Entry, parse_entry
from libs.events.vault import VaultKey
from libs.policy.document import Policy, read
from libs.policy.orders import Order, SignedOrder
from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind
from services.ledger.checkpoints.auditing import SignedTree
from services.ledger.growth import Growth
from services.ledger.holding import Alone
from services.ledger.intake.sequencer import Candidate, Sequencer
from services.ledger.keys import ReleasedKey
from services.ledger.storage.keyring import KeyringFile
from services.ledger.storage.store import LogStore
from services.ledger.vaults.erasing import Erasing
from services.ledger.vaults.erasures import Erasures
from services.ledger.vaults.orders import VaultOrders
from services.ledger.vaults.vaults import Vaults
from tests.fakes.entry_schema import require_documented
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh

from .conftest import SOURCE, open_store, sequencer
from .writers import Keys

TENANT, OTHER = "ab" * 16, "cd" * 16
KEYRING_KEY = ReleasedKey(1, b"\x02" * 32)
ISSUER = b"\x33" * 32
LATER = 2**33
APRIL = datetime(2026, 4, 15, tzinfo=UTC).timestamp()
"""The month in which everything here happens, unless a test moves the clock."""


class Own:
    """What the ledger says is in its log at once, unless the outbox is full or the stream away."""

    def __init__(self, ledger: ErasingLedger) -> None:
        self._ledger = ledger
        self.full = 0
        self.away = False
        self.is_done = asyncio.Event()
        """Set once it was said that an erasure is done."""
        self.waiting: list[tuple[int, ErasureEntry]] = []
        """What lies in the outbox, by its numbers."""

    async def erasure(self, said: ErasureEntry) -> None:
        if self.full:
            self.full -= 1
            raise OutboxFull("full")
        self._log(said, self._ledger.next_number())
        if isinstance(said, ErasureDone):
            self.is_done.set()

    async def erasure_logged(self, said: ErasureEntry) -> None:
        if self.away:
            number = self._ledger.next_number()
            self.waiting.append((number, said))
            raise LedgerUnavailable("late", entry_id(ISSUER, number))
        await self.erasure(said)
        if not self._ledger.is_held:
            raise LedgerUnavailable("late", entry_id(ISSUER, 1))

    def come_back(self) -> None:
        """Have the stream bring what waited."""
        self.away = False
        while self.waiting:
            number, said = self.waiting.pop(0)
            self._log(said, number)

    def _log(self, said: ErasureEntry, number: int) -> None:
        require_documented(Kind.ERASURE, said.body())
        self._ledger.append(Kind.ERASURE, jcs.loads_object(jcs.dumps(said.body())), number=number)


class Trees:
    """The auditor: it has signed as far as the test lets it."""

    def __init__(self, ledger: ErasingLedger) -> None:
        self._ledger = ledger
        self.signing = asyncio.Event()
        self.signing.set()
        self.asked = asyncio.Event()
        self.size = 0
        """How many leaves the tree was to cover that was asked for last."""

    async def covering(self, size: int) -> SignedTree:
        self.size = size
        self.asked.set()
        await self.signing.wait()
        head = self._ledger.store.head
        assert head.size >= size
        return SignedTree(head.size, head.root(), b"note")


class Members(Alone):
    """Other members of the log, of which one may be away: then it has an older keyring."""

    def __init__(self) -> None:
        self.there = asyncio.Event()
        self.there.set()
        self.asked = asyncio.Event()

    async def forgotten(self) -> None:
        self.asked.set()
        await self.there.wait()


class ErasingLedger:
    """One start of a ledger on a folder: its state is what the log and the keyring there say."""

    def __init__(self, store: LogStore, mesh: JoinedMesh, clock: Clock, keys: Keys) -> None:
        self.store, self.mesh, self.clock, self.keys = store, mesh, clock, keys
        self.policy: Policy = read(mesh.draft)
        self.growth = Growth(store.head.size, store.head.root())
        self.erasures = Erasures()
        for stored in store.reader.entries(0, store.head.size):
            if stored.leaf.kind is Kind.ERASURE:
                self.erasures.take(parse_entry(stored.row.body[32:]))
        self.members = Members()
        file = KeyringFile(store.directory, store.log_id)
        self.vaults = Vaults(file, file.load(KEYRING_KEY.key), KEYRING_KEY, keys, self.erasures, clock, self.members)
        self.own, self.trees = Own(self), Trees(self)
        self._sequencer: Sequencer = sequencer(store)
        self._last_number = 0
        self.is_held = True
        """Whether a majority of the members holds what is written, as it is written."""
        self.erasing = Erasing(store, self.growth, self.erasures, self.vaults, keys, self.trees, self.own)
        self.orders = VaultOrders(
            lambda: self.policy, store, self.growth, self.vaults, self.erasures, self.erasing, self.own, clock
        )

    def next_number(self) -> int:
        progress = self.store.index.progress(ISSUER)
        self._last_number = max(self._last_number, 0 if progress is None else progress.highest) + 1
        return self._last_number

    def append(
        self, kind: Kind, body: dict[str, object], vault: VaultKey | None = None, number: int | None = None
    ) -> int:
        """Log an entry of the ledger's own, or one that stands for a tenant's; return its index."""
        number = self.next_number() if number is None else number
        entry = Entry(kind, ISSUER, number, bytes(32), None if vault is None else vault.tenant, body)
        content = bytes(32) + entry.canonical()
        place = (0, bytes(16)) if vault is None else (vault.epoch, vault.vault_id)
        candidate = Candidate(kind, ISSUER, number, sha256(content).digest(), *place, content)
        high = self.store.head.source_high + 1
        commit = self._sequencer.append([candidate], SOURCE, high, high)[-1]
        if kind is Kind.ERASURE:
            self.erasures.take(entry)
        if self.is_held:
            self.growth.reach(commit.size, commit.root)
        return commit.first

    def hold(self) -> None:
        """Have a majority of the members hold all that is written."""
        self.is_held = True
        self.growth.reach(self.store.head.size, self.store.head.root())

    def said(self) -> list[ErasureEntry]:
        """What the log says of vaults, in order."""
        entries = (stored for stored in self.store.reader.entries(0, self.store.head.size))
        return [parse_erasure(parse_entry(one.row.body[32:]).body) for one in entries if one.leaf.kind is Kind.ERASURE]

    def order(self, action: str, subject: str, *, signers: int = 2, not_after: int = LATER) -> bytes:
        signed = SignedOrder(Order(TRUST_DOMAIN, action, subject, not_after, "a test"))
        operators: tuple[Ed25519PrivateKey, ...] = self.mesh.operators
        for key in operators[:signers]:
            signed = signed.signed_by(key)
        return signed.document

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Carry out what is ordered while the body runs; it ends as a killed process would, wherever it is."""
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(self.erasing.keep())
            try:
                yield
            finally:
                keeping.cancel()


@asynccontextmanager
async def started(folder: Path, mesh: JoinedMesh, keys: Keys, clock: Clock) -> AsyncIterator[ErasingLedger]:
    with open_store(folder) as store:
        yield ErasingLedger(store, mesh, clock, keys)
