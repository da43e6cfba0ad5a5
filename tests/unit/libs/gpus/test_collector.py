"""The collector's process, real ones: NVIDIA's where its libraries are missing, one with devices, and bad ones."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from libs.errors import MeshError
from libs.gpus.answer import encode
from libs.gpus.collector import collecting, require_every_device
from libs.gpus.observed import observed_in
from libs.tee.nvidia.report import parse_report
from services.devtee.gpu import GpuVendor
from tests.fakes.gpu_collector import CONFIDENTIAL, PROTECTED_PCIE, Machine, answer, has_nvml

NOW = 1_790_000_000
NONCE = hashlib.sha256(b"asked").digest()
SOON_SECONDS = 0.3


@pytest.fixture(scope="module")
def vendor() -> GpuVendor:
    return GpuVendor.create(NOW)


@pytest.fixture
def machine(vendor: GpuVendor, tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "devices.json", vendor, [vendor.make_gpu(NOW), vendor.make_gpu(NOW)])
    machine.write()
    return machine


@pytest.mark.skipif(has_nvml(), reason="this machine has NVIDIA's driver")
async def test_without_nvidias_library_there_is_nothing_to_serve_on() -> None:
    async with collecting() as collector:
        for ask in (collector.observe, lambda: collector.collect(NONCE)):
            with pytest.raises(MeshError, match="libnvidia-ml is not installed") as error:
                await ask()
            assert error.value.reason == "GPU_LIBRARY_MISSING"


async def test_every_device_answers_the_nonce_that_it_was_asked(machine: Machine) -> None:
    async with collecting(machine.command) as collector:
        collected, observed = await collector.collect(NONCE)
        assert observed == await collector.observe()
    assert collected.architecture == "HOPPER"
    assert collected.switches is None
    assert [raw.certificate_chain for raw in collected.reports] == [gpu.chain for gpu in machine.gpus]
    assert {parse_report(raw.report).nonce for raw in collected.reports} == {NONCE}


async def test_switches_are_asked_beside_their_gpus(machine: Machine, vendor: GpuVendor) -> None:
    machine.switches, machine.mode = [vendor.make_gpu(NOW)], PROTECTED_PCIE
    machine.write()
    async with collecting(machine.command) as collector:
        collected, _ = await collector.collect(NONCE)
    assert len(collected.reports) == 2
    assert collected.switches is not None
    assert (collected.switches.architecture, len(collected.switches.reports)) == ("LS10", 1)


def _reset(machine: Machine) -> None:
    machine.links = {1: "2"}


def _replaced(machine: Machine) -> None:
    machine.gpus[1] = machine.vendor.make_gpu(NOW)


def _gone(machine: Machine) -> None:
    machine.gpus.pop()


def _added(machine: Machine) -> None:
    machine.gpus.append(machine.vendor.make_gpu(NOW))


def _switched(machine: Machine) -> None:
    machine.switches.append(machine.vendor.make_gpu(NOW))


def _updated(machine: Machine) -> None:
    machine.driver = "590.1.1"


def _failed(machine: Machine) -> None:
    machine.errors += 1


@pytest.mark.parametrize("change", [_reset, _replaced, _gone, _added, _switched, _updated, _failed])
async def test_whatever_changes_is_seen(machine: Machine, change: Callable[[Machine], None]) -> None:
    async with collecting(machine.command) as collector:
        before = await collector.observe()
        assert await collector.observe() == before
        change(machine)
        machine.write()
        assert await collector.observe() != before


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"feature": 0}, "GPU_CONFIDENTIAL_MODE_OFF"),
        ({"feature": 2}, "GPU_CONFIDENTIAL_MODE_OFF"),
        ({"multi_gpu": 3}, "GPU_CONFIDENTIAL_MODE_OFF"),
        ({"feature": 0, "multi_gpu": 2}, "GPU_CONFIDENTIAL_MODE_OFF"),
        ({"devtools": 1}, "GPU_DEVTOOLS_ON"),
        ({"environment": 0}, "GPU_ENVIRONMENT_NOT_PRODUCTION"),
        ({"environment": 1}, "GPU_ENVIRONMENT_NOT_PRODUCTION"),
        ({"ready": 0}, "GPU_NOT_READY"),
    ],
)
async def test_a_mode_that_may_not_serve_is_refused_whatever_is_asked(
    machine: Machine, changed: dict[str, int], reason: str
) -> None:
    machine.mode = replace(CONFIDENTIAL, **changed)
    machine.write()
    async with collecting(machine.command) as collector:
        for ask in (collector.observe, lambda: collector.collect(NONCE)):
            with pytest.raises(MeshError) as error:
                await ask()
            assert error.value.reason == reason


async def test_a_mode_that_was_refused_is_another_state_when_it_is_back(machine: Machine) -> None:
    async with collecting(machine.command) as collector:
        before = await collector.observe()
        machine.mode = replace(CONFIDENTIAL, feature=0)
        machine.write()
        with pytest.raises(MeshError):
            await collector.observe()
        machine.mode = CONFIDENTIAL
        machine.write()
        assert await collector.observe() != before


async def test_a_gpu_that_is_hidden_from_the_library_is_a_refusal_whatever_is_asked(machine: Machine) -> None:
    machine.unseen = 1
    machine.write()
    async with collecting(machine.command) as collector:
        for ask in (collector.observe, lambda: collector.collect(NONCE)):
            with pytest.raises(MeshError) as error:
                await ask()
            assert error.value.reason == "GPU_DEVICES_DIFFER"


def _asked(machine: Machine) -> Callable[..., None]:
    found = answer(machine.path, b"")
    return lambda **changes: require_every_device(replace(found, **changes))


def test_a_device_that_is_not_shown_is_missed(machine: Machine) -> None:
    found, require = answer(machine.path, b""), _asked(machine)
    require()
    for changes, reason in (
        ({"gpus": ()}, "GPU_MISSING"),
        ({"gpus": found.gpus[:1]}, "GPU_DEVICES_DIFFER"),
        ({"bound_gpus": {}}, "GPU_DEVICES_DIFFER"),
        ({"bound_gpus": {**found.bound_gpus, "0000:09:00.0": "1"}}, "GPU_DEVICES_DIFFER"),
        ({"bound_switches": {"0000:0f:00.0": "1"}}, "GPU_SWITCHES_NOT_SHOWN"),
        ({"mode": PROTECTED_PCIE}, "GPU_SWITCHES_NOT_SHOWN"),
    ):
        with pytest.raises(MeshError) as error:
            require(**changes)
        assert error.value.reason == reason, changes


async def test_a_process_that_says_nothing_is_killed() -> None:
    async with collecting(("tail", "-f", "/dev/null"), observe_seconds=SOON_SECONDS) as collector:
        with pytest.raises(MeshError) as error:
            await collector.observe()
        assert error.value.reason == "GPU_COLLECTOR_SILENT"
        assert collector.pid is None


async def test_a_process_ends_with_whoever_asks_it(machine: Machine) -> None:
    async with collecting(machine.command) as collector:
        await collector.observe()
        pid = collector.pid
        assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("true",), "GPU_COLLECTOR_SILENT"),
        (("/nowhere/to/be/found",), "GPU_COLLECTOR_SILENT"),
        (("cat", "/dev/zero"), "GPU_COLLECTOR_MALFORMED"),
        (("yes",), "GPU_COLLECTOR_MALFORMED"),
        (("yes", "{}"), "GPU_COLLECTOR_MALFORMED"),
        (("yes", '{"detail":"","refused":true}'), "GPU_LIBRARY_REFUSED"),
        (("yes", '{"detail":"","refused":"GPU_LIBRARY_MISSING"}'), "GPU_LIBRARY_MISSING"),
    ],
)
async def test_a_process_that_is_no_collector_is_refused(command: tuple[str, ...], reason: str) -> None:
    async with collecting(command) as collector:
        with pytest.raises(MeshError) as error:
            await collector.observe()
        assert error.value.reason == reason
        assert collector.pid is None


async def test_a_device_that_was_asked_and_did_not_answer_is_no_device_less(machine: Machine) -> None:
    """The line of a collector that was asked for nothing but what there is."""

    said = encode(answer(machine.path, b"")).decode().strip()
    async with collecting(("yes", said)) as collector:
        with pytest.raises(MeshError) as error:
            await collector.collect(NONCE)
        assert error.value.reason == "GPU_COLLECTOR_MALFORMED"


def test_guests_tell_devices_apart_by_what_signs_and_runs(machine: Machine) -> None:
    def seen(nonce: bytes) -> object:
        return observed_in(tuple(gpu.raw for gpu in answer(machine.path, nonce).gpus if gpu.raw is not None))

    before = seen(NONCE)
    assert seen(hashlib.sha256(NONCE).digest()) == before
    machine.gpus.reverse()
    machine.write()
    assert seen(NONCE) == before
    machine.gpus.pop()
    machine.write()
    assert seen(NONCE) != before
