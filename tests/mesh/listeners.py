"""Who listens on TCP, as the kernel has it."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_LISTEN = "0A"


def listeners_of(pids: Iterable[int]) -> set[int]:
    """Return the TCP ports on which these processes of this user listen.

    To anybody but root a service does not show what it has open. Then theirs is whatever this user listens on and no
    other process shows.
    """
    own = set(pids)
    listening = {**_table("tcp"), **_table("tcp6")}
    theirs = {inode for pid in own for inode in _sockets(pid)}
    if any(_is_hidden(pid) for pid in own):
        others = {int(entry) for entry in os.listdir("/proc") if entry.isdigit()} - own
        theirs = listening.keys() - {inode for pid in others for inode in _sockets(pid)}
    return {port for inode, port in listening.items() if inode in theirs}


def demands_tls(port: int) -> bool:
    """Say whether a TLS 1.3 handshake succeeds and plaintext is not answered in plaintext.

    Each kind of server is asked in its own protocol: gRPC and HTTPS by ALPN, nats-server, which knows none, without.
    """
    return _shakes_hands(port) and not _speaks_plaintext(port)


def _shakes_hands(port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="mesh.local") as session,
        ):
            return session.version() == "TLSv1.3"
    except OSError:
        return False


def _speaks_plaintext(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        plain.settimeout(2)
        try:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: mesh.local\r\n\r\n")
            answer = plain.recv(64)
        except OSError:
            return False
    # Nothing, or a TLS alert record.
    return bool(answer) and answer[0] != 0x15


def _table(name: str) -> dict[int, int]:
    """Return inode to port of this user's listening sockets."""
    path = Path("/proc/net") / name
    rows = path.read_text().splitlines()[1:] if path.exists() else []
    fields = [row.split() for row in rows]
    return {
        int(row[9]): int(row[1].rpartition(":")[2], 16)
        for row in fields
        if row[3] == _LISTEN and int(row[7]) == os.getuid()
    }


def _is_hidden(pid: int) -> bool:
    try:
        os.readlink(f"/proc/{pid}/exe")
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _sockets(pid: int) -> set[int]:
    """The sockets that a process shows: none, when it is gone or not to be looked at."""
    inodes = set()
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = os.readlink(descriptor)
                if target.startswith("socket:["):
                    inodes.add(int(target[len("socket:[") : -1]))
    return inodes
