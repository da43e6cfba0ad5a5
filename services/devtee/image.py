"""The mock operating system image: responsible for what MRTD and RTMR0-2 of every development TD are.

The image is the same on every machine, as a reproducible image would be: reference values can be known in advance. Its
"files" are a few words each; what matters is that each register replays from the log, and that the image hash covers
the very bytes that were measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256, sha384

from services.devtee.eventlog import Event

# TCG PC Client event types, as a real TDX boot logs them.
_SEPARATOR = 0x00000004
_EVENT_TAG = 0x00000006
_PLATFORM_CONFIG_FLAGS = 0x0000000A
_EFI_VARIABLE_DRIVER = 0x80000001
_EFI_VARIABLE_BOOT = 0x80000002
_EFI_BOOT_APPLICATION = 0x80000003
_EFI_ACTION = 0x80000007
_EFI_PLATFORM_FIRMWARE = 0x8000000A
_EFI_HANDOFF_TABLES = 0x8000000B


@dataclass(frozen=True, slots=True)
class Image:
    """An image and the virtual machine shape it is started in."""

    name: str = "teemesh-development-1"
    cpu_count: int = 2
    memory_bytes: int = 2 << 30

    @property
    def os_image_hash(self) -> bytes:
        """SHA-256 of the image folder's `sha256sum.txt`."""
        lines = (f"{sha256(content).hexdigest()}  {file}\n" for file, content in sorted(self._files().items()))
        return sha256("".join(lines).encode()).digest()

    @property
    def mrtd(self) -> bytes:
        return sha384(self._files()["ovmf.fd"]).digest()

    @property
    def vm_config(self) -> str:
        """JSON, as the host would hand it to the guest: a claim, measured nowhere."""
        return json.dumps(
            {
                "os_image_hash": self.os_image_hash.hex(),
                "cpu_count": self.cpu_count,
                "memory_size": self.memory_bytes,
                "qemu_version": "9.1.0",
                "pci_hole64_size": 0,
                "hugepages": False,
                "num_gpus": 0,
                "num_nvswitches": 0,
                "hotplug_off": False,
                "image": self.name,
            },
            separators=(",", ":"),
        )

    def boot_events(self) -> tuple[Event, ...]:
        """The events of RTMR0-2, in the order a boot measures them."""
        files = self._files()
        shape = f"{self.cpu_count} cpus, {self.memory_bytes} bytes".encode()
        return (
            _measured(0, _EFI_HANDOFF_TABLES, b"td hob: " + shape),
            _measured(0, _EFI_PLATFORM_FIRMWARE, b"configuration volume of " + files["ovmf.fd"]),
            *(_measured(0, _EFI_VARIABLE_DRIVER, name) for name in (b"SecureBoot", b"PK", b"KEK", b"db", b"dbx")),
            _measured(0, _SEPARATOR, bytes(4)),
            _measured(0, _PLATFORM_CONFIG_FLAGS, b"acpi loader: " + shape, "acpi-loader"),
            _measured(0, _PLATFORM_CONFIG_FLAGS, b"acpi rsdp: " + shape, "acpi-rsdp"),
            _measured(0, _PLATFORM_CONFIG_FLAGS, b"acpi tables: " + shape, "acpi-tables"),
            _measured(1, _EFI_BOOT_APPLICATION, files["bzImage"]),
            _measured(0, _EFI_VARIABLE_BOOT, b"BootOrder"),
            _measured(0, _EFI_VARIABLE_BOOT, b"Boot0000"),
            _measured(1, _EFI_ACTION, b"Calling EFI Application from Boot Option"),
            _measured(1, _SEPARATOR, bytes(4)),
            _measured(2, _EVENT_TAG, (files["cmdline"].decode() + " initrd=initrd").encode("utf-16-le")),
            _measured(2, _EVENT_TAG, files["initramfs.cpio.gz"]),
            _measured(1, _EFI_ACTION, b"Exit Boot Services Invocation"),
            _measured(1, _EFI_ACTION, b"Exit Boot Services Returned with Success"),
        )

    def _files(self) -> dict[str, bytes]:
        return {
            part: f"{self.name}: {part}, for development only".encode()
            for part in ("ovmf.fd", "bzImage", "initramfs.cpio.gz", "cmdline", "metadata.json")
        }


def _measured(imr: int, event_type: int, content: bytes, name: str = "") -> Event:
    return Event(imr, event_type, sha384(content).digest(), name)
