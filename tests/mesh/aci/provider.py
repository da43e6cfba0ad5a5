"""A service outside the mesh that proves nothing and answers what a test says: the other end of the router's wire."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

JSON = "application/json"
EVENTS = "text/event-stream"
_LONGEST_WAIT_SECONDS = 20

Piece = bytes | threading.Event
"""What is written next, or what is waited for."""


@dataclass(frozen=True, slots=True)
class Script:
    """An answer. One that `breaks` ends without HTTP's own end."""

    pieces: tuple[Piece, ...]
    content_type: str = JSON
    status: int = 200
    breaks: bool = False


@dataclass(slots=True)
class Provider:
    """What it answers next, and every body that it was handed."""

    origin: str
    script: Script
    bodies: list[bytes]

    def answers(self, *pieces: Piece, content_type: str = JSON, status: int = 200, breaks: bool = False) -> None:
        self.script = Script(pieces, content_type, status, breaks)


ANSWER = (
    b'{"id":"chatcmpl-of-the-provider","object":"chat.completion","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"as the test says"}}]}'
)


@contextmanager
def serving(key_pem: bytes, certificate_pem: bytes, folder: Path) -> Iterator[Provider]:
    """Serve on a loopback port while the block runs."""
    provider = Provider("", Script((ANSWER,)), [])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            provider.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            _play(self, provider.script)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    chain = folder / "provider.pem"
    chain.write_bytes(key_pem + certificate_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    with _Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        provider.origin = f"https://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()


def _play(handler: BaseHTTPRequestHandler, script: Script) -> None:
    handler.send_response(script.status)
    handler.send_header("Content-Type", script.content_type)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for piece in script.pieces:
        if isinstance(piece, threading.Event):
            piece.wait(_LONGEST_WAIT_SECONDS)
        elif piece:
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    handler.close_connection = True
    if not script.breaks:
        handler.wfile.write(b"0\r\n\r\n")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A router that leaves in the middle is what some tests are about."""
