"""An HTTPS client that sends what a test says and keeps what came: every header, the body's bytes, the server's key."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
ATTESTATION = "/v1/aci/attestation"
SESSIONS = "/v1/aci/sessions"
RECEIPTS = "/v1/aci/receipts"

Headers = Sequence[tuple[str, str]]
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. `body` is without the framing of HTTP/1.1, and otherwise as it came."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found.lower() == name.lower()]

    def header(self, name: str) -> str:
        """The value of a header that must be there, once."""
        values = self.all(name)
        assert len(values) == 1, f"{name} comes {len(values)} times"
        return values[0]

    @property
    def receipt_id(self) -> str:
        return self.header("X-Receipt-Id")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """An error in the shape of section 10."""
        assert self.header("Content-Type").startswith("application/json")
        error: dict[str, Any] = self.json["error"]
        assert set(error) >= {"message", "type", "code", "param"}
        assert isinstance(error["message"], str)
        assert error["message"]
        return error

    @property
    def error_type(self) -> str:
        return str(self.error["type"])

    @property
    def refusal(self) -> tuple[int, str]:
        """Status and type, as section 10 pairs them."""
        return self.status, self.error_type


class Conversation:
    """One TLS connection."""

    def __init__(self, connection: http.client.HTTPSConnection) -> None:
        self._connection = connection

    @property
    def certificate(self) -> bytes:
        """The server's, DER."""
        der = cast(ssl.SSLSocket, self._connection.sock).getpeercert(binary_form=True)
        assert der is not None
        return der

    @property
    def spki_sha256(self) -> str:
        """The digest of the server's key, as a keyset lists it (section 3.1)."""
        key = x509.load_der_x509_certificate(self.certificate).public_key()
        return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()

    def raw(self, request: bytes) -> bytes:
        """Send bytes, and return all that comes until the other side closes."""
        sock = self._connection.sock
        sock.sendall(request)
        received = bytearray()
        while chunk := sock.recv(1 << 16):
            received += chunk
        return bytes(received)

    def send(self, method: str, path: str, body: bytes | None = None, headers: Headers = ()) -> Answer:
        response = self.begin(method, path, body, headers)
        return Answer(response.status, tuple(response.getheaders()), response.read())

    def begin(
        self, method: str, path: str, body: bytes | None = None, headers: Headers = ()
    ) -> http.client.HTTPResponse:
        """Send a request and return its response as soon as the head is there; the body is still to be read."""
        self._connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers:
            self._connection.putheader(name, value)
        if body is not None:
            self._connection.putheader("Content-Type", "application/json")
            self._connection.putheader("Content-Length", str(len(body)))
        self._connection.endheaders(body)
        return self._connection.getresponse()


@dataclass(frozen=True, slots=True)
class Router:
    """A service under test, and the CA of its certificate."""

    url: str
    ca: str

    @property
    def host(self) -> str:
        return str(urlsplit(self.url).hostname)

    @contextmanager
    def connected(self) -> Iterator[Conversation]:
        host = urlsplit(self.url)
        connection = http.client.HTTPSConnection(
            str(host.hostname), host.port, timeout=_TIMEOUT_SECONDS, context=self._context()
        )
        connection.connect()
        try:
            yield Conversation(connection)
        finally:
            connection.close()

    def send(
        self, method: str, path: str, body: bytes | None = None, *, key: str | None = None, headers: Headers = ()
    ) -> Answer:
        """One request on a connection of its own; `key` is the API key that it shows."""
        with self.connected() as conversation:
            return conversation.send(method, path, body, [*bearer(key), *headers])

    def get(self, path: str, *, key: str | None = None, headers: Headers = ()) -> Answer:
        return self.send("GET", path, key=key, headers=headers)

    def post(self, path: str, body: bytes, *, key: str | None = None, headers: Headers = ()) -> Answer:
        return self.send("POST", path, body, key=key, headers=headers)

    def receipt(self, identifier: str, key: str) -> Answer:
        return self.get(f"{RECEIPTS}/{identifier}", key=key)

    def raw(self, request: bytes) -> Answer:
        """Send bytes that need be no HTTP; return what comes until the router closes the connection."""
        with self.connected() as conversation:
            received = conversation.raw(request)
        response = http.client.HTTPResponse(cast(Any, _Received(received)))
        response.begin()
        return Answer(response.status, tuple(response.getheaders()), response.read())

    def _context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)


def bearer(key: str | None) -> Headers:
    return [] if key is None else [("Authorization", f"Bearer {key}")]


class _Received:
    """Bytes as the socket that `http.client` reads from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)
