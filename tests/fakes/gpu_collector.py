"""A collector's process of a machine with development devices: `python -m tests.fakes.gpu_collector STATE`.

It speaks as `libs.gpus` does, about the devices in a file that a test may write again between two questions; their
answers are as genuine as devtee's. There are development switches, too: what signs is a development GPU.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from libs import jcs
from libs.gpus.answer import Answer, Device, encode
from libs.gpus.mode import Mode
from libs.tee.nvidia.evidence import RawReport
from services.devtee.gpu import Gpu, GpuVendor, decode_gpus, encode_gpus
from services.devtee.nras import ARCHITECTURE, SWITCH_ARCHITECTURE

CONFIDENTIAL = Mode(environment=2, feature=1, devtools=0, multi_gpu=0, ready=1)
PROTECTED_PCIE = replace(CONFIDENTIAL, feature=0, multi_gpu=1)


@dataclass(slots=True)
class Machine:
    """What the process finds. `links` has the number of each GPU's link to its driver, by its place."""

    path: Path
    vendor: GpuVendor
    gpus: list[Gpu]
    switches: list[Gpu] = field(default_factory=list)
    mode: Mode = CONFIDENTIAL
    driver: str = "580.159.03"
    links: dict[int, str] = field(default_factory=dict)
    errors: int = 0
    unseen: int = 0
    """How many more GPUs the driver holds than the library shows."""

    @property
    def command(self) -> Sequence[str]:
        return (sys.executable, "-m", "tests.fakes.gpu_collector", str(self.path))

    def write(self) -> None:
        """Make it so."""
        self.path.write_bytes(
            jcs.dumps(
                {
                    "devices": jcs.loads_object(encode_gpus(self.vendor, (*self.gpus, *self.switches))),
                    "gpus": len(self.gpus),
                    "mode": asdict(self.mode),
                    "driver": self.driver,
                    "links": {str(place): link for place, link in self.links.items()},
                    "errors": self.errors,
                    "unseen": self.unseen,
                }
            )
        )


def answer(state: Path, nonce: bytes) -> Answer:
    document = jcs.loads_object(state.read_bytes())
    _, devices = decode_gpus(jcs.dumps(document["devices"]))
    gpus, switches = devices[: document["gpus"]], devices[document["gpus"] :]
    held = range(len(gpus) + document["unseen"])
    return Answer(
        mode=Mode(**document["mode"]),
        driver=document["driver"],
        gpus=tuple(_device(gpu, _address(place), ARCHITECTURE, nonce) for place, gpu in enumerate(gpus)),
        switches=tuple(_device(switch, "", SWITCH_ARCHITECTURE, nonce) for switch in switches),
        bound_gpus={_address(place): document["links"].get(str(place), "1") for place in held},
        bound_switches={f"0000:0f:{place:02x}.0": "1" for place in range(len(switches))},
        errors=document["errors"],
    )


def has_nvml() -> bool:
    """Whether NVIDIA's own library is on this machine, so that tests of its absence say nothing."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def _address(place: int) -> str:
    return f"0000:{place + 1:02x}:00.0"


def _device(device: Gpu, address: str, architecture: str, nonce: bytes) -> Device:
    raw = RawReport(device.report(nonce), device.chain) if nonce else None
    return Device(device.ueid, address, architecture, raw)


def main() -> int:
    for line in sys.stdin:
        sys.stdout.buffer.write(encode(answer(Path(sys.argv[1]), bytes.fromhex(line.strip()))))
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
