"""A router's HTTPS face over an `AttestedMesh`: real TLS, genuine documents, and one place per route to lie in."""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from libs import jcs
from libs.aci.endpoints import CHAT
from libs.aci.keyset import Keyset
from libs.aci.session import session_id
from services.router.e2ee.answers import cover
from services.router.e2ee.opening import Opening
from services.router.e2ee.window import AcceptanceWindow
from services.router.reading import Reading
from tests.fakes.attested_mesh import E2EE_KEY, AttestedMesh, Served, pem_of
from tests.fakes.sealed_prompts import ListedKeys

API_KEY = "key-of-a-tenant"
WORDS = ("Hello", ", ", "world")
Lie = Callable[[bytes], bytes]


@dataclass(slots=True)
class RouterTwin:
    """Answers every prompt with the same words. `lies` change what a route serves, after it was made honestly."""

    mesh: AttestedMesh
    lies: dict[str, Lie] = field(default_factory=dict)
    prompts: list[bytes] = field(default_factory=list)
    seen_keys: list[str | None] = field(default_factory=list)
    served: dict[str, Served] = field(default_factory=dict)
    session: bytes = b""
    keyset: Keyset | None = None
    """The one that its report is about, if not the mesh's."""
    extra_headers: dict[str, str] = field(default_factory=dict)
    not_yet: int = 0
    """How often a commitment is still to be answered with 404."""
    refusal: bytes | None = None
    """The body of that, instead of an honest one."""
    refusing: bool = False
    hanging_up: bool = False
    """Whether it ends the connection once it has the prompt."""
    breaking_off: bool = False
    """Whether it ends the connection once it has sent its answer, of which it had said that it is longer."""
    sealing: bool = False
    """Whether it takes encrypted prompts, and encrypts their answers."""
    port: int = 0

    def __post_init__(self) -> None:
        self.session = self.session or self.mesh.session()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def application(self) -> web.Application:
        application = web.Application()
        application.add_routes(
            [
                web.get("/v1/aci/attestation", self._attestation),
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/aci/receipts/{id}", self._receipt),
                web.get("/v1/aci/sessions/{id}", self._session),
                web.get("/v1/teemesh/receipts/{id}/commitment", self._commitment),
                web.get("/v1/teemesh/evidence/{digest}", self._evidence),
            ]
        )
        return application

    def _told(self, route: str, body: bytes) -> bytes:
        lie = self.lies.get(route)
        return body if lie is None else lie(body)

    def _json(self, route: str, body: bytes) -> web.Response:
        return web.Response(body=self._told(route, body), content_type="application/json")

    async def _attestation(self, request: web.Request) -> web.Response:
        self.seen_keys.append(request.headers.get("Authorization"))
        return self._json("report", self.mesh.report(request.query["nonce"], self.keyset))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.prompts.append(body)
        self.seen_keys.append(request.headers.get("Authorization"))
        if self.hanging_up and request.transport is not None:
            request.transport.close()
        if self.refusing:
            error = {"message": "no node serves it", "type": "upstream_verification_failed", "code": None}
            return web.json_response({"error": error}, status=503, headers={"X-Receipt-Id": "rcpt-refusal"})
        streamed = json.loads(body).get("stream", False)
        honest = _stream() if streamed else _buffered()
        sealed_to = None
        if self.sealing:
            body, honest, sealed_to = await _sealed(request.headers, body, honest, streams=streamed)
        served = self.mesh.serve(body, honest, self.session, sealed_to=sealed_to)
        self.served[served.receipt_id] = served
        headers = {
            "X-Receipt-Id": served.receipt_id,
            "X-ACI-Keyset-Digest": self.mesh.keyset.digest,
            "Content-Type": "text/event-stream" if streamed else "application/json",
        }
        if self.breaking_off:
            return await _broken_off(request, honest, headers)
        return web.Response(body=self._told("response", honest), headers=headers | self.extra_headers)

    async def _receipt(self, request: web.Request) -> web.Response:
        return self._json("receipt", self.served[request.match_info["id"]].receipt)

    async def _session(self, request: web.Request) -> web.Response:
        if request.match_info["id"] != session_id(self.session):
            return _not_found()
        return self._json("session", self.session)

    async def _commitment(self, request: web.Request) -> web.Response:
        if self.not_yet > 0:
            self.not_yet -= 1
            return _not_found() if self.refusal is None else web.Response(body=self.refusal, status=404)
        return self._json("commitment", jcs.dumps(self.served[request.match_info["id"]].commitment))

    async def _evidence(self, request: web.Request) -> web.Response:
        for role, evidence in self.mesh.evidence.items():
            if evidence.digest.hex() == request.match_info["digest"]:
                return self._json(f"evidence:{role}", evidence.document)
        return _not_found()


@asynccontextmanager
async def serving(twin: RouterTwin, folder: Path, key: ec.EllipticCurvePrivateKey | None = None) -> AsyncIterator[None]:
    """Serve on a free port of 127.0.0.1, under the mesh's outward key unless another is given."""
    runner = web.AppRunner(twin.application(), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", twin.port, ssl_context=server_context(twin.mesh, folder, key))
        await site.start()
        twin.port = runner.addresses[0][1]
        yield
    finally:
        await runner.cleanup()


def server_context(mesh: AttestedMesh, folder: Path, key: ec.EllipticCurvePrivateKey | None = None) -> ssl.SSLContext:
    """Return a context with a certificate of the mesh CA."""
    shown = key or mesh.tls_key
    file = folder / "server.pem"
    file.write_bytes(pem_of(shown) + mesh.ca.outward(shown, mesh.now))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(file)
    return context


async def _sealed(headers: Mapping[str, str], body: bytes, answer: bytes, *, streams: bool) -> tuple[bytes, bytes, str]:
    """The prompt as it is in clear, the answer as it goes out, and to which key."""
    opening = Opening(ListedKeys(E2EE_KEY), AcceptanceWindow(), Reading())
    opened = await opening.open("ab" * 16, 20.0, {name.lower(): value for name, value in headers.items()}, CHAT, body)
    hidden = cover(opened.envelope, streams=streams, status=200)
    client = hashlib.sha256(bytes.fromhex(headers["X-Client-Pub-Key"])).hexdigest()
    return opened.body, hidden.feed(answer) + hidden.finish(), client


async def _broken_off(request: web.Request, answer: bytes, headers: dict[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers | {"Content-Length": str(len(answer) + 1)})
    await response.prepare(request)
    await response.write(answer)
    if request.transport is not None:
        request.transport.close()
    return response


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _stream() -> bytes:
    pieces = [_event({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": word}}]}) for word in WORDS]
    pieces.append(_event({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    return b"".join(pieces) + b"data: [DONE]\n\n"


def _buffered() -> bytes:
    message = {"role": "assistant", "content": "".join(WORDS)}
    return json.dumps({"id": "chatcmpl-1", "choices": [{"index": 0, "message": message}]}).encode()


def _not_found() -> web.Response:
    error = {"error": {"message": "not there", "type": "not_found", "code": None, "param": None}}
    return web.json_response(error, status=404)
