"""One commit: durable before it is acknowledged, refusals recorded, resends known, contradictions named."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from libs.errors import Code, MeshError
from libs.events.batches import encode_batch
from libs.events.consume import StreamGap, StreamMessage
from libs.events.records import commit_to
from libs.events.vault import VaultKey
from libs.transparency.acknowledgement import Acknowledgement, verify_acknowledgement
from libs.transparency.leaf import Kind
from services.ledger.growth import Growth
from services.ledger.holding import Alone, Holding
from services.ledger.intake.acknowledging import Acknowledgements
from services.ledger.intake.admission import Admission, LogView
from services.ledger.intake.arrivals import Arrivals
from services.ledger.intake.committing import Committing
from services.ledger.intake.owed import Owed
from services.ledger.intake.position import Start
from services.ledger.intake.rejections import NAME, Rejections
from services.ledger.intake.sequencer import Sequencer
from services.ledger.opening import logged_policies
from services.ledger.storage import records_log
from services.ledger.storage.description import LogDescription
from services.ledger.storage.segments import Geometry
from services.ledger.storage.store import LogStore
from services.ledger.vaults.erasures import Erasures
from tests.fakes.examiner_here import ExaminerHere
from tests.fakes.joined_mesh import JoinedMesh, KmsCore

from .conftest import KEY, SOURCE, open_store, tag
from .writers import VAULT, LogWriter, describe_log


class Away(MeshError):
    code = Code.UNAVAILABLE
    reason = "AWAY"


class OneVault:
    """A ledger with one vault, whose key the KMS refuses a few times."""

    def __init__(self) -> None:
        self.failures = 0

    def holds(self, vault_id: bytes, epoch: int) -> bool:
        return (vault_id, epoch) == (VAULT.vault_id, VAULT.epoch)

    async def key(self, vault_id: bytes, epoch: int) -> VaultKey:
        if self.failures:
            self.failures -= 1
            raise Away("try again")
        return VAULT


class Ledger:
    """A ledger without its stream."""

    def __init__(
        self,
        store: LogStore,
        mesh: JoinedMesh,
        kms: KmsCore,
        thread: ThreadPoolExecutor,
        holding: Holding | None = None,
    ) -> None:
        self.store = store
        self.seconds = 0.0
        self.vaults = OneVault()
        self.owed = Owed(store.directory)
        self.holding = holding or Alone()
        self.rejections = Rejections(store.directory)
        epoch = store.last_epoch + 1
        policies = logged_policies(store.description, mesh.keeper("ledger"))
        progress = store.index.progress
        view = LogView(
            is_logged=store.index.has,
            highest=lambda issuer: 0 if (known := progress(issuer)) is None else known.highest,
        )
        self.growth = Growth(store.head.size, store.head.root())
        self.acknowledgements = Acknowledgements(store, self.rejections, KEY, epoch, lambda: self.growth.size)
        self.committing = Committing(
            admission=Admission(policies, view, kms.ca.certificate, Erasures()),
            sequencer=Sequencer(store, epoch=epoch, tag=tag, clock=time.time_ns),
            rejections=self.rejections,
            acknowledgements=self.acknowledgements,
            owed=self.owed,
            issuer=b"\x77" * 32,
            growth=self.growth,
            holding=self.holding,
            thread=thread,
            clock=self.now,
        )
        self.arrivals = Arrivals(self.vaults, ExaminerHere())
        self.committing.begin(Start(SOURCE, 0))
        self._sequence = 0

    def now(self) -> float:
        return self.seconds

    async def take(self, *messages: bytes) -> None:
        events = []
        for data in messages:
            self._sequence += 1
            events.append(StreamMessage(self._sequence, data, int(time.time() * 1000)))
        await self.committing.commit(await self.arrivals.read(events))

    def said(self, kind: Kind) -> list[Mapping[str, str | int]]:
        """What it has to say of this kind."""
        part = self.owed.first()
        return [] if part is None else [saying.body for saying in part.sayings if saying.kind is kind]

    async def lose(self, count: int) -> None:
        gap = StreamGap(self._sequence + 1, self._sequence + count)
        self._sequence += count
        await self.committing.commit([gap])


class StandingStill(Ledger):
    """A ledger whose thread stands still in the middle of a commit, once a test says so, until it is let go."""

    in_the_middle: Event | None = None
    let_go: Event

    def now(self) -> float:
        if self.in_the_middle is not None:
            self.in_the_middle.set()
            assert self.let_go.wait(30)
        return super().now()


class Members:
    """The other members of the log, who hold what is written when a test lets them."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answering = asyncio.Event()
        self.have_another = False
        """Whether another may write."""

    def require_writer(self) -> None:
        if self.have_another:
            raise Away("another writes")

    async def held(self) -> None:
        self.asked.set()
        await self.answering.wait()

    async def share(self, generation: int) -> None:
        raise AssertionError("nobody opens a vault here")

    async def forgotten(self) -> None:
        raise AssertionError("nobody erases here")


