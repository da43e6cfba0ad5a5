"""The router's HTTPS face on a free port, and clients that may behave or not."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.aci.endpoints import DEFINED, Endpoint
from libs.aci.report import check_nonce
from libs.errors import Code, MeshError
from libs.https.connections import PROTOCOLS
from libs.policy.tenant_record import Limits, TenantRecord, unrestricted
from libs.policy.tenants import api_key_digest, sign_tenant, verify_tenant
from libs.rpc.tls import load_client_context, load_server_context
from services.router.admission.reads import Reads
from services.router.admission.tenants import TTL_SECONDS, Tenants
from services.router.errors import NotFound
from services.router.face.bodies import BodyRoom
from services.router.face.documents import Documents
from services.router.face.listener import https
from services.router.face.origins import Origins
from services.router.face.paths import Paths
from services.router.face.prompts import Prompts
from services.router.face.settings import HttpSettings
from services.router.proof.kept_receipts import StoredReceipt
from services.router.proof.usage import UsageCopies
from services.router.routing.models import Models
from services.router.routing.settings import RoutingSettings
from services.router.workload.reports import Reports
from services.router.workload.worker_form import WorkerForm
from tests.fakes.ledgers import TENANT
from tests.fakes.pki import ThrowawayCa
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench, router_bench

MAX_BODY_BYTES = 4096
BODY_SECONDS = 1.0
IDLE_SECONDS = 1.0
DRAIN_SECONDS = 0.1
SETTINGS = HttpSettings(
    listen="127.0.0.1:0",
    grpc_listen="",
    max_body_bytes=MAX_BODY_BYTES,
    body_seconds=BODY_SECONDS,
    idle_seconds=IDLE_SECONDS,
)
KEY, OTHER_KEY = "sk-acme", "sk-other"
EVIDENCE, EVIDENCE_DIGEST = b'{"v":1}', "ee" * 32
_ADMIN = Ed25519PrivateKey.generate()


class KeyUnknown(MeshError):
    code = Code.NOT_FOUND
    reason = "API_KEY_UNKNOWN"


class DirectoryTwin:
    """Two tenants; the second for what the first must not see."""

    def __init__(self) -> None:
        self.asked = 0
        self.now = 0.0
        """The clock by which a router's answers about keys grow old, and what tenants may do comes back."""
        self.broken: Exception | None = None
        self.answers = asyncio.Event()
        """Cleared, it keeps whoever asks about a key waiting."""
        self.answers.set()
        self.revoked: Collection[str] = ()
        self.refused: list[str] = []
        self._records: dict[bytes, bytes] = {}
        for key, tenant_id in ((KEY, TENANT.tenant_id), (OTHER_KEY, "cd" * 16)):
            self.store(TenantRecord(tenant_id, 1, "Acme", unrestricted(api_key_digest(key))))

    def limit(self, limits: Limits) -> None:
        """Give the first tenant limits."""
        self.now += TTL_SECONDS
        self.store(TenantRecord(TENANT.tenant_id, 2, "Acme", unrestricted(api_key_digest(KEY)), limits))

    def store(self, record: TenantRecord) -> None:
        """Have a record, and under no other key than those it lists."""
        signed = sign_tenant(record, _ADMIN)
        self._records = {
            digest: kept
            for digest, kept in self._records.items()
            if verify_tenant(kept, _ADMIN.public_key().public_bytes_raw()).tenant_id != record.tenant_id
        } | {bytes.fromhex(digest): signed for digest in record.api_key_sha256}

    async def find(self, digest: bytes) -> bytes:
        self.asked += 1
        await self.answers.wait()
        if self.broken is not None:
            raise self.broken
        if digest not in self._records:
            raise KeyUnknown("no tenant has this key")
        return self._records[digest]


class ReportsTwin:
    async def report(self, nonce: str | None, host: str = "") -> bytes:
        return b"{}" if nonce is None else b'{"nonce":"%s"}' % check_nonce(nonce).encode()


class CommitmentsTwin:
    async def of(self, stored: StoredReceipt) -> dict[str, Any]:
        return {"entry_id": stored.entry_id.hex()}


class EvidenceTwin:
    async def find(self, digest: str) -> bytes:
        if digest != EVIDENCE_DIGEST:
            raise NotFound("no evidence document of that digest here")
        return EVIDENCE


def tenants_of(directory: DirectoryTwin) -> Tenants:
    admin_key = _ADMIN.public_key().public_bytes_raw()
    return Tenants(
        directory.find,
        lambda: admin_key,
        lambda: directory.revoked,
        directory.refused.append,
        clock=lambda: directory.now,
    )


