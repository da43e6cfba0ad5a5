"""A second router, of another mesh on another machine, as the foreign ACI service of a first: real HTTPS and evidence.

What lies behind it is a twin node and a twin ledger. It may be made to lie about one route at a time, from behind its
attested key, as nobody on the way could.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs import jcs
from libs.aci.keyset import KEYSET_HEADER, Keyset
from libs.aci.receipt import Receipt, verify_receipt
from libs.aci.receipt_events import UpstreamFailed
from libs.aci.report import SourceProvenance
from libs.https.connections import PROTOCOLS
from libs.policy.document import Policy, read
from libs.tee.collateral import Collateral
from libs.tee.dstack import GuestQuote
from libs.tee.eventlog import RUNTIME_REGISTER
from libs.transparency.leaf import Kind
from services.router.face.answers import Reply, document
from services.router.face.arrivals import Arrival
from services.router.face.bodies import BodyRoom
from services.router.face.listener import https
from services.router.face.paths import Paths
from services.router.face.settings import HttpSettings
from services.router.routing.foreign.access import Credentials
from services.router.workload.outward import Outward
from services.router.workload.reports import Reports
from tests.fakes.attested_mesh import TRUST_DOMAIN, AttestedMesh
from tests.fakes.https_clients import (
    DRAIN_SECONDS,
    KEY,
    DirectoryTwin,
    paths_of,
)
from tests.fakes.leases import MODEL
from tests.fakes.peers import PeerTwin
from tests.fakes.policies import KeeperTwin
from tests.fakes.policy_draft import policy_draft
from tests.fakes.routers import Answer, RouterBench, prompt, router_bench

NAME = "other-mesh"
THERE = MODEL
HERE = "their-model"
RETAIN_SECONDS = 30 * 86400
WORDS = "which nobody on the way may read"
Lie = Callable[[bytes], bytes]


class TdGuest:
    """The guest agent of a running TD. One of dstack 0.6 leaves out what verifiers can recompute."""

    def __init__(self, mesh: AttestedMesh, *, strips_digests: bool = False) -> None:
        self._workload = mesh.workloads["router"]
        self._strips_digests = strips_digests

    async def measured_compose(self) -> str:
        return self._workload.td.app_compose

    async def quote(self, report_data: bytes) -> GuestQuote:
        log = self._workload.event_log
        if self._strips_digests:
            log = tuple(replace(event, digest=b"") if event.imr == RUNTIME_REGISTER else event for event in log)
        return GuestQuote(self._workload.td.quote(report_data), log, self._workload.td.machine.image.vm_config)


class MachineCollateral:
    """The vendor's statements about a mesh's machine."""

    def __init__(self, mesh: AttestedMesh) -> None:
        self._mesh = mesh

    async def collateral(self, quote: bytes) -> Collateral:
        return self._mesh.collateral


class OutwardAuthority(kms_pb2_grpc.KmsServiceServicer):
    """Signs outward keys as the mesh CA does."""

    def __init__(self, mesh: AttestedMesh) -> None:
        self._mesh = mesh

    async def IssueServerCertificate(  # noqa: N802
        self, request: Any, context: Any
    ) -> kms_pb2.IssueServerCertificateResponse:
        key = cast(ec.EllipticCurvePublicKey, x509.load_der_x509_csr(request.csr).public_key())
        names = (*request.dns_names, *request.ip_addresses)
        pem = self._mesh.ca.outward_of(key, self._mesh.now, names)
        der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
        return kms_pb2.IssueServerCertificateResponse(certificate=der)


def _authority(mesh: AttestedMesh) -> OutwardAuthority:
    return OutwardAuthority(mesh)  # type: ignore[abstract]  # The other methods stay unimplemented.


@dataclass(slots=True)
class ShiftedClock:
    """A clock that goes right and was set so far ahead."""

    ahead_seconds: float

    def __call__(self) -> float:
        return time.time() + self.ahead_seconds


@dataclass(slots=True)
class JoinedTwin:
    """What of a member the router's own identity needs."""

    guest: TdGuest
    kms: PeerTwin
    ca_pem: bytes


