"""A dstack-vllm-proxy worker over real TLS, in a TD of the software TEE: reports and signatures as those make them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.https_router import server_context

API_KEY = "sk-worker"
Lie = Callable[[dict[str, Any]], object]


@dataclass(slots=True)
class WorkerTwin:
    """One worker. `has_tls_key` false: its TLS ends somewhere else, so it has no report of version 2."""

    mesh: AttestedMesh
    has_tls_key: bool = True
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    tls_key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    lies: dict[str, Lie] = field(default_factory=dict)
    """About `report` or `signature`: each changes what was made honestly."""
    bodies: list[bytes] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """The versions of reports that were asked for."""
    texts: dict[str, str] = field(default_factory=dict)
    """What is signed of each answer, by the answer's id."""
    signs: Callable[[str], str] = field(default=str)
    """What it signs in place of that, with its own key."""
    buffered: dict[str, Any] = field(default_factory=dict)
    """What its answers that are not streamed have beside what each has."""
    signatures: int = 0
    """How often it was asked for one."""
    port: int = 0

    @property
    def origin(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def address(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def fingerprint(self) -> bytes:
        spki = self.tls_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).digest()

    def report(self, nonce: bytes, version: int) -> dict[str, Any]:
        identity = self.address if version == 1 else hashlib.sha256(self.address + self.fingerprint).digest()
        workload = self.mesh.workloads["router"]
        attestation: dict[str, Any] = {
            "signing_address": self.address.hex(),
            "signing_algo": "ed25519",
            "request_nonce": nonce.hex(),
            "intel_quote": workload.td.quote(identity + nonce).hex(),
            "nvidia_payload": json.dumps({"nonce": nonce.hex(), "evidence_list": [], "arch": "HOPPER"}),
            "info": {"tcb_info": json.dumps({"app_compose": workload.td.app_compose}), "app_name": "vllm"},
            "event_log": json.dumps([event.to_json() | {"version": 1} for event in workload.event_log]),
            "vm_config": "{}",
            "version": version,
        }
        if version == 2:
            attestation["tls_cert_fingerprint"] = self.fingerprint.hex()
        if "report" in self.lies:
            self.lies["report"](attestation)
        return attestation | {"all_attestations": [attestation]}

    async def reported(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {API_KEY}":
            return web.json_response({"error": {"message": "no key", "type": "unauthorized"}}, status=401)
        version = int(request.query.get("version", "1"))
        self.asked.append(str(version))
        if version == 2 and not self.has_tls_key:
            return web.json_response({"detail": "attestation version 2 requires a TLS certificate"}, status=400)
        return web.json_response(self.report(bytes.fromhex(request.query["nonce"]), version))

    async def answered(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.bodies.append(body)
        asked = hashlib.sha256(body).hexdigest()
        if json.loads(body).get("stream"):
            stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in _EVENTS) + b"data: [DONE]\n"
            self.texts["chatcmpl-w"] = f"{asked}:{hashlib.sha256(stream).hexdigest()}"
            return web.Response(body=stream, content_type="text/event-stream")
        answer = _BUFFERED | self.buffered
        # Signed as Python writes it, sent as compactly as it goes.
        self.texts["chatcmpl-w"] = f"{asked}:{hashlib.sha256(json.dumps(answer).encode()).hexdigest()}"
        sent = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        return web.Response(body=sent.encode(), content_type="application/json")

    async def signed(self, request: web.Request) -> web.Response:
        self.signatures += 1
        text = self.signs(self.texts[request.match_info["id"]])
        answer = {
            "text": text,
            "signature": self.key.sign(text.encode()).hex(),
            "signing_address": self.address.hex(),
            "signing_algo": request.query["signing_algo"],
        }
        if "signature" in self.lies:
            self.lies["signature"](answer)
        return web.json_response(answer)


_BUFFERED = {"id": "chatcmpl-w", "choices": [{"message": {"content": "grüß"}, "finish_reason": "stop"}]}
_EVENTS = (
    {"id": "chatcmpl-w", "choices": [{"delta": {"content": "a"}, "finish_reason": None}]},
    {"id": "chatcmpl-w", "choices": [{"delta": {}, "finish_reason": "stop"}]},
)


@asynccontextmanager
async def vllm_proxy_worker(twin: WorkerTwin, folder: Path) -> AsyncIterator[WorkerTwin]:
    application = web.Application()
    application.router.add_get("/v1/attestation/report", twin.reported)
    application.router.add_post("/v1/chat/completions", twin.answered)
    application.router.add_get("/v1/signature/{id}", twin.signed)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        context = server_context(twin.mesh, folder, twin.tls_key)
        await web.TCPSite(runner, "127.0.0.1", twin.port, ssl_context=context).start()
        twin.port = runner.addresses[0][1]
        yield twin
    finally:
        await runner.cleanup()
