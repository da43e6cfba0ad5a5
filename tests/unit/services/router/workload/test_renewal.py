"""The next keyset is served once the log has it, whatever was away before, and the last one until its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from libs.aci import report
from libs.aci.keyset import TlsKey
from libs.aci.report import SourceProvenance
from libs.errors import Code, MeshError
from services.router.errors import KeysetEnded, LedgerUnavailable
from services.router.workload.generation import Generation
from services.router.workload.renewal import RENEWED, Renewal
from services.router.workload.reports import Reports
from services.router.workload.workload import Workload
from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.foreign_routers import RETAIN_SECONDS, MachineCollateral, ShiftedClock, TdGuest
from tests.fakes.routers import PATIENCE_SECONDS

LIFE, OVERLAP = 7000, 1000


class DeviceAway(MeshError):
    code = Code.UNAVAILABLE
    reason = "GUEST_UNAVAILABLE"


@dataclass(slots=True)
class IntroductionTwin:
    """A log, with the KMS before it, that may be away."""

    workload: Workload
    away: str | None = None
    waits: asyncio.Event | None = None
    began: asyncio.Event = field(default_factory=asyncio.Event)
    introduced: list[tuple[str, tuple[str, ...], bytes]] = field(default_factory=list)
    patience: list[float] = field(default_factory=list)

    async def introduce(
        self, newest: Generation, earlier: Sequence[Generation], report: bytes, *, timeout: float
    ) -> None:
        assert newest.digest != self.workload.keyset_digest, "it was served before the log had it"
        self.patience.append(timeout)
        self.began.set()
        if self.waits is not None:
            await self.waits.wait()
        if self.away is not None:
            raise LedgerUnavailable(self.away)
        self.introduced.append((newest.digest, tuple(one.digest for one in earlier), report))


class Guest(TdGuest):
    away = False

    async def quote(self, report_data: bytes) -> Any:
        if self.away:
            raise DeviceAway("the quote device does not answer")
        return await super().quote(report_data)


@dataclass(slots=True)
class Bench:
    clock: ShiftedClock
    guest: Guest
    workload: Workload
    reports: Reports
    introduction: IntroductionTwin
    renewal: Renewal
    told: list[str]


@dataclass(frozen=True, slots=True)
class MemberTwin:
    guest: TdGuest


@pytest.fixture(scope="module")
def mesh() -> AttestedMesh:
    return AttestedMesh.create(int(time.time()))


@pytest.fixture
def bench(mesh: AttestedMesh) -> Bench:
    clock, guest, told = ShiftedClock(0.0), Guest(mesh), list[str]()
    workload = Workload("spiffe://mesh.test/router/1", LIFE, (TlsKey("ab" * 32),), clock)
    reports = Reports(
        cast(Any, MemberTwin(guest)),
        workload,
        MachineCollateral(mesh),
        SourceProvenance(),
        1000.0,
        RETAIN_SECONDS,
        clock,
    )
    introduction = IntroductionTwin(workload)
    renewal = Renewal(workload, reports, introduction, OVERLAP, told.append)
    return Bench(clock, guest, workload, reports, introduction, renewal, told)


async def test_a_keyset_is_due_when_its_overlap_begins(bench: Bench) -> None:
    assert bench.renewal.due_in() == pytest.approx(LIFE - OVERLAP, abs=5)
    bench.clock.ahead_seconds = LIFE - OVERLAP + 10
    assert bench.renewal.due_in() < 0


async def test_the_log_has_the_next_keyset_and_its_report_before_anybody_is_shown_it(bench: Bench) -> None:
    first, bench.introduction.waits = bench.workload.newest, asyncio.Event()
    before = await bench.reports.report(None)
    renewing = asyncio.create_task(bench.renewal.renew())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await bench.introduction.began.wait()
        assert bench.workload.newest is first
        assert await bench.reports.report(None) == before
        bench.introduction.waits.set()
        assert await renewing
    ((digest, earlier, document),) = bench.introduction.introduced
    assert (digest, earlier) == (bench.workload.keyset_digest, (first.digest,))
    assert report.parse(document).keyset == bench.workload.keyset
    assert await bench.reports.report(None) == document, "the one that is kept is renewed with it"
    assert report.parse(await bench.reports.report("ab" * 32)).keyset == bench.workload.keyset
    assert bench.told == [RENEWED]


async def test_a_ledger_that_is_away_leaves_the_keyset_as_it_is_and_is_asked_again_with_the_same(bench: Bench) -> None:
    first, bench.introduction.away = bench.workload.newest, "no answer"
    bench.clock.ahead_seconds = LIFE - OVERLAP
    assert not await bench.renewal.renew()
    assert not await bench.renewal.renew()
    assert bench.workload.held() == (first,)
    assert bench.told == ["LEDGER_UNAVAILABLE"] * 2
    born = bench.renewal._born
    bench.introduction.away = None
    assert await bench.renewal.renew()
    assert bench.workload.newest is born
    assert bench.workload.held() == (born, first)


async def test_a_quote_device_that_is_away_is_a_reason_like_another(bench: Bench) -> None:
    bench.guest.away = True
    bench.clock.ahead_seconds = LIFE - OVERLAP + 100
    assert not await bench.renewal.renew()
    assert bench.told == ["GUEST_UNAVAILABLE"]
    assert bench.renewal.overdue == "GUEST_UNAVAILABLE"
    bench.guest.away = False
    assert await bench.renewal.renew()
    assert bench.renewal.overdue is None


async def test_a_renewal_that_only_waits_is_said_to_be_overdue(bench: Bench) -> None:
    bench.introduction.waits = asyncio.Event()
    renewing = asyncio.create_task(bench.renewal.renew())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await bench.introduction.began.wait()
        bench.clock.ahead_seconds = LIFE - OVERLAP + 100
        assert bench.renewal.overdue == "KEYSET_AWAITED"
        bench.introduction.waits.set()
        assert await renewing


async def test_at_its_end_nothing_is_served_and_a_later_renewal_mends_it(bench: Bench) -> None:
    bench.introduction.away = "no answer"
    bench.clock.ahead_seconds = LIFE
    assert not await bench.renewal.renew()
    for nonce in (None, "ab" * 32):
        with pytest.raises(KeysetEnded):
            await bench.reports.report(nonce)
    bench.introduction.away = None
    assert await bench.renewal.renew()
    ((_, earlier, _),) = bench.introduction.introduced
    assert earlier == ()
    assert report.parse(await bench.reports.report(None)).keyset == bench.workload.keyset


async def test_a_keyset_whose_time_was_used_up_by_waiting_is_not_served(bench: Bench) -> None:
    """It would be due for renewal as soon as it is served."""
    bench.introduction.away = "no answer"
    assert not await bench.renewal.renew()
    born = bench.renewal._born
    assert born is not None
    bench.clock.ahead_seconds = LIFE
    bench.introduction.away = None
    assert await bench.renewal.renew()
    assert bench.workload.newest is not born
    assert all(patience > 0 for patience in bench.introduction.patience)


async def test_whoever_asks_for_its_health_is_told_when_a_router_has_no_keyset_and_when_it_has_one_again(
    bench: Bench,
) -> None:
    said: asyncio.Queue[bool] = asyncio.Queue()
    bench.clock.ahead_seconds = LIFE
    watching = asyncio.create_task(bench.renewal.watch(said.put_nowait))
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await said.get() is False
            assert await bench.renewal.renew()
            assert await said.get() is True
    finally:
        watching.cancel()
