"""A log served over HTTPS as C2SP's tlog-tiles has it, from files that a test may change."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from libs.transparency.merkle import leaf_hash, node_hash
from tests.fakes.pki import ThrowawayCa

_WIDTH = 256


def tiles_of(note: bytes, leaves: Sequence[bytes]) -> dict[str, bytes]:
    """Return what is served for a log of these leaves, by path."""
    served = {"checkpoint": note}
    for number, bundle in enumerate(_groups(leaves)):
        served[_path("entries", number, len(bundle))] = b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in bundle)
    nodes, level = [leaf_hash(leaf) for leaf in leaves], 0
    while nodes:
        for number, tile in enumerate(_groups(nodes)):
            served[_path(str(level), number, len(tile))] = b"".join(tile)
        whole = len(nodes) // _WIDTH * _WIDTH
        nodes, level = [_root(tile) for tile in _groups(nodes[:whole])], level + 1
    return served


@contextmanager
def serving_files(files: dict[str, bytes], folder: Path) -> Iterator[tuple[str, Path]]:
    """Serve while the body runs. Yields the URL and the file of the authority that signed the certificate."""
    ca = ThrowawayCa()
    key, certificate = ca.leaf(None, None, ip="127.0.0.1")
    authority, chain = folder / "https-ca.pem", folder / "https.pem"
    authority.write_bytes(ca.pem)
    chain.write_bytes(key + certificate)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files.get(self.path.removeprefix("/log/"))
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the test looks at answers."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}/log/", authority
        finally:
            server.shutdown()
            thread.join()


def _groups(items: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [items[at : at + _WIDTH] for at in range(0, len(items), _WIDTH)]


def _root(nodes: Sequence[bytes]) -> bytes:
    while len(nodes) > 1:
        nodes = [node_hash(nodes[at], nodes[at + 1]) for at in range(0, len(nodes), 2)]
    return nodes[0]


def _path(level: str, number: int, width: int) -> str:
    thousands, rest = divmod(number, 1000)
    place = f"x{thousands:03d}/{rest:03d}" if thousands else f"{rest:03d}"
    return f"tile/{level}/{place}" + (f".p/{width}" if width < _WIDTH else "")
