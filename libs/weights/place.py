"""Responsible for where weights and data sets may lie that were opened: in memory, or on an encrypted disk."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from libs.errors import MeshError
from libs.weights.age import to_its_end
from libs.weights.measuring import WeightsMissing

_IN_MEMORY = {"tmpfs", "ramfs"}
_MOUNTS = Path("/proc/self/mountinfo")
_SWAPS = Path("/proc/swaps")
_BLOCK_DEVICES = Path("/sys/dev/block")
_BLOCK = Path("/sys/block")
_COMPRESSED_MEMORY = re.compile(r"/dev/(zram\d+)")
_ENCRYPTED = ("CRYPT-LUKS1-", "CRYPT-LUKS2-", "CRYPT-PLAIN-")
"""Other of cryptsetup's devices, as CRYPT-VERITY- and CRYPT-INTEGRITY-, have the disk in the clear."""


class WeightsWouldRest(MeshError):
    """Opened there, the files could come to lie on a disk in the clear."""

    reason = "WEIGHTS_WOULD_REST"


def require_unreadable_at_rest(folder: Path, listed_swaps: Path = _SWAPS) -> None:
    """Raise `WeightsWouldRest` unless what is written into a folder is in memory, which goes to no disk, or encrypted.

    Encrypted is a filesystem that lies on dm-crypt itself; with anything in between the kernel does not say. Wherever
    the files are, whoever reads them has them in its memory.
    """
    listed = listed_swaps.read_text()
    if swapped := swaps(listed, {name: text for name in compressed(listed) if (text := _backing(name)) is not None}):
        raise WeightsWouldRest(f"memory goes to {swapped[0]}: turn that off")
    device = os.stat(folder).st_dev
    if _filesystem(_MOUNTS.read_text(), device) not in _IN_MEMORY and not is_encrypted(_uuid(device)):
        raise WeightsWouldRest(f"{folder} is neither in memory nor on an encrypted disk")


async def remove_opened(path: Path) -> None:
    """Remove what was opened there, if anything was. Raises `WeightsMissing` where it cannot be: it is plaintext."""

    def remove() -> None:
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)

    try:
        await to_its_end(remove)
    except OSError as error:
        raise WeightsMissing(f"cannot remove {path}: {error.strerror}") from error


def swaps(listed: str, backing: Mapping[str, str]) -> list[str]:
    """Return to what, of /proc/swaps, memory goes beside itself.

    `backing` has what the kernel says of each zram device's `backing_dev`, to which it may write what it holds: "none",
    or a disk. Of which it says nothing, that is no memory.
    """
    return [
        name
        for name in _names(listed)
        if (zram := _COMPRESSED_MEMORY.fullmatch(name)) is None or backing.get(zram[1], "").strip() != "none"
    ]


def compressed(listed: str) -> list[str]:
    """Return the zram devices of /proc/swaps."""
    return [zram[1] for name in _names(listed) if (zram := _COMPRESSED_MEMORY.fullmatch(name))]


def is_encrypted(uuid: str) -> bool:
    """Say whether a device mapper's uuid is one of an encrypted disk."""
    return uuid.startswith(_ENCRYPTED)


def _names(listed: str) -> list[str]:
    return [line.split()[0] for line in listed.splitlines()[1:] if line.strip()]


def _backing(zram: str) -> str | None:
    device = _BLOCK / zram
    if not device.is_dir():
        return None
    try:
        return (device / "backing_dev").read_text()
    except FileNotFoundError:
        return "none"  # The kernel was built without it.


def _filesystem(mounts: str, device: int) -> str | None:
    """Return the type of the filesystem with this device number (proc(5), mountinfo)."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        mount, _, filesystem = line.partition(" - ")
        if mount.split()[2] == number:
            return filesystem.split()[0]
    return None


def _uuid(device: int) -> str:
    try:
        return (_BLOCK_DEVICES / f"{os.major(device)}:{os.minor(device)}" / "dm" / "uuid").read_text()
    except OSError:
        return ""
