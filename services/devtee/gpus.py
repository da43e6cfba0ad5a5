"""Responsible for the GPUs of this machine: their vendor, the devices, the vendor's token service, and their evidence.

They last beside the machine's own keys. Every virtual TD of the machine may ask every GPU, as guests with a GPU passed
through may ask theirs. Devices come and go, and change their mode, while the machine runs; that does not last.
"""

from __future__ import annotations

import base64
from enum import Enum

from libs import jcs
from libs.errors import Code, MeshError
from services.devtee.gpu import DRIVER_VERSION, VBIOS_VERSION, Gpu, GpuVendor, ReportShape, decode_gpus, encode_gpus
from services.devtee.nras import ARCHITECTURE, Nras

EVIDENCE_FORMAT = "nvidia-nvattest-collect-evidence-json-v1"
"""What dstack calls the JSON that NVIDIA's `nvattest collect-evidence` prints."""

_NONCE_BYTES = 32


class Mode(Enum):
    """The mode that all GPUs of the machine are in, as NVIDIA's driver has one for all of its own."""

    CONFIDENTIAL = ReportShape()
    # What developer tools change in a GPU shows in what it measures.
    DEVELOPER_TOOLS = ReportShape(measurements={9: bytes(48)})
    # No reports are made.
    OFF = None


class GpuReportsRefused(MeshError):
    """The machine has no GPU, or its GPUs are not in confidential mode: they make no reports."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_REPORTS_REFUSED"


class Gpus:
    """The devices, and who vouches for them."""

    def __init__(self, vendor: GpuVendor, devices: tuple[Gpu, ...], nras: Nras) -> None:
        self._vendor = vendor
        self.devices = devices
        self.nras = nras
        self.mode = Mode.CONFIDENTIAL

    @classmethod
    def create(cls, now: int, count: int = 1) -> Gpus:
        """Provision so many GPUs under a fresh vendor. `now` is in Unix seconds."""
        vendor = GpuVendor.create(now)
        devices = tuple(vendor.make_gpu(now) for _ in range(count))
        return cls(vendor, devices, Nras.create(vendor.root.certificate, now))

    @property
    def device_root(self) -> bytes:
        """DER of the root under which the devices sign their reports."""
        return self._vendor.root.der

    def plug(self, now: int) -> Gpu:
        """Add a fresh GPU of the same vendor. `now` is in Unix seconds."""
        gpu = self._vendor.make_gpu(now)
        self.devices = (*self.devices, gpu)
        return gpu

    def unplug(self, gpu: Gpu) -> None:
        """Take a GPU away. Raises `ValueError` for one that is not here."""
        if gpu not in self.devices:
            raise ValueError("this machine has no such GPU")
        self.devices = tuple(each for each in self.devices if each is not gpu)

    def encode(self) -> bytes:
        """Everything that must survive a restart, secret keys included."""
        return jcs.dumps(
            {
                "devices": jcs.loads_object(encode_gpus(self._vendor, self.devices)),
                "nras": jcs.loads_object(self.nras.encode()),
            }
        )

    @classmethod
    def decode(cls, data: bytes, now: int) -> Gpus:
        """Read `encode`'s bytes. Raises `JsonMalformed`, `KeyError`, `TypeError` or `ValueError` for others.

        What an earlier version did not write is made, and MUST then be written.
        """
        document = jcs.loads_object(data)
        vendor, devices = decode_gpus(jcs.dumps(document["devices"]))
        return cls(vendor, devices, Nras.decode(jcs.dumps(document["nras"]), now))

    def evidence(self, nonce: bytes) -> bytes:
        """Return every device's answer to a 32-byte nonce, as `nvattest` prints it.

        Raises `GpuReportsRefused`, and `ValueError` for a nonce of another size.
        """
        if len(nonce) != _NONCE_BYTES:
            raise ValueError(f"a nonce has {_NONCE_BYTES} bytes")
        shape = self.mode.value
        if shape is None or not self.devices:
            raise GpuReportsRefused("no GPU in confidential mode")
        return jcs.dumps(
            {
                "evidences": [
                    {
                        "version": "1.0",
                        "arch": ARCHITECTURE,
                        "nonce": nonce.hex(),
                        "driver_version": DRIVER_VERSION,
                        "vbios_version": VBIOS_VERSION,
                        "evidence": base64.b64encode(gpu.report(nonce, shape)).decode(),
                        "certificate": base64.b64encode(gpu.chain.encode()).decode(),
                    }
                    for gpu in self.devices
                ],
                "result_code": 0,
                "result_message": "Ok",
            }
        )
