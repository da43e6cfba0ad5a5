"""It is responsible for asking NVML (libnvidia-ml), through NVIDIA's own bindings. Only the collector's process loads
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref
from typing import Any

import pynvml

from libs.gpus.answer import Device, LibraryMissing, LibraryRefused
from libs.gpus.mode import Mode
from libs.tee.nvidia.evidence import RawReport

_ARCHITECTURES = {pynvml.NVML_DEVICE_ARCH_HOPPER: "HOPPER", pynvml.NVML_DEVICE_ARCH_BLACKWELL: "BLACKWELL"}


def report_of(answered: Any) -> bytes:
    """Return the signed report of an `nvmlConfComputeGpuAttestationReport_t`: SPDM request and response.

    Raises `LibraryRefused` for a size that the structure cannot have.
    """
    return _cut(answered.attestationReport, answered.attestationReportSize, "report")


def chain_of(answered: Any) -> str:
    """Return the PEM chain, the signing certificate first, of an `nvmlConfComputeGpuCertificate_t`.

    Raises `LibraryRefused` for a size that the structure cannot have, and for what is not ASCII.
    """
    chain = _cut(answered.attestationCertChain, answered.attestationCertChainSize, "certificate chain")
    try:
        return chain.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise LibraryRefused("a GPU's certificate chain is not PEM") from error


def mode_of(settings: Any, ready: int) -> Mode:
    """Return what an `nvmlSystemConfComputeSettings_v1_t` says, with the ready state."""
    return Mode(settings.environment, settings.ccFeature, settings.devToolsMode, settings.multiGpuMode, ready)


class Nvml:
    """An open NVML, which is told of the GPUs' errors from its beginning."""

    def __init__(self, library: Any) -> None:
        """`library` has the calls of NVIDIA's bindings."""
        self._library = library
        self._handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
        self._events = library.nvmlEventSetCreate()
        self._errors = 0
        for handle in self._handles:
            library.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._events)

    @property
    def driver(self) -> str:
        return str(self._library.nvmlSystemGetDriverVersion())

    def errors(self) -> int:
        """Count the errors so far."""
        while True:
            try:
                self._library.nvmlEventSetWait(self._events, 0)
            except pynvml.NVMLError_Timeout:
                return self._errors
            self._errors += 1

    def mode(self) -> Mode:
        settings = pynvml.c_nvmlSystemConfComputeSettings_v1_t()
        # The bindings hand this one code on instead of raising it.
        if (code := self._library.nvmlSystemGetConfComputeSettings(byref(settings))) != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(code)
        return mode_of(settings, self._library.nvmlSystemGetConfComputeGpusReadyState())

    def gpus(self, nonce: bytes | None) -> tuple[Device, ...]:
        """Return every GPU; with a nonce of 32 bytes, each with its answer. One that does not answer raises."""
        return tuple(_device(self._library, handle, nonce) for handle in self._handles)


@contextmanager
def opened() -> Iterator[Nvml]:
    """Load the library and begin. Raises `LibraryMissing`, or `LibraryRefused` as does every failing call inside."""
    try:
        pynvml.nvmlInit()
        try:
            yield Nvml(pynvml)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError_LibraryNotFound as error:
        raise LibraryMissing("libnvidia-ml is not installed: it comes with NVIDIA's driver") from error
    except pynvml.NVMLError as error:
        raise LibraryRefused(f"NVML: {error}") from error


def _device(library: Any, handle: Any, nonce: bytes | None) -> Device:
    architecture = library.nvmlDeviceGetArchitecture(handle)
    if architecture not in _ARCHITECTURES:
        raise LibraryRefused(f"a GPU of architecture {architecture}, which is not attested here")
    pci = library.nvmlDeviceGetPciInfo(handle)
    # NVML's domain has eight digits, the kernel's four.
    address = f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"
    device = library.nvmlDeviceGetUUID(handle)
    if nonce is None:
        return Device(device, address, _ARCHITECTURES[architecture])
    report = report_of(library.nvmlDeviceGetConfComputeGpuAttestationReport(handle, nonce))
    chain = chain_of(library.nvmlDeviceGetConfComputeGpuCertificate(handle))
    return Device(device, address, _ARCHITECTURES[architecture], RawReport(report, chain))


def _cut(array: Any, size: int, what: str) -> bytes:
    if not 0 < size <= len(array):
        raise LibraryRefused(f"a GPU's {what} of {size} bytes")
    return bytes(memoryview(array)[:size])
