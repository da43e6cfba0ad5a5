"""Ports for servers that must be found where they were: below those that the kernel gives to outgoing connections."""

from __future__ import annotations

import secrets
import socket

HOST = "127.0.0.1"
_LOWEST, _COUNT = 10_240, 22_000
_given: set[int] = set()


def free_port() -> int:
    """A port that was free a moment ago, and another each time: none of the many connections of tests can take it."""
    while True:
        port = _LOWEST + secrets.randbelow(_COUNT)
        if port in _given:
            continue
        try:
            socket.create_server((HOST, port)).close()
        except OSError:
            continue
        _given.add(port)
        return port


def free_ports(count: int) -> list[int]:
    """So many, all different."""
    return [free_port() for _ in range(count)]
