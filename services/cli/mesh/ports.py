"""It is responsible for the loopback ports of a local mesh: chosen once, kept, and chosen anew when someone took one.

They lie below the range from which the kernel takes ports for outgoing connections, so that none of those can sit on a
service's port while it restarts.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from libs import jcs
from libs.errors import Code, MeshError
from libs.files import write_durably

HOST = "127.0.0.1"
NAMES = (
    "attestation",
    "attestation_bootstrap",
    "kms",
    "kms_bootstrap",
    "kms-2",
    "kms-2_bootstrap",
    "broker",
    "nats",
    "ledger",
    "ledger_http",
    "ledger-2",
    "ledger-2_http",
    "ledger-3",
    "ledger-3_http",
    "witness",
    "registry",
    "node",
    "router",
    "router_grpc",
    "pccs",
)
_LOWEST = 10_240
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_EPHEMERAL = 32_768
_TRIES = 200
_POLL_SECONDS = 0.05
"""The kernel tells nobody that a port became free."""
LINGER_SECONDS = 2.0
"""How long what was killed with an earlier `teemesh up` may still hold its port."""


class PortTaken(MeshError):
    """Another process listens on the port that clients were to use."""

    code = Code.UNAVAILABLE
    reason = "PORT_TAKEN"


class NoFreePort(MeshError):
    """No free port was found on the loopback address."""

    code = Code.UNAVAILABLE
    reason = "NO_FREE_PORT"


def is_free(port: int) -> bool:
    """Say whether a server could listen on the port now. Raises `OSError` for what is no question of being free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def require_router_port(port: int, linger_seconds: float = LINGER_SECONDS) -> None:
    """Raise `PortTaken` unless clients can be served on the port. Blocks for as long as it lingers."""
    if not _becomes_free(port, time.monotonic() + linger_seconds):
        raise PortTaken(f"{HOST}:{port} is taken by another process: stop it, or choose another --router-port")


def assign(path: Path, reserved: int, linger_seconds: float = LINGER_SECONDS) -> Mapping[str, int]:
    """Return a free port for every name: the kept ones that are still free, new ones for the others; keep them.

    `reserved` is used by nobody here. Blocks for as long as taken ports linger. Raises `NoFreePort`.
    """
    kept = read_ports(path)
    deadline = time.monotonic() + linger_seconds
    ports: dict[str, int] = {}
    for name in NAMES:
        port = kept.get(name)
        if port is not None and port != reserved and port not in ports.values() and _becomes_free(port, deadline):
            ports[name] = port
    for name in NAMES:
        if name not in ports:
            ports[name] = _choose({*ports.values(), *kept.values(), reserved})
    if ports != kept:
        write_durably(path, jcs.dumps(ports))
    return ports


def read_ports(path: Path) -> Mapping[str, int]:
    """Return the kept ports; none when the file is not there or not one of ours."""
    try:
        kept = jcs.loads_object(path.read_bytes())
    except (OSError, jcs.JsonMalformed):
        return {}
    return {name: port for name, port in kept.items() if name in NAMES and isinstance(port, int) and 0 < port < 65536}


def _becomes_free(port: int, deadline: float) -> bool:
    while not is_free(port):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _choose(taken: set[int]) -> int:
    highest = _USUAL_EPHEMERAL
    with contextlib.suppress(OSError, ValueError, IndexError):
        highest = int(_EPHEMERAL.read_text().split()[0])
    if highest - _LOWEST < _TRIES:
        highest = _USUAL_EPHEMERAL
    for _ in range(_TRIES):
        port = _LOWEST + secrets.randbelow(highest - _LOWEST)
        if port not in taken and is_free(port):
            return port
    raise NoFreePort(f"no free port on {HOST} between {_LOWEST} and {highest}")
