"""One virtual machine's hardware identity: responsible for what a PCK certificate's SGX extension says about it.

The shape follows Intel's SGX PCK certificate profile: platform instance id and configuration flags are written as
real TDX hardware has them, so that policy is tried on what it will meet in production.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from services.devtee import der

SGX_EXTENSION = "1.2.840.113741.1.13.1"


@dataclass(frozen=True, slots=True)
class Platform:
    """What identifies one machine and its patch level."""

    ppid: bytes
    """16 bytes; SHA-256 of it is the device id that policy lists."""
    instance_id: bytes
    """16 bytes."""
    fmspc: bytes = bytes.fromhex("00906ed50000")
    """6 bytes: family, model, stepping, platform and custom SKU."""
    pce_id: bytes = b"\0\0"
    pce_svn: int = 13
    cpu_svn: bytes = bytes([5, 5, 2, 2, 3, 1, 0, 3]) + bytes(8)

    @classmethod
    def random(cls) -> Platform:
        return cls(ppid=secrets.token_bytes(16), instance_id=secrets.token_bytes(16))

    def sgx_extension(self) -> bytes:
        """The DER value of the extension, to be written as not critical."""
        components = [_member(f"2.{index}", der.integer(svn)) for index, svn in enumerate(self.cpu_svn, start=1)]
        return der.sequence(
            _member("1", der.octets(self.ppid)),
            _member(
                "2",
                der.sequence(
                    *components,
                    _member("2.17", der.integer(self.pce_svn)),
                    _member("2.18", der.octets(self.cpu_svn)),
                ),
            ),
            _member("3", der.octets(self.pce_id)),
            _member("4", der.octets(self.fmspc)),
            # 1 is "scalable", and all three flags are set on the TDX servers that exist.
            _member("5", der.enumerated(1)),
            _member("6", der.octets(self.instance_id)),
            _member("7", der.sequence(*(_member(f"7.{flag}", der.boolean(True)) for flag in (1, 2, 3)))),
        )


def _member(arc: str, value: bytes) -> bytes:
    return der.sequence(der.object_identifier(f"{SGX_EXTENSION}.{arc}"), value)