@pytest.fixture
def ledger(mesh: JoinedMesh, kms: KmsCore, tmp_path: Path) -> Iterator[Ledger]:
    described: LogDescription = describe_log(mesh)
    LogStore.create(tmp_path / "log", described)
    with open_store(tmp_path / "log", Geometry(zeros_ahead=4096)) as store, ThreadPoolExecutor(1) as thread:
        yield Ledger(store, mesh, kms, thread)


@pytest.fixture
async def router(mesh: JoinedMesh, kms: KmsCore, ledger: Ledger) -> LogWriter:
    writer = LogWriter(mesh, kms, "router")
    await ledger.take(writer.batch(writer.introduce()))
    return writer


async def test_a_commit_is_in_the_log_before_it_is_acknowledged(ledger: Ledger, router: LogWriter) -> None:
    sealed = [router.seal(Kind.RECEIPT, vault=VAULT) for _ in range(3)]
    await ledger.take(router.batch(*sealed[:2]), router.batch(sealed[2]))
    assert ledger.growth.size == ledger.store.head.size == 4
    assert ledger.store.head.source_high == 3
    async with asyncio.timeout(20), aclosing(ledger.acknowledgements.answers(router.issuer.id, 2)) as answers:
        told = await anext(answers)
        for number, each, answer in zip((2, 3, 4), sealed, told, strict=True):
            assert isinstance(answer, Acknowledgement)
            statement = verify_acknowledgement(answer, KEY.public_key().public_bytes_raw(), ledger.store.log_id)
            stored = ledger.store.reader.entry(statement.index)
            assert (statement.issuer_seq, stored.row.body) == (number, each.record.body)


async def test_nothing_is_told_of_a_commit_before_a_majority_holds_it(
    mesh: JoinedMesh, kms: KmsCore, tmp_path: Path
) -> None:
    LogStore.create(tmp_path / "log", describe_log(mesh))
    members, writer = Members(), LogWriter(mesh, kms, "router")
    with open_store(tmp_path / "log", Geometry(zeros_ahead=4096)) as store, ThreadPoolExecutor(1) as thread:
        ledger = Ledger(store, mesh, kms, thread, members)
        async with asyncio.timeout(20), aclosing(ledger.acknowledgements.answers(writer.issuer.id, 1)) as answers:
            answer = asyncio.ensure_future(anext(answers))
            taking = asyncio.create_task(ledger.take(writer.batch(writer.introduce())))
            await members.asked.wait()
            assert (store.head.size, ledger.growth.size) == (1, 0)
            assert not answer.done()
            assert not taking.done()
            members.answering.set()
            await taking
            assert ledger.growth.size == 1
            assert [type(each) for each in await answer] == [Acknowledgement]


async def test_a_writer_that_another_may_have_replaced_accuses_nobody(
    mesh: JoinedMesh, kms: KmsCore, tmp_path: Path
) -> None:
    """It was stopped for a while, and what the other one has read is purged: to it, that is a stream with a gap."""
    LogStore.create(tmp_path / "log", describe_log(mesh))
    members, writer = Members(), LogWriter(mesh, kms, "router")
    members.answering.set()
    with open_store(tmp_path / "log", Geometry(zeros_ahead=4096)) as store, ThreadPoolExecutor(1) as thread:
        ledger = Ledger(store, mesh, kms, thread, members)
        await ledger.take(writer.batch(writer.introduce()))
        members.have_another = True
        with pytest.raises(Away):
            await ledger.lose(5)
        with pytest.raises(Away):
            await ledger.take(writer.batch(writer.seal(Kind.POLICY)))
        assert ledger.owed.first() is None
        assert not ledger.rejections.has(writer.issuer.id, 2)
        assert (store.head.size, store.head.source_high) == (1, 1)


async def test_a_commit_that_is_cancelled_is_over_when_its_thread_has_written(
    mesh: JoinedMesh, kms: KmsCore, tmp_path: Path
) -> None:
    """Whoever cancels closes the files next, whose descriptors are those of other files then."""
    LogStore.create(tmp_path / "log", describe_log(mesh))
    writer = LogWriter(mesh, kms, "router")
    with open_store(tmp_path / "log", Geometry(zeros_ahead=4096)) as store, ThreadPoolExecutor(1) as thread:
        ledger = StandingStill(store, mesh, kms, thread)
        await ledger.take(writer.batch(writer.introduce()))
        ledger.in_the_middle, ledger.let_go = Event(), Event()
        taking = asyncio.create_task(ledger.take(writer.batch(writer.seal(Kind.RECEIPT, vault=VAULT))))
        assert await asyncio.to_thread(ledger.in_the_middle.wait, 30)
        taking.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        is_over = taking.done()
        ledger.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert not is_over
        assert store.head.size == 2


async def test_a_resend_is_acknowledged_at_its_old_place(ledger: Ledger, router: LogWriter) -> None:
    message = router.batch(router.seal(Kind.RECEIPT, vault=VAULT))
    await ledger.take(message)
    size = ledger.store.head.size
    await ledger.take(message, message)
    assert ledger.store.head.size == size
    assert not ledger.said(Kind.CONFLICT)


