"""NVIDIA's libraries over development devices: what they are asked with, they are called with, and structures are
theirs.
"""

# ruff: noqa: N802
from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pynvml

from libs.gpus.nscq import Certificate, Label, Report, Uuid
from services.devtee.gpu import Gpu


def fill(array: Any, data: bytes) -> int:
    """Write into a structure's array; return how much."""
    ctypes.memmove(array, data, len(data))
    return len(data)


@dataclass(slots=True)
class NvmlLibrary:
    """libnvidia-ml as its bindings have it. Handles are places in `gpus`."""

    gpus: Sequence[Gpu]
    pci: Sequence[tuple[int, int, int]]
    """Domain, bus and device of each."""
    meanwhile: Callable[[], None] = lambda: None
    """What happens while a GPU is asked."""
    _told: dict[int, int] = field(default_factory=dict)
    _events: list[int] = field(default_factory=list)

    def happens(self, handle: int, kind: int) -> None:
        """Something of this kind happens to a GPU."""
        if self._told.get(handle, 0) & kind:
            self._events.append(handle)

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlEventSetCreate(self) -> list[int]:
        return self._events

    def nvmlDeviceRegisterEvents(self, handle: int, kinds: int, events: list[int]) -> None:
        assert events is self._events
        self._told[handle] = kinds

    def nvmlEventSetWait(self, events: list[int], milliseconds: int) -> int:
        if not events:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
        return events.pop(0)

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.159.03"

    def nvmlSystemGetConfComputeSettings(self, settings: Any) -> int:
        settings._obj.environment, settings._obj.ccFeature = 2, 1
        return int(pynvml.NVML_SUCCESS)

    def nvmlSystemGetConfComputeGpusReadyState(self) -> int:
        return 1

    def nvmlDeviceGetArchitecture(self, handle: int) -> int:
        return int(pynvml.NVML_DEVICE_ARCH_HOPPER)

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:
        self.meanwhile()
        domain, bus, device = self.pci[handle]
        return pynvml.nvmlPciInfo_t(domain=domain, bus=bus, device=device)

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self.gpus[handle].ueid

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, handle: int, nonce: bytes) -> Any:
        answered = pynvml.c_nvmlConfComputeGpuAttestationReport_t()
        answered.attestationReportSize = fill(answered.attestationReport, self.gpus[handle].report(nonce))
        return answered

    def nvmlDeviceGetConfComputeGpuCertificate(self, handle: int) -> Any:
        answered = pynvml.c_nvmlConfComputeGpuCertificate_t()
        answered.attestationCertChainSize = fill(answered.attestationCertChain, self.gpus[handle].chain.encode())
        return answered


@dataclass(slots=True)
class NscqLibrary:
    """libnvidia-nscq: it calls back, with a code for each answer, and returns one for the call."""

    switches: Mapping[str, Gpu]
    """By label, of at most 16 characters."""
    codes: Mapping[str, int] = field(default_factory=dict)
    """Of the answers at a path's end; 0 of all others."""
    silent: frozenset[str] = frozenset()
    """Ends of paths at which nothing is said."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """That structures claim, by the path's end, whatever they have."""
    returned: Mapping[str, int] = field(default_factory=dict)
    """Of calls, by the path's end."""
    _nonce: bytes = b""

    def nscq_session_path_observe(self, session: Any, path: bytes, taking: Any, data: Any, flags: int) -> int:
        end = path.decode().rpartition("/")[2]
        for answer in () if end in self.silent else self._answers(path.decode(), end):
            taking(None, self.codes.get(end, 0), answer, data)
            if end == "uuid":
                # What a callback is shown ends with it.
                ctypes.memset(answer, 0, ctypes.sizeof(Uuid))
        return self.returned.get(end, 0)

    def nscq_session_set_input(self, session: Any, flags: int, asked: Any, size: int) -> int:
        self._nonce = bytes(asked._obj)[:size]
        return 0

    def nscq_uuid_to_label(self, uuid: Any, label: Any, flags: int) -> int:
        assert isinstance(label._obj, Label)
        label._obj.data = bytes(uuid._obj.octets).rstrip(b"\0")
        return 0

    def _answers(self, path: str, end: str) -> list[Any]:
        if end == "uuid":
            padded = (label.encode().ljust(16, b"\0") for label in self.switches)
            return [ctypes.pointer(Uuid((ctypes.c_uint8 * 16)(*octets))) for octets in padded]
        if end == "arch":
            return [2 for _ in self.switches]
        switch = self.switches[path.split("/")[1]]
        if end == "attestation_report":
            report = Report()
            report.report_size = self.sizes.get(end, fill(report.report, switch.report(self._nonce)))
            return [report]
        certificate = Certificate()
        certificate.cert_chain_size = self.sizes.get(end, fill(certificate.cert_chain, switch.chain.encode()))
        return [certificate]
