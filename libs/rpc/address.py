"""It is responsible for reading "host:port", where an IPv6 host stands in brackets and resolvers want it without."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

from libs.errors import Code, MeshError

_MAX_PORT = 65535
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+(?:%[^\[\]\s]+)?)\]|(?P<host>[^:\[\]\s]+)):(?P<port>[0-9]{1,5})")


class AddressMalformed(MeshError):
    """Not of the form host:port, or [host]:port for IPv6."""

    code = Code.INVALID_ARGUMENT
    reason = "ADDRESS_MALFORMED"


@dataclass(frozen=True, slots=True)
class Address:
    """A host, as a resolver wants it, and a port, of which 0 leaves the choice to the kernel."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def family(self) -> socket.AddressFamily:
        """What a socket that listens on it must be of."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


def parse_address(text: str) -> Address:
    """Raises `AddressMalformed`."""
    parts = _ADDRESS.fullmatch(text)
    if parts is None or int(parts["port"]) > _MAX_PORT:
        raise AddressMalformed(f"{text[:80]!r} is not host:port, with [brackets] around an IPv6 host")
    return Address(parts["six"] or parts["host"], int(parts["port"]))
