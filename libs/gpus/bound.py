"""It is responsible for which PCI devices NVIDIA's drivers hold, as the kernel says (sysfs).

The kernel makes the link from driver to device anew each time that it binds them, with a number of its own: so a device
that went and came back between two looks, or a driver that was loaded again, is told from one that stayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

GPU_DRIVER, SWITCH_DRIVER = "nvidia", "nvidia-nvswitch"
_DRIVERS = Path("/sys/bus/pci/drivers")


def bound(driver: str, drivers: Path = _DRIVERS) -> Mapping[str, str]:
    """Return the addresses of a driver's devices, as in "0000:01:00.0", each with the number of its link."""
    folder = drivers / driver
    if not folder.is_dir():
        return {}
    links = (entry for entry in folder.iterdir() if ":" in entry.name and entry.is_symlink())
    return {entry.name: str(entry.lstat().st_ino) for entry in links}
