"""It is responsible for telling a supervisor how this process is doing, in systemd's sd_notify protocol.

Without `NOTIFY_SOCKET` in the environment nobody asked, and nothing is sent.
"""

from __future__ import annotations

import os
import socket


def notify_ready() -> None:
    """Say that start-up is over and the service serves."""
    _send("READY=1")


def notify_status(text: str) -> None:
    """Say in one line what the service is doing, for people."""
    _send(f"STATUS={' '.join(text.split())}")


def notify_stopping() -> None:
    """Say that the service has begun to stop."""
    _send("STOPPING=1")


def _send(message: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel:
        try:
            channel.sendto(message.encode(), address)
        except OSError:
            return  # A supervisor that is gone or deaf must not take the service down with it.