@dataclass(slots=True)
class OtherRouter:
    """The second router, as it runs now."""

    mesh: AttestedMesh
    bench: RouterBench
    port: int
    paths: Paths
    clock: ShiftedClock
    """By which its keysets end."""
    member: JoinedTwin
    lies: dict[str, Lie] = field(default_factory=dict)
    """By the last fixed part of a route: attestation, sessions, session, receipts."""
    reports: int = 0
    nonce: str = ""
    """The one that was asked with last."""
    claimed_keyset: str | None = None
    """Which one its responses say that they are served under, if not the right one."""
    bodies: list[bytes] = field(default_factory=list)
    """Every prompt that came, to whatever end."""

    @property
    def origin(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def answer(self, arrival: Arrival) -> AsyncIterator[Reply]:
        """As the router does, but for the lies."""
        route = _route(arrival.path)
        if route == "attestation":
            self.reports += 1
            self.nonce = arrival.query.first("nonce") or ""

        async def read(limit: int, tenant_id: str) -> bytes:
            self.bodies.append(await arrival.read(limit, tenant_id))
            return self.bodies[-1]

        async with self.paths.answer(replace(arrival, read=read)) as reply:
            lie = self.lies.get(route)
            if lie is not None and isinstance(reply.body, bytes):
                reply = document(lie(reply.body))
            if self.claimed_keyset is not None:
                reply = replace(reply, headers={**reply.headers, KEYSET_HEADER: self.claimed_keyset})
            yield reply


def _route(path: str) -> str:
    parts = path.strip("/").split("/")
    return "session" if parts[-2:-1] == ["sessions"] else parts[-2] if "receipts" in parts else parts[-1]


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@asynccontextmanager
async def other_router(
    folder: Path,
    mesh: AttestedMesh,
    *,
    port: int = 0,
    ahead_seconds: float = 0.0,
    nodes: int = 1,
    outward: Outward | None = None,
) -> AsyncIterator[OtherRouter]:
    """Start it; started again on the same port it is the same service with other keys."""
    server, clock = grpc.aio.server(), ShiftedClock(ahead_seconds)
    kms_pb2_grpc.add_KmsServiceServicer_to_server(_authority(mesh), server)
    kms = PeerTwin(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", None)
    await server.start()
    member = JoinedTwin(TdGuest(mesh), kms, mesh.ca.pem)
    try:
        async with router_bench(
            made(folder), nodes=nodes, trust_domain=TRUST_DOMAIN, keyset_clock=clock, outward=outward
        ) as bench:
            reports = Reports(
                cast(Any, member), bench.workload, MachineCollateral(mesh), SourceProvenance(), 1000.0, RETAIN_SECONDS
            )
            paths = paths_of(bench, DirectoryTwin(), reports, max_body_bytes=1 << 20)
            await bench.outward.certify(cast(Any, member))
            router = OtherRouter(mesh, bench, port, paths, clock, member)
            async with (
                bench.issuance.recording(),
                https(
                    HttpSettings(listen=f"127.0.0.1:{port}", grpc_listen=""),
                    router.answer,
                    paths.unread_headers,
                    bench.outward.context(PROTOCOLS),
                    room=BodyRoom(1 << 20, 1 << 20),
                    metrics=bench.metrics.connections,
                    drain_seconds=DRAIN_SECONDS,
                ) as router.port,
            ):
                yield router
    finally:
        await kms.close()
        await server.stop(None)


def listing(mesh: AttestedMesh, origin: str, **changes: Any) -> Policy:
    """The first mesh's policy, which lists the second's router and nothing else."""
    provider = {
        "name": NAME,
        "kind": "aci",
        "origin": origin,
        "models": {HERE: THERE},
        "measurements": [mesh.workloads["router"].measurement.to_json()],
        "session_claims": ["gpu_attested"] if changes.pop("gpu", False) else [],
        **changes,
    }
    return policy_listing(mesh, [provider])


def policy_listing(mesh: AttestedMesh, providers: list[Mapping[str, Any]], **members: Any) -> Policy:
    now = int(time.time())
    return read(
        policy_draft(
            "here.test",
            [Ed25519PrivateKey.generate() for _ in range(2)],
            mesh.machine.vendor_root,
            {"router": mesh.workloads["ledger"].measurement},
            not_before=now - 60,
            not_after=now + 86400,
            foreign_providers=providers,
            **members,
        )
    )


@asynccontextmanager
async def first_router(folder: Path, mesh: AttestedMesh, policy: Policy) -> AsyncIterator[RouterBench]:
    """The first router, without a node of its own, when it has verified once what its policy lists."""
    keeper = KeeperTwin(policy)
    credentials = {name: Credentials(KEY, mesh.ca.pem) for name in (p.name for p in policy.foreign_providers)}
    async with router_bench(
        made(folder), nodes=0, policy=keeper, credentials=credentials, collateral=MachineCollateral(mesh)
    ) as bench:
        await bench.foreign.verify()
        yield bench


def asked(**members: Any) -> bytes:
    return prompt(model=HERE, messages=[{"role": "user", "content": WORDS}], **members)


def last_receipt(router: RouterBench, keyset: Keyset | None = None) -> Receipt:
    """The newest receipt, which verifies under the keyset of now if none is given."""
    return verify_receipt(jcs.dumps(dict(router.ledger.of(Kind.RECEIPT)[-1])), keyset or router.workload.keyset)


def error_type(answer: Answer) -> str:
    value: str = json.loads(answer.body)["error"]["type"]
    return value


def assert_refused(router: RouterBench, answer: Answer, reason: str, *, required: bool = True) -> None:
    """Nobody was handed the prompt, and client and receipt say for which reason."""
    assert (answer.started.status, error_type(answer)) == (503, "upstream_verification_failed")
    assert reason in answer.body.decode()
    receipt = last_receipt(router)
    assert receipt.upstream == UpstreamFailed(required, HERE, reason)
    assert receipt.forwarded is None
