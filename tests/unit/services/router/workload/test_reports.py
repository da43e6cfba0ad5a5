"""Reports over a guest agent whose TD is a running one of a mesh."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any, cast

import pytest

from libs.aci import report
from libs.aci.keyset import TlsKey
from libs.aci.report import Report, SourceProvenance
from libs.errors import Code, MeshError
from libs.identity.reports import MOST_AWAITED
from libs.tee import eventlog, tdx
from libs.tee.collateral import Collateral
from libs.tee.dstack import GuestQuote
from services.router.errors import ReportsBusy
from services.router.workload.reports import Reports
from services.router.workload.workload import Workload
from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.foreign_routers import RETAIN_SECONDS, MachineCollateral, TdGuest
from tests.fakes.routers import PATIENCE_SECONDS

NONCE = "ab" * 32


@dataclass(frozen=True, slots=True)
class MemberTwin:
    guest: TdGuest


@pytest.fixture(scope="module")
def mesh() -> AttestedMesh:
    return AttestedMesh.create(int(time.time()))


class Device(TdGuest):
    """A guest whose quote device makes none while `ready` is not set."""

    def __init__(self, mesh: AttestedMesh) -> None:
        super().__init__(mesh)
        self.ready = asyncio.Event()
        self.ready.set()
        self.asked = asyncio.Semaphore(0)
        self.quotes = 0

    async def quote(self, report_data: bytes) -> GuestQuote:
        self.quotes += 1
        self.asked.release()
        await self.ready.wait()
        return await super().quote(report_data)


class DeviceBusy(MeshError):
    code = Code.UNAVAILABLE
    reason = "DEVICE_BUSY"


class FailingDevice(Device):
    """One that fails while `fails` is set."""

    fails = True

    async def quote(self, report_data: bytes) -> GuestQuote:
        quote = await super().quote(report_data)
        if self.fails:
            raise DeviceBusy("the device is busy")
        return quote


class FailingCollateral(MachineCollateral):
    fails = False

    async def collateral(self, quote: bytes) -> Collateral:
        if self.fails:
            raise DeviceBusy("the attestation service is away")
        return await super().collateral(quote)


class Hours:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def reports_over(
    mesh: AttestedMesh,
    guest: TdGuest,
    *,
    per_second: float = 1000.0,
    now: float = 0.0,
    keys: tuple[TlsKey, ...] = (TlsKey("00" * 32),),
) -> Reports:
    workload = Workload("spiffe://mesh.test/router/1", 86400, keys)
    member = cast(Any, MemberTwin(guest))
    return Reports(
        member, workload, MachineCollateral(mesh), SourceProvenance(), per_second, RETAIN_SECONDS, lambda: now
    )


def reports_in_time(mesh: AttestedMesh, guest: TdGuest, clock: Hours, collateral: MachineCollateral) -> Reports:
    workload = Workload("spiffe://mesh.test/router/1", 86400, (TlsKey("00" * 32),))
    member = cast(Any, MemberTwin(guest))
    return Reports(member, workload, collateral, SourceProvenance(), 0.25, RETAIN_SECONDS, clock)


async def reported(mesh: AttestedMesh, guest: TdGuest) -> Report:
    return report.parse(await reports_over(mesh, guest).report(NONCE))


@pytest.mark.parametrize("strips_digests", [False, True])
async def test_the_event_log_states_every_digest_whatever_the_agent_leaves_out(
    mesh: AttestedMesh, strips_digests: bool
) -> None:
    said = (await reported(mesh, TdGuest(mesh, strips_digests=strips_digests))).evidence
    log = eventlog.parse(json.loads(said["event_log"]))
    assert log == mesh.workloads["router"].event_log
    assert all(len(event.digest) == 48 for event in log)
    eventlog.verify_replay(log, tdx.read_report(bytes.fromhex(said["quote"])).rtmrs)


async def test_a_report_says_how_long_receipts_are_kept(mesh: AttestedMesh) -> None:
    said = json.loads(await reports_over(mesh, TdGuest(mesh)).report(NONCE))["service_capabilities"]
    assert said == {
        "serving": "aggregator",
        "supported_e2ee_versions": ["2"],
        "teemesh_receipt_retention_seconds": RETAIN_SECONDS,
    }


async def test_one_quote_serves_the_clients_of_each_domain_and_each_is_told_its_key(mesh: AttestedMesh) -> None:
    device = Device(mesh)
    keys = (TlsKey("00" * 32), TlsKey("aa" * 32, "a.example"), TlsKey("bb" * 32, "b.example"))
    reports = reports_over(mesh, device, keys=keys)
    named = {"a.example": "aa" * 32, "b.example": "bb" * 32, "c.example": "00" * 32}
    device.ready.clear()
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        fresh = {host: tasks.create_task(reports.report(NONCE, host)) for host in (*named, "")}
        await device.asked.acquire()
        device.ready.set()
    assert device.quotes == 1
    kept = {host: await reports.report(None, host) for host in (*named, "")}
    assert device.quotes == 2
    assert {host: await reports.report(None, host) for host in kept} == kept
    for told in ({host: task.result() for host, task in fresh.items()}, kept):
        for host, key in named.items():
            said = report.parse(told[host]).evidence["downstream_tls_binding"]
            assert said == {"domain": host, "spki_sha256": key}
        assert "downstream_tls_binding" not in report.parse(told[""]).evidence
    assert device.quotes == 2


async def test_the_vm_config_is_the_agents_own(mesh: AttestedMesh) -> None:
    said = (await reported(mesh, TdGuest(mesh))).evidence
    assert said["vm_config"] == mesh.workloads["router"].td.machine.image.vm_config


async def test_the_report_that_is_there_waits_for_no_quote(mesh: AttestedMesh) -> None:
    device = Device(mesh)
    reports = reports_over(mesh, device)
    kept = await reports.report(None)
    device.ready.clear()
    async with asyncio.TaskGroup() as tasks:
        fresh = tasks.create_task(reports.report(NONCE))
        await device.asked.acquire()
        await device.asked.acquire()
        assert await asyncio.wait_for(reports.report(None), PATIENCE_SECONDS) == kept
        assert not fresh.done()
        device.ready.set()
    assert report.parse(fresh.result()).report_data != report.parse(kept).report_data
    assert device.quotes == 2


async def test_all_who_ask_with_one_nonce_at_once_get_one_quote(mesh: AttestedMesh) -> None:
    device = Device(mesh)
    reports = reports_over(mesh, device, per_second=0.25)
    device.ready.clear()
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(reports.report(NONCE)) for _ in range(2 * MOST_AWAITED)]
        await device.asked.acquire()
        device.ready.set()
    assert len({task.result() for task in asked}) == device.quotes == 1


async def test_who_leaves_takes_no_report_from_those_who_wait_with_them(mesh: AttestedMesh) -> None:
    device = Device(mesh)
    reports = reports_over(mesh, device)
    device.ready.clear()
    async with asyncio.TaskGroup() as tasks:
        first, second = [tasks.create_task(reports.report(NONCE)) for _ in range(2)]
        await device.asked.acquire()
        first.cancel()
        await device.asked.acquire()
        device.ready.set()
    assert report.parse(second.result()).keyset.digest


async def test_a_nonce_that_comes_again_later_is_quoted_again(mesh: AttestedMesh) -> None:
    device = Device(mesh)
    reports = reports_over(mesh, device)
    assert await reports.report(NONCE) != await reports.report(NONCE)
    assert device.quotes == 2


async def test_a_flood_of_nonces_is_refused_and_no_more_than_some_wait(mesh: AttestedMesh) -> None:
    device = Device(mesh)
    reports = reports_over(mesh, device)
    device.ready.clear()
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(reports.report(f"{number:064x}")) for number in range(MOST_AWAITED)]
        await device.asked.acquire()
        with pytest.raises(ReportsBusy) as refusal:
            await asyncio.wait_for(reports.report(NONCE), PATIENCE_SECONDS)
        assert (refusal.value.status, refusal.value.headers) == (429, {"Retry-After": "1"})
        device.ready.set()
    assert len({task.result() for task in waiting}) == MOST_AWAITED
    await reports.report(NONCE)


async def test_the_device_is_asked_no_oftener_than_it_may_be(mesh: AttestedMesh) -> None:
    device = Device(mesh)
    reports = reports_over(mesh, device, per_second=0.5)
    for number in range(2):
        await reports.report(f"{number:064x}")
    with pytest.raises(ReportsBusy):
        await reports.report(NONCE)
    assert await reports.report(None)
    assert device.quotes == 3


async def test_a_device_that_fails_is_asked_once_by_all_who_bring_no_nonce_and_again_a_moment_later(
    mesh: AttestedMesh,
) -> None:
    device, clock = FailingDevice(mesh), Hours()
    reports = reports_in_time(mesh, device, clock, MachineCollateral(mesh))
    refused = await asyncio.gather(*(reports.report(None) for _ in range(100)), return_exceptions=True)
    assert {getattr(each, "reason", None) for each in refused} == {"DEVICE_BUSY", "SERVICE_UNAVAILABLE"}
    assert "DEVICE_BUSY" in str(refused[-1])
    assert device.quotes == 1
    clock.now += 11
    device.fails = False
    assert await reports.report(None)
    assert device.quotes == 2


async def test_a_device_that_fails_is_asked_within_its_bounds_by_all_who_bring_one_nonce(mesh: AttestedMesh) -> None:
    device = FailingDevice(mesh)
    reports = reports_over(mesh, device, per_second=0.5)
    device.ready.clear()
    asking = [asyncio.create_task(reports.report(NONCE)) for _ in range(100)]
    await asyncio.wait_for(device.asked.acquire(), PATIENCE_SECONDS)
    device.ready.set()
    refused = await asyncio.gather(*asking, return_exceptions=True)
    assert {getattr(each, "reason", None) for each in refused} == {"DEVICE_BUSY", "REPORTS_BUSY"}
    assert device.quotes == 2


async def test_who_asks_for_the_report_without_a_nonce_and_leaves_has_no_more_of_the_device(mesh: AttestedMesh) -> None:
    device = Device(mesh)
    reports = reports_in_time(mesh, device, Hours(), MachineCollateral(mesh))
    device.ready.clear()
    leaving = asyncio.create_task(reports.report(None))
    await asyncio.wait_for(device.asked.acquire(), PATIENCE_SECONDS)
    leaving.cancel()
    await asyncio.wait({leaving})
    device.ready.set()
    with pytest.raises(ReportsBusy):
        await reports.report(None)
    assert device.quotes == 1


@pytest.mark.parametrize("missing", ["quote", "collateral"])
async def test_a_report_that_cannot_be_made_anew_is_served_as_long_as_its_keyset(
    mesh: AttestedMesh, missing: str
) -> None:
    device, clock, collateral = FailingDevice(mesh), Hours(), FailingCollateral(mesh)
    device.fails = False
    reports = reports_in_time(mesh, device, clock, collateral)
    kept = await reports.report(None)
    clock.now += 3601
    device.fails, collateral.fails = missing == "quote", missing == "collateral"
    assert set(await asyncio.gather(*(reports.report(None) for _ in range(100)))) == {kept}
    assert device.quotes == 2
    device.fails = collateral.fails = False
    clock.now += 11
    assert await reports.report(None) != kept
    assert device.quotes == 3


async def test_while_a_report_is_made_anew_the_one_before_is_there(mesh: AttestedMesh) -> None:
    device, clock = Device(mesh), Hours()
    reports = reports_in_time(mesh, device, clock, MachineCollateral(mesh))
    kept = await reports.report(None)
    clock.now += 3601
    device.ready.clear()
    async with asyncio.TaskGroup() as tasks:
        renewing = tasks.create_task(reports.report(None))
        await device.asked.acquire()
        await device.asked.acquire()
        assert await asyncio.wait_for(reports.report(None), PATIENCE_SECONDS) == kept
        device.ready.set()
    assert renewing.result() != kept


async def test_the_routers_own_renewal_waits_for_no_failure_that_others_saw(mesh: AttestedMesh) -> None:
    device, clock = FailingDevice(mesh), Hours()
    reports = reports_in_time(mesh, device, clock, MachineCollateral(mesh))
    with pytest.raises(DeviceBusy):
        await reports.report(None)
    device.fails = False
    workload = Workload("spiffe://mesh.test/router/1", 86400, (TlsKey("00" * 32),))
    assert await reports.unchallenged(workload.newest)
