"""Responsible for the service's settings."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from libs.errors import Code, MeshError
from libs.rpc.address import AddressMalformed, parse_address


class ListenAddressRefused(MeshError):
    """The PCCS address is not `host:port` on loopback."""

    code = Code.INVALID_ARGUMENT
    reason = "LISTEN_ADDRESS_REFUSED"


@dataclass(frozen=True, slots=True)
class InstanceSettings:
    """One virtual TD."""

    name: str
    """Lower-case letters, digits and hyphens; unique here. The instance's ids belong to this name."""
    socket: Path
    """Where its guest agent listens; at most about 100 bytes, an operating system limit."""
    app_compose: Path
    """The file whose bytes the TD measures. Read once at start: a change is a reboot."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file."""

    state_dir: Path
    """Holds the machine's keys; another directory is another machine."""
    pccs_listen: str
    """`host:port` on loopback; port 0 takes a free one, which `reference.json` then names."""
    instances: tuple[InstanceSettings, ...]

    def pccs_address(self) -> tuple[str, int]:
        """Raises `ListenAddressRefused`: a development machine speaks to no other host."""
        try:
            address = parse_address(self.pccs_listen)
            if ip_address(address.host).is_loopback:
                return address.host, address.port
        except (AddressMalformed, ValueError) as error:
            raise ListenAddressRefused(f"pccs_listen must be a loopback address and a port: {error}") from error
        raise ListenAddressRefused("pccs_listen must be a loopback address and a port")
