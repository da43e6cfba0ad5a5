"""Responsible for the GPUs of this machine: their vendor, the devices, the vendor's token service, and their evidence.

They last beside the machine's own keys. Every virtual TD of the machine may ask every GPU, as guests with a GPU passed
through may ask theirs.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from libs import jcs
from services.devtee.gpu import DRIVER_VERSION, VBIOS_VERSION, Gpu, GpuVendor, decode_gpus, encode_gpus
from services.devtee.nras import ARCHITECTURE, Nras

EVIDENCE_FORMAT = "nvidia-nvattest-collect-evidence-json-v1"
"""What dstack calls the JSON that NVIDIA's `nvattest collect-evidence` prints."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """The devices, and who vouches for them."""

    devices: tuple[Gpu, ...]
    nras: Nras

    @classmethod
    def create(cls, now: int, count: int = 1) -> Gpus:
        """Provision so many GPUs under a fresh vendor. `now` is in Unix seconds."""
        vendor = GpuVendor.create(now)
        return cls(tuple(vendor.make_gpu(now) for _ in range(count)), Nras.create(vendor.root.certificate, now))

    @property
    def device_root(self) -> bytes:
        """DER of the root under which the devices sign their reports."""
        return self.devices[0].vendor.root.der

    def encode(self) -> bytes:
        """Everything that must survive a restart, secret keys included."""
        return jcs.dumps(
            {
                "devices": jcs.loads_object(encode_gpus(self.devices[0].vendor, self.devices)),
                "nras": jcs.loads_object(self.nras.encode()),
            }
        )

    @classmethod
    def decode(cls, data: bytes, now: int) -> Gpus:
        """Read `encode`'s bytes. Raises `JsonMalformed`, `KeyError`, `TypeError` or `ValueError` for others.

        What an earlier version did not write is made, and MUST then be written.
        """
        document = jcs.loads_object(data)
        _, devices = decode_gpus(jcs.dumps(document["devices"]))
        return cls(devices, Nras.decode(jcs.dumps(document["nras"]), now))

    def evidence(self, nonce: bytes) -> bytes:
        """Return every device's answer to a 32-byte nonce, as `nvattest` prints it. Raises `ValueError`."""
        return jcs.dumps(
            {
                "evidences": [
                    {
                        "version": "1.0",
                        "arch": ARCHITECTURE,
                        "nonce": nonce.hex(),
                        "driver_version": DRIVER_VERSION,
                        "vbios_version": VBIOS_VERSION,
                        "evidence": base64.b64encode(gpu.report(nonce)).decode(),
                        "certificate": base64.b64encode(gpu.chain.encode()).decode(),
                    }
                    for gpu in self.devices
                ],
                "result_code": 0,
                "result_message": "Ok",
            }
        )
