"""What NVIDIA's structures are turned into, byte for byte, with devtee's answers in them; no library is loaded."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest

from libs.errors import MeshError
from libs.gpus import nscq, nvml
from libs.gpus.bound import bound
from libs.gpus.mode import Mode
from services.devtee.gpu import Gpu, GpuVendor

NOW = 1_790_000_000
NONCE = hashlib.sha256(b"asked").digest()


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    return GpuVendor.create(NOW).make_gpu(NOW)


def _fill(array: Any, data: bytes) -> int:
    ctypes.memmove(array, data, len(data))
    return len(data)


def _report(data: bytes) -> Any:
    answered = pynvml.c_nvmlConfComputeGpuAttestationReport_t()
    answered.attestationReportSize = _fill(answered.attestationReport, data)
    return answered


def _certificate(data: bytes) -> Any:
    answered = pynvml.c_nvmlConfComputeGpuCertificate_t()
    answered.attestationCertChainSize = _fill(answered.attestationCertChain, data)
    return answered


def test_a_gpus_answer_is_taken_as_it_is(gpu: Gpu) -> None:
    report = gpu.report(NONCE)
    assert nvml.report_of(_report(report)) == report
    chain = gpu.chain.encode()
    assert nvml.chain_of(_certificate(chain)) == nvml.chain_of(_certificate(chain + b"\0")) == gpu.chain


@pytest.mark.parametrize("size", [0, 0x2001, 0xFFFFFFFF])
def test_a_size_beyond_the_structure_is_refused(size: int) -> None:
    report, certificate = _report(b"r"), _certificate(b"c")
    report.attestationReportSize = certificate.attestationCertChainSize = size
    switch_report, switch_certificate = nscq.Report(report_size=size), nscq.Certificate(cert_chain_size=size)
    tried: list[tuple[Callable[[Any], object], Any]] = [
        (nvml.report_of, report),
        (nvml.chain_of, certificate),
        (nscq.report_of, switch_report),
        (nscq.chain_of, switch_certificate),
    ]
    for read, answered in tried:
        with pytest.raises(MeshError) as error:
            read(answered)
        assert error.value.reason == "GPU_LIBRARY_REFUSED"


def test_a_chain_that_is_no_text_is_refused() -> None:
    certificate = nscq.Certificate()
    certificate.cert_chain_size = _fill(certificate.cert_chain, b"\xff")
    for read, answered in ((nvml.chain_of, _certificate(b"\xff")), (nscq.chain_of, certificate)):
        with pytest.raises(MeshError) as error:
            read(answered)
        assert error.value.reason == "GPU_LIBRARY_REFUSED"


def test_modes_are_read_by_name() -> None:
    settings = pynvml.c_nvmlSystemConfComputeSettings_v1_t()
    settings.environment, settings.ccFeature, settings.devToolsMode, settings.multiGpuMode = 2, 1, 5, 6
    assert nvml.mode_of(settings, 7) == Mode(environment=2, feature=1, devtools=5, multi_gpu=6, ready=7)


def test_a_switchs_answer_comes_through_a_callback_by_value(gpu: Gpu) -> None:
    """Called as a C library calls it: the structures, of several KiB, are on the stack."""
    report, certificate = nscq.Report(), nscq.Certificate()
    report.report_size = _fill(report.report, gpu.report(NONCE))
    certificate.cert_chain_size = _fill(certificate.cert_chain, gpu.chain.encode())
    found: list[Any] = []
    for kind, read, answered in (
        (nscq.Report, nscq.report_of, report),
        (nscq.Certificate, nscq.chain_of, certificate),
    ):
        taking = nscq.callback(kind)(lambda _device, code, said, _data, read=read: found.append((code, read(said))))
        called = ctypes.cast(taking, ctypes.c_void_p).value
        assert called is not None
        as_c = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int8, kind, ctypes.c_void_p)(called)
        as_c(None, -7, answered, None)
    assert found == [(-7, bytes(report.report[: report.report_size])), (-7, gpu.chain)]


def test_a_device_that_is_bound_again_is_told_from_one_that_stayed(tmp_path: Path) -> None:
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia" / "module").symlink_to("/sys/module/nvidia")
    (tmp_path / "nvidia" / "bind").touch()
    link = tmp_path / "nvidia" / "0000:01:00.0"
    link.symlink_to("../devices/0000:01:00.0")
    before = bound("nvidia", tmp_path)
    assert [*before] == ["0000:01:00.0"]
    assert bound("nvidia", tmp_path) == before
    link.rename(tmp_path / "kept")  # So that its number is not given again.
    link.symlink_to("../devices/0000:01:00.0")
    after = bound("nvidia", tmp_path)
    assert [*after] == [*before]
    assert after != before


def test_a_driver_that_is_not_loaded_holds_nothing(tmp_path: Path) -> None:
    assert bound("nvidia", tmp_path) == {}
