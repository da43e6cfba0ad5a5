"""Requests of HTTP/1 that nobody should send, and what a router says to each."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass

from libs.aci import endpoints

CHAT = endpoints.CHAT.path
INVALID = (400, "invalid_request_error")
NOT_FOUND = (404, "not_found")
_HEALTH = "GET /health HTTP/1.1\r\n"


@dataclass(frozen=True, slots=True)
class Hostile:
    """What is sent, and what comes back."""

    data: bytes
    refusal: tuple[int, str]
    """Status, and the error's type."""
    keeps: bool = False
    """Whether the connection is good for another request afterwards."""


def hostile_requests(key: str, body: bytes) -> Mapping[str, Hostile]:
    """`key` is an API key, and `body` a good prompt: only one thing is wrong with each request."""
    return {**_framings(key, body), **_lines(), **_heads(), **_targets(key), **_chunks(key, body), **_bodies(key, body)}


def _post(key: str, fields: str, body: bytes, version: str = "1.1") -> bytes:
    head = f"POST {CHAT} HTTP/{version}\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n{fields}\r\n"
    return head.encode("latin-1") + body


def _framings(key: str, body: bytes) -> dict[str, Hostile]:
    """Bodies of which two readers would see another end."""
    length = f"Content-Length: {len(body)}\r\n"
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    smuggled = b"0\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def of(fields: str, sent: bytes = body, version: str = "1.1") -> Hostile:
        return Hostile(_post(key, fields, sent, version), INVALID)

    return {
        "a length and chunks": of(f"{length}Transfer-Encoding: chunked\r\n", chunked),
        "chunks and a length, with a request behind": of(
            "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", smuggled
        ),
        "two lengths": of(f"{length}Content-Length: 1\r\n"),
        "the same length twice": of(length + length),
        "a list of lengths": of(f"Content-Length: {len(body)}, {len(body)}\r\n"),
        "a length with a sign": of(f"Content-Length: +{len(body)}\r\n"),
        "a negative length": of("Content-Length: -1\r\n"),
        "a length with an underscore": of("Content-Length: 1_0\r\n"),
        "a hexadecimal length": of("Content-Length: 0x10\r\n"),
        "a length of thirty digits": of(f"Content-Length: {'9' * 30}\r\n"),
        "a space before the colon": of(f"Content-Length : {len(body)}\r\n"),
        "chunked twice": of("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", chunked),
        "chunked and chunked": of("Transfer-Encoding: chunked, chunked\r\n", chunked),
        "gzip, then chunked": of("Transfer-Encoding: gzip, chunked\r\n", chunked),
        "gzip as transfer coding": of("Transfer-Encoding: gzip\r\n", chunked),
        "almost chunked": of("Transfer-Encoding: xchunked\r\n", chunked),
        "identity and a length": of(f"Transfer-Encoding: identity\r\n{length}"),
        "chunked behind a vertical tab": of("Transfer-Encoding:\x0bchunked\r\n", chunked),
        "chunks of HTTP/1.0": of("Transfer-Encoding: chunked\r\n", chunked, "1.0"),
    }


