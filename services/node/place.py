"""It is responsible for where opened weights may lie: in memory, or on an encrypted disk."""

from __future__ import annotations

import os
from pathlib import Path

from libs.errors import MeshError

_IN_MEMORY = {"tmpfs", "ramfs"}
_MOUNTS = Path("/proc/self/mountinfo")
_SWAPS = Path("/proc/swaps")
_BLOCK_DEVICES = Path("/sys/dev/block")
_COMPRESSED_MEMORY = "/dev/zram"


class WeightsWouldRest(MeshError):
    """Opened there, the weights could come to lie on a disk in the clear."""

    reason = "WEIGHTS_WOULD_REST"


def require_unreadable_at_rest(folder: Path) -> None:
    """Raise `WeightsWouldRest` unless what is written into a folder is in memory, which goes to no disk, or encrypted.

    Encrypted is a filesystem that lies on dm-crypt itself; with anything in between the kernel does not say.
    """
    device = os.stat(folder).st_dev
    if _filesystem(_MOUNTS.read_text(), device) in _IN_MEMORY:
        if swapped := swaps(_SWAPS.read_text()):
            raise WeightsWouldRest(f"{folder} is in memory, and memory goes to {swapped[0]}: turn that off")
    elif not _is_encrypted(device):
        raise WeightsWouldRest(f"{folder} is neither in memory nor on an encrypted disk")


def swaps(listed: str) -> list[str]:
    """Return to what, of /proc/swaps, memory goes beside itself."""
    names = [line.split()[0] for line in listed.splitlines()[1:] if line.strip()]
    return [name for name in names if not name.startswith(_COMPRESSED_MEMORY)]


def _filesystem(mounts: str, device: int) -> str | None:
    """Return the type of the filesystem with this device number (proc(5), mountinfo)."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        mount, _, filesystem = line.partition(" - ")
        if mount.split()[2] == number:
            return filesystem.split()[0]
    return None


def _is_encrypted(device: int) -> bool:
    uuid = _BLOCK_DEVICES / f"{os.major(device)}:{os.minor(device)}" / "dm" / "uuid"
    try:
        return uuid.read_text().startswith("CRYPT-")
    except OSError:
        return False