async def test_the_place_in_the_stream_lags_for_a_second_where_nothing_is_new(
    ledger: Ledger, router: LogWriter
) -> None:
    message = router.batch(router.seal(Kind.RECEIPT, vault=VAULT))
    await ledger.take(message)
    high = ledger.store.head.source_high
    await ledger.take(message)
    assert ledger.store.head.source_high == high
    ledger.seconds += 1.0
    await ledger.take(message)
    assert ledger.store.head.source_high == high + 2


async def test_two_entries_under_one_number_are_a_conflict_and_the_first_one_stays(
    ledger: Ledger, router: LogWriter
) -> None:
    sealed = router.seal(Kind.RECEIPT, vault=VAULT)
    await ledger.take(router.batch(sealed))
    twin = replace(sealed, record=replace(sealed.record, header=replace(sealed.record.header, commitment=bytes(32))))
    size = ledger.store.head.size
    await ledger.take(router.batch(twin))
    assert ledger.store.head.size == size
    [said] = ledger.said(Kind.CONFLICT)
    assert (said["issuer"], said["issuer_seq"]) == (router.issuer.id.hex(), sealed.issuer_seq)
    assert (said["logged"], said["refused"]) == (commit_to(sealed.salt, sealed.canonical).hex(), "00" * 32)
    assert ledger.rejections.of(router.issuer.id, 1)[0][1].name == "CONFLICT"


async def test_what_is_refused_is_kept_and_its_number_named(ledger: Ledger, router: LogWriter) -> None:
    refused = router.batch(router.seal(Kind.POLICY), router.seal(Kind.RECEIPT, vault=VAULT))
    await ledger.take(refused)
    assert [said["reason"] for said in ledger.said(Kind.QUARANTINE)] == ["KIND_NOT_ALLOWED"]
    assert ledger.store.head.size == 2  # The keyset and the receipt beside the refused record.
    await ledger.take(refused)  # A resend fills neither the quarantine nor the log.
    assert len(ledger.said(Kind.QUARANTINE)) == 1
    await ledger.take(b"no batch at all")
    stored = records_log.read_end(ledger.store.directory / NAME, records_log.QUARANTINE)
    assert [int.from_bytes(record[8:10], "big") for record in stored.records] == [8, 1]


async def test_a_number_that_comes_twice_at_once_is_named_once(ledger: Ledger, router: LogWriter) -> None:
    refused = router.batch(router.seal(Kind.POLICY))
    await ledger.take(refused, refused)
    assert len(ledger.said(Kind.QUARANTINE)) == 1


async def test_evidence_is_synced_before_whatever_would_keep_it_from_being_found_again(
    ledger: Ledger, router: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the rejections know is not said again, and what the log has stepped over is not read again."""
    done: list[str] = []

    def watch(owner: type[Any], name: str) -> None:
        real = getattr(owner, name)

        def told(self: Any, *given: Any) -> Any:
            result = real(self, *given)
            done.append(f"{owner.__name__}.{name}")
            return result

        monkeypatch.setattr(owner, name, told)

    watch(Owed, "add")
    watch(Rejections, "keep")
    watch(Sequencer, "append")
    await ledger.take(router.batch(router.seal(Kind.POLICY)), router.batch(router.seal(Kind.RECEIPT, vault=VAULT)))
    assert ledger.said(Kind.QUARANTINE)
    assert done == ["Owed.add", "Rejections.keep", "Sequencer.append"]


async def test_a_conflict_is_named_once_however_often_its_bytes_come(ledger: Ledger, router: LogWriter) -> None:
    twin = copy.copy(router.issuer)
    first, other = (
        encode_batch(issuer.id, 2, [issuer.seal(Kind.RECEIPT, {"n": name}, VAULT).record], router.issuer.key)
        for name, issuer in (("one", router.issuer), ("other", twin))
    )
    await ledger.take(first, other, other)
    for _ in range(3):
        await ledger.take(other)
    assert len(ledger.said(Kind.CONFLICT)) == 1


async def test_refused_issuers_leave_no_entries_in_the_log(mesh: JoinedMesh, kms: KmsCore, ledger: Ledger) -> None:
    writer = LogWriter(mesh, kms, "router", claims={})
    await ledger.take(writer.batch(writer.introduce()))
    assert not ledger.said(Kind.QUARANTINE)
    assert ledger.store.head.size == 0


async def test_lost_messages_are_said_in_the_log(ledger: Ledger, router: LogWriter) -> None:
    await ledger.lose(4)
    assert ledger.said(Kind.GAP) == [{"source": SOURCE.hex(), "from": 2, "to": 5}]
    assert ledger.store.head.source_high == 5  # At once: a place that lags has the same gap found again.
    await ledger.take(router.batch(router.seal(Kind.RECEIPT, vault=VAULT)))
    assert ledger.store.head.source_high == 6


async def test_nothing_is_refused_because_the_kms_is_away(ledger: Ledger, router: LogWriter) -> None:
    ledger.vaults.failures = 1
    await ledger.take(router.batch(router.seal(Kind.RECEIPT, vault=VAULT)))
    assert ledger.store.head.size == 2