def documents_of(
    bench: RouterBench,
    directory: DirectoryTwin,
    reports: Reports,
    reads_per_second: float = SETTINGS.reads_per_second,
) -> Documents:
    """A router's documents; receipts' commitments and evidence are twins."""
    return Documents(
        workload=bench.workload,
        overdue=lambda: None,
        reports=reports,
        tenants=tenants_of(directory),
        reads=Reads(reads_per_second, lambda: directory.now),
        served=Models(bench.upstreams, bench.foreign),
        upstreams=bench.upstreams,
        foreign=bench.foreign,
        cited=bench.sessions,
        receipts=bench.store.receipts,
        commitments=cast(Any, CommitmentsTwin()),
        evidence=cast(Any, EvidenceTwin()),
        usage=UsageCopies(bench.store.usage),
        worker=WorkerForm(bench.workload, reports),
    )


def paths_of(
    bench: RouterBench,
    directory: DirectoryTwin,
    reports: Reports,
    *,
    max_body_bytes: int,
    body_seconds: float = 30.0,
    total_seconds: float = 90.0,
    origins: Collection[str] = (),
    reads_per_second: float = SETTINGS.reads_per_second,
) -> Paths:
    """A router's paths."""
    prompts = Prompts(
        tenants_of(directory),
        bench.gates,
        bench.exchanges,
        max_body_bytes=max_body_bytes,
        request_seconds=60.0,
        total_seconds=total_seconds,
        body_seconds=body_seconds,
    )
    documents = documents_of(bench, directory, reports, reads_per_second)
    return Paths(bench.workload.headers, prompts, documents, Origins(origins), bench.metrics)


@dataclass(slots=True)
class Site:
    """A running listener and what is behind it."""

    bench: RouterBench
    directory: DirectoryTwin
    port: int
    tls: ssl.SSLContext
    tls_h2: ssl.SSLContext
    """For whoever speaks nothing but HTTP/2."""
    session: aiohttp.ClientSession
    room: BodyRoom
    stop: Callable[[], Coroutine[None, None, None]]
    """Ends the listener, as a router that is terminated does."""

    async def refusing(self) -> None:
        """Return once the listener takes no connection any more: it is stopping."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    return
                writer.transport.abort()

    def url(self, path: str) -> str:
        return f"https://127.0.0.1:{self.port}{path}"

    async def ask(
        self, method: str, path: str, *, key: str | None = None, body: bytes | None = None, **headers: str
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        """Send a request and read the whole answer."""
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        async with self.session.request(method, self.url(path), data=body, headers=headers) as response:
            return response, await response.read()

    async def raw(self, data: bytes, more: bytes = b"") -> bytes:
        """Send bytes as they are and read until the server closes; `more` is sent once it says to continue."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls)
            try:
                writer.write(data)
                await writer.drain()
                if more:
                    assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
                    writer.write(more)
                return await reader.read()
            finally:
                writer.close()


@asynccontextmanager
async def https_site(
    folder: Path,
    *,
    total_seconds: float = 90.0,
    drain_seconds: float = DRAIN_SECONDS,
    origins: Collection[str] = (),
    offered: Collection[Endpoint] = DEFINED,
    routing: RoutingSettings | None = None,
    **limits: float,
) -> AsyncIterator[Site]:
    """`limits`: what the table [http] says otherwise."""
    settings = replace(SETTINGS, **cast(Any, limits))
    room = BodyRoom(settings.max_bodies_bytes, settings.max_body_bytes)
    ca, directory = ThrowawayCa(), DirectoryTwin()
    key, certificate = ca.leaf(None, "localhost", ip="127.0.0.1")
    tls, tls_h2 = load_client_context(ca_pem=ca.pem), load_client_context(ca_pem=ca.pem)
    tls_h2.set_alpn_protocols(["h2"])
    shown = load_server_context(key_pem=key, certificate_pem=certificate)
    shown.set_alpn_protocols(list(PROTOCOLS))
    async with router_bench(folder, allowances=lambda: directory.now, offered=offered, routing=routing) as bench:
        paths = paths_of(
            bench,
            directory,
            cast(Any, ReportsTwin()),
            max_body_bytes=settings.max_body_bytes,
            body_seconds=settings.body_seconds,
            total_seconds=total_seconds,
            origins=origins,
            reads_per_second=settings.reads_per_second,
        )
        listener = https(
            settings,
            paths.answer,
            paths.unread_headers,
            shown,
            room=room,
            metrics=bench.metrics.connections,
            drain_seconds=drain_seconds,
        )
        async with (
            bench.issuance.recording(),
            AsyncExitStack() as listening,
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls), timeout=aiohttp.ClientTimeout(PATIENCE_SECONDS)
            ) as session,
        ):
            port = await listening.enter_async_context(listener)
            yield Site(bench, directory, port, tls, tls_h2, session, room, listening.aclose)