def _lines() -> dict[str, Hostile]:
    """Lines that end, go on or hold what no line may."""

    def of(text: str) -> Hostile:
        return Hostile(text.encode("latin-1"), INVALID)

    return {
        "a folded field": of(f"{_HEALTH}Host: a\r\nX-A: b\r\n c\r\n\r\n"),
        "a first field that is folded": of(f"{_HEALTH} Host: a\r\n\r\n"),
        "bare line feeds": of("GET /health HTTP/1.1\nHost: a\n\n"),
        "one bare line feed": of(f"{_HEALTH}Host: a\nX-A: b\r\n\r\n"),
        "a bare carriage return": of(f"{_HEALTH}Host: a\r\nX-A: b\rc\r\n\r\n"),
        "NUL in a value": of(f"{_HEALTH}Host: a\r\nX-A: b\0c\r\n\r\n"),
        "NUL in a name": of(f"{_HEALTH}Host: a\r\nX\0A: b\r\n\r\n"),
        "a control character in a value": of(f"{_HEALTH}Host: a\r\nX-A: b\x01c\r\n\r\n"),
        "a name beyond ASCII": of(f"{_HEALTH}Host: a\r\nX-\xff: a\r\n\r\n"),
        "a field without a name": of(f"{_HEALTH}Host: a\r\n: x\r\n\r\n"),
        "a space in a name": of(f"{_HEALTH}Host: a\r\nX A: x\r\n\r\n"),
        "no colon": of(f"{_HEALTH}Host: a\r\nbroken\r\n\r\n"),
        "half a line": of("GET\r\n\r\n"),
        "no HTTP at all": of("\x16\x03\x01 not http\r\n\r\n"),
        "the preface of HTTP/2": of("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        "tabs in the line": of("GET\t/health\tHTTP/1.1\r\nHost: a\r\n\r\n"),
        "a space after the version": of("GET /health HTTP/1.1 \r\nHost: a\r\n\r\n"),
        "the protocol in lower case": of("GET /health http/1.1\r\nHost: a\r\n\r\n"),
        "a method that is no token": of("G@T /health HTTP/1.1\r\nHost: a\r\n\r\n"),
        "a method of 5000 letters": of("G" * 5000 + " /health HTTP/1.1\r\nHost: a\r\n\r\n"),
        "a request behind one that closes": of(
            f"{_HEALTH}Host: a\r\nConnection: close\r\n\r\n{_HEALTH}Host: a\r\n\r\n"
        ),
    }


def _heads() -> dict[str, Hostile]:
    """Heads that are too large, of another version, or for nobody or two."""

    def of(text: str, status: int, kind: str) -> Hostile:
        return Hostile(text.encode("latin-1"), (status, kind))

    large, version = (431, "request_headers_too_large"), (505, "http_version_not_supported")
    many = "".join(f"X-{number}: y\r\n" for number in range(140))
    return {
        "a field that is too long": of(f"{_HEALTH}Host: a\r\nX: {'x' * 20_000}\r\n\r\n", *large),
        "a name that is too long": of(f"{_HEALTH}Host: a\r\n{'x' * 20_000}: x\r\n\r\n", *large),
        "too many fields": of(f"{_HEALTH}Host: a\r\n{many}\r\n", *large),
        "fields that are too much together": of(f"{_HEALTH}Host: a\r\n{many[:1000]}Y: {'y' * 15_500}\r\n\r\n", *large),
        "a head that does not end": of(_HEALTH + many[:900] + f"Y: {'y' * 8000}\r\n" * 3, *large),
        "empty lines without end": of("\r\n" * 20_000, *large),
        "a target that is too long": of(f"GET /{'x' * 20_000} HTTP/1.1\r\nHost: a\r\n\r\n", 414, "uri_too_long"),
        "a query that is too long": of(f"GET /?{'x' * 20_000} HTTP/1.1\r\nHost: a\r\n\r\n", 414, "uri_too_long"),
        "HTTP/0.9": of("GET /health\r\n\r\n", *version),
        "HTTP/2.0 without its frames": of("GET /health HTTP/2.0\r\nHost: a\r\n\r\n", *version),
        "HTTP/1.2": of("GET /health HTTP/1.2\r\nHost: a\r\n\r\n", *INVALID),
        "two hosts": of(f"{_HEALTH}Host: a\r\nHost: b\r\n\r\n", *INVALID),
        "the same host twice": of(f"{_HEALTH}Host: a\r\nHost: a\r\n\r\n", *INVALID),
        "no host": of(f"{_HEALTH}\r\n", *INVALID),
        "an empty host": of(f"{_HEALTH}Host: \r\n\r\n", *INVALID),
        "a list of hosts": of(f"{_HEALTH}Host: a, b\r\n\r\n", *INVALID),
        "a host with a path": of(f"{_HEALTH}Host: a/b\r\n\r\n", *INVALID),
        "a host with a user": of(f"{_HEALTH}Host: a@b\r\n\r\n", *INVALID),
    }


def _targets(key: str) -> dict[str, Hostile]:
    """Targets that are another's, or another path to somebody else."""

    def of(line: str, refusal: tuple[int, str], *, keeps: bool = False) -> Hostile:
        text = f"{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n"
        return Hostile(text.encode("latin-1"), refusal, keeps)

    return {
        "a target at another host": of("GET https://elsewhere.example/health", INVALID),
        "a target of another scheme": of("GET http://localhost/health", INVALID),
        "a target that is no path": of("GET health", INVALID),
        "a target with a fragment": of("GET /health#x", INVALID),
        "a target with a space": of("GET /he alth", INVALID),
        "a target beyond ASCII": of("GET /h\xff", INVALID),
        "NUL in a target": of("GET /h\0", INVALID),
        "CONNECT": of("CONNECT elsewhere.example:443", INVALID),
        "TRACE": of("TRACE /health", (405, "method_not_allowed"), keeps=True),
        "PURGE": of("PURGE /health", (405, "method_not_allowed"), keeps=True),
        "an encoded slash": of("GET /v1%2fmodels", NOT_FOUND, keeps=True),
        "dots that climb": of("GET /x/../health", NOT_FOUND, keeps=True),
        "encoded dots that climb": of("GET /x/%2e%2e/health", NOT_FOUND, keeps=True),
        "two slashes": of("GET //elsewhere.example/health", NOT_FOUND, keeps=True),
        "broken percent encoding": of("GET /v1/aci/sessions/%zz", NOT_FOUND, keeps=True),
        "an encoded NUL": of("GET /v1/aci/receipts/%00", NOT_FOUND, keeps=True),
        "an encoded surrogate": of("GET /v1/aci/receipts/%ed%a0%80", NOT_FOUND, keeps=True),
    }


def _chunks(key: str, body: bytes) -> dict[str, Hostile]:
    """Chunks that are none."""
    size = b"%x" % len(body)
    end = b"\r\n0\r\n\r\n"

    def of(sent: bytes, refusal: tuple[int, str] = INVALID) -> Hostile:
        return Hostile(_post(key, "Transfer-Encoding: chunked\r\n", sent), refusal)

    return {
        "a chunk of more than 64 bits": of(b"fffffffffffffffff\r\n" + body + end),
        "a chunk of negative size": of(b"-1\r\n" + body + end),
        "a chunk size with a prefix": of(b"0x" + size + b"\r\n" + body + end),
        "a chunk size with a space": of(size + b" \r\n" + body + end),
        "a chunk without a size": of(b"\r\n" + body + end),
        "chunks with bare line feeds": of(size + b"\n" + body + b"\n0\n\n"),
        "a chunk longer than it says": of(size + b"\r\n" + body + b"XX0\r\n\r\n"),
        "a length in the trailers": of(size + b"\r\n" + body + b"\r\n0\r\nContent-Length: 3\r\n\r\n"),
        "too many trailers": of(
            size + b"\r\n" + body + b"\r\n0\r\n" + b"X: a\r\n" * 200 + b"\r\n", (431, "request_headers_too_large")
        ),
    }


def _bodies(key: str, body: bytes) -> dict[str, Hostile]:
    """Bodies that are no JSON object, or that two readers would read differently."""

    def of(sent: bytes, refusal: tuple[int, str] = INVALID, fields: str = "") -> Hostile:
        return Hostile(_post(key, f"{fields}Content-Length: {len(sent)}\r\n", sent), refusal, keeps=True)

    def with_member(text: bytes) -> Hostile:
        return of(body[:-1] + b"," + text + b"}")

    encoding = (415, "unsupported_media_type")
    return {
        "a member twice": with_member(b'"model":"x"'),
        "a member twice, once escaped": with_member(b'"mode\\u006c":"x"'),
        "not a number": with_member(b'"temperature":NaN'),
        "a comment": with_member(b'"a":/* */1'),
        "a control character in a text": with_member(b'"a":"\x01"'),
        "a comma too many": of(body[:-1] + b",}"),
        "arrays 1500 deep": with_member(b'"a":' + b"[" * 1500 + b"]" * 1500),
        "broken UTF-8": with_member(b'"a":"\xff"'),
        "an encoded surrogate in a text": with_member(b'"a":"\xed\xa0\x80"'),
        "an overlong slash": with_member(b'"a":"\xc0\xaf"'),
        "a byte order mark": of(b"\xef\xbb\xbf" + body),
        "UTF-16": of(json.dumps(json.loads(body)).encode("utf-16")),
        "UTF-32": of(json.dumps(json.loads(body)).encode("utf-32")),
        "something behind the object": of(body + b"x"),
        "two objects": of(body + body),
        "NUL behind the object": of(body + b"\0"),
        "an empty body": of(b""),
        "an array": of(b"[]"),
        "null": of(b"null"),
        "gzip": of(gzip.compress(body), encoding, "Content-Encoding: gzip\r\n"),
        "a gzip bomb": of(gzip.compress(b"0" * (1 << 20)), encoding, "Content-Encoding: gzip\r\n"),
        "an encoding nobody knows": of(body, encoding, "Content-Encoding: rot13\r\n"),
        "an expectation nobody meets": of(body, (417, "expectation_failed"), "Expect: miracles\r\n"),
    }
