"""What NVIDIA's libraries are asked, and what becomes of it when a device fails, changes or says nothing meanwhile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import pynvml
import pytest

from libs.gpus import nscq
from libs.gpus.answer import LibraryRefused
from libs.gpus.asking import ask
from libs.gpus.bound import GPU_DRIVER
from libs.gpus.nvml import Nvml
from libs.tee.nvidia.report import parse_report
from services.devtee.gpu import Gpu, GpuVendor
from tests.fakes.nvidia_libraries import NscqLibrary, NvmlLibrary

NOW = 1_790_000_000
NONCE = hashlib.sha256(b"asked").digest()
XID, OTHER_KIND = pynvml.nvmlEventTypeXidCriticalError, pynvml.nvmlEventTypePState


@pytest.fixture(scope="module")
def gpus() -> list[Gpu]:
    vendor = GpuVendor.create(NOW)
    return [vendor.make_gpu(NOW), vendor.make_gpu(NOW)]


@pytest.fixture
def library(gpus: list[Gpu]) -> NvmlLibrary:
    return NvmlLibrary(gpus, pci=[(0, 0x41, 0), (0x10, 0xC4, 0x1F)])


class Kernel:
    """What it says of the drivers' devices."""

    def __init__(self) -> None:
        self.links = {"0000:41:00.0": "1", "0010:c4:1f.0": "2"}

    def held(self, driver: str) -> Mapping[str, str]:
        return dict(self.links) if driver == GPU_DRIVER else {}


def test_gpus_are_named_as_the_kernel_names_them(library: NvmlLibrary) -> None:
    """NVML writes a domain with eight digits."""
    kernel = Kernel()
    answer = ask(Nvml(library), None, NONCE, kernel.held)
    assert [gpu.address for gpu in answer.gpus] == [*answer.bound_gpus] == [*kernel.links]
    raw = [gpu.raw for gpu in answer.gpus]
    assert [parse_report(each.report).nonce for each in raw if each is not None] == [NONCE, NONCE]


def test_every_error_of_a_gpu_is_counted_once_and_nothing_else_is(library: NvmlLibrary) -> None:
    driver = Nvml(library)
    assert driver.errors() == 0
    library.happens(1, OTHER_KIND)
    assert driver.errors() == 0
    library.happens(1, XID)
    assert (driver.errors(), driver.errors()) == (1, 1)
    library.happens(0, XID)
    library.happens(1, XID)
    assert ask(driver, None, None, Kernel().held).errors == 3


def _fails(library: NvmlLibrary, kernel: Kernel) -> None:
    library.happens(0, XID)


def _is_bound_again(library: NvmlLibrary, kernel: Kernel) -> None:
    kernel.links["0000:41:00.0"] = "3"


def _goes(library: NvmlLibrary, kernel: Kernel) -> None:
    kernel.links.pop("0010:c4:1f.0", None)


@pytest.mark.parametrize("change", [_fails, _is_bound_again, _goes])
@pytest.mark.parametrize("nonce", [NONCE, None])
def test_devices_that_change_while_they_are_asked_have_not_answered(
    library: NvmlLibrary, change: Callable[[NvmlLibrary, Kernel], None], nonce: bytes | None
) -> None:
    kernel, driver = Kernel(), Nvml(library)
    ask(driver, None, nonce, kernel.held)
    library.meanwhile = lambda: change(library, kernel)
    with pytest.raises(LibraryRefused, match="changed while they were asked"):
        ask(driver, None, nonce, kernel.held)


@pytest.fixture
def switches(gpus: list[Gpu]) -> dict[str, Gpu]:
    return {"SWX-1": gpus[0], "SWX-2": gpus[1]}


def test_every_switch_answers_through_its_callback(switches: dict[str, Gpu], library: NvmlLibrary) -> None:
    found = ask(Nvml(library), nscq.Nscq(NscqLibrary(switches), 1), NONCE, Kernel().held).switches
    assert [(each.id, each.architecture) for each in found] == [("SWX-1", "LS10"), ("SWX-2", "LS10")]
    for each, switch in zip(found, switches.values(), strict=True):
        assert each.raw is not None
        assert parse_report(each.raw.report).nonce == NONCE
        assert each.raw.certificate_chain == switch.chain


def test_no_switches_are_no_refusal() -> None:
    assert nscq.Nscq(NscqLibrary({}), 1).switches(NONCE) == ()


@pytest.mark.parametrize("end", ["uuid", "arch", "attestation_report", "certificate"])
@pytest.mark.parametrize(
    "fault",
    [
        # Of the answer, whatever the call says: a callback can raise nothing.
        lambda end: {"codes": {end: -5}},
        lambda end: {"returned": {end: -5}},
    ],
    ids=["answer", "call"],
)
def test_one_failing_answer_is_a_refusal_and_no_switch_less(
    switches: dict[str, Gpu], end: str, fault: Callable[[str], dict[str, Any]]
) -> None:
    with pytest.raises(LibraryRefused, match=f"code -5 for .*{end}"):
        nscq.Nscq(NscqLibrary(switches, **fault(end)), 1).switches(NONCE)


@pytest.mark.parametrize("end", ["arch", "attestation_report", "certificate"])
def test_a_switch_of_which_nothing_is_said_is_a_refusal(switches: dict[str, Gpu], end: str) -> None:
    with pytest.raises(LibraryRefused, match="says nothing of"):
        nscq.Nscq(NscqLibrary(switches, silent=frozenset({end})), 1).switches(NONCE)


@pytest.mark.parametrize("end", ["attestation_report", "certificate"])
def test_what_a_callback_cannot_read_is_a_refusal(switches: dict[str, Gpu], end: str) -> None:
    with pytest.raises(LibraryRefused, match="of 65536 bytes"):
        nscq.Nscq(NscqLibrary(switches, sizes={end: 65536}), 1).switches(NONCE)
