"""A router's exchanges among behaving twins: nodes over gRPC, a registry, a ledger that can fall silent."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs import jcs
from libs.aci import endpoints
from libs.aci import receipt as receipts
from libs.aci.endpoints import Endpoint
from libs.aci.receipt import Receipt
from libs.aci.receipt_events import Aborted
from libs.identity.collateral import CollateralSource
from libs.identity.lease import Lease
from libs.transparency.leaf import Kind
from services.registry.sessions import draft_session
from services.router.admission.limits import Gates
from services.router.admission.quota_file import QuotaFile
from services.router.admission.quotas import Quotas
from services.router.admission.tenants import Tenant
from services.router.admission.usage import Usage
from services.router.e2ee.opening import Opening
from services.router.e2ee.window import AcceptanceWindow
from services.router.exchange.course import Request, Started
from services.router.exchange.ends import End
from services.router.exchange.running import Exchanges
from services.router.metrics import Metrics
from services.router.proof.issuance import Issuance
from services.router.proof.put_off import MOST_PUT_OFF
from services.router.proof.store import ReceiptStore, open_receipt_store
from services.router.proof.usage import UsageCopies
from services.router.reading import Reading
from services.router.routing.foreign.access import Credentials
from services.router.routing.foreign.adapters import Adapters
from services.router.routing.foreign.providers import ForeignProviders
from services.router.routing.foreign.record import SessionRecord
from services.router.routing.routes import Routes
from services.router.routing.sessions import Sessions
from services.router.routing.settings import RoutingSettings
from services.router.routing.upstreams import Upstreams
from services.router.workload.outward import Outward
from services.router.workload.settings import DAY_SECONDS
from services.router.workload.workload import Workload
from tests.fakes.leases import MODEL
from tests.fakes.ledgers import TENANT, LedgerTwin
from tests.fakes.nodes import NodeTwin
from tests.fakes.peers import MemberTwin, PeerTwin
from tests.fakes.policies import KeeperTwin
from tests.fakes.registry_twin import RegistryTwin, registry_twin

CHAT = endpoints.CHAT.path
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got."""

    started: Started
    parts: tuple[bytes, ...]

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)


@dataclass(slots=True)
class RouterBench:
    """One router's exchanges, and everything around them."""

    member: MemberTwin
    registry: RegistryTwin
    registry_peer: PeerTwin
    nodes: list[NodeTwin]
    servers: list[grpc.aio.Server]
    """The nodes'."""
    upstreams: Upstreams
    foreign: ForeignProviders
    ledger: LedgerTwin
    sessions: Sessions
    store: ReceiptStore
    outward: Outward
    workload: Workload
    issuance: Issuance
    exchanges: Exchanges
    metrics: Metrics
    gates: Gates
    usage: Usage
    quotas: Quotas
    tenant: Tenant = TENANT
    """Whose requests are run."""

    def request(
        self,
        body: bytes,
        seconds: float = 60.0,
        sealing: Mapping[str, str] | None = None,
        endpoint: Endpoint = endpoints.CHAT,
    ) -> Request:
        deadline = asyncio.get_running_loop().time() + seconds
        return Request(
            endpoint, body, self.tenant, "req_1", deadline, lambda: End.CLIENT_DISCONNECTED, dict(sealing or {})
        )

    async def run(
        self,
        body: bytes,
        seconds: float = 60.0,
        sealing: Mapping[str, str] | None = None,
        keyset_digest: str | None = None,
        endpoint: Endpoint = endpoints.CHAT,
    ) -> Answer:
        """Run an exchange to its end. `sealing`: the headers of a request that is encrypted."""
        request = replace(self.request(body, seconds, sealing, endpoint), keyset_digest=keyset_digest)
        started: Started | None = None
        parts: list[bytes] = []
        async with (
            asyncio.timeout(PATIENCE_SECONDS),
            aclosing(self.exchanges.run(request)) as exchange,
        ):
            async for part in exchange:
                if isinstance(part, Started):
                    assert started is None, "a response begins once"
                    started = part
                else:
                    assert started is not None, "the head comes first"
                    parts.append(part)
        assert started is not None
        return Answer(started, tuple(parts))

    def peer_of(self, node: NodeTwin) -> PeerTwin:
        return self.member.peers[node.target]

    async def logged(self) -> Mapping[str, Any]:
        """Wait for the next entry."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.ledger.logged.get()

    def only_receipt(self) -> Receipt:
        """The one receipt that was written; more or none fails."""
        (document,) = self.ledger.of(Kind.RECEIPT)
        return receipts.verify_receipt(jcs.dumps(dict(document)), self.workload.keyset)

    def snapshot(self, *providers: registry_pb2.Provider) -> registry_pb2.WatchResponse:
        return registry_pb2.WatchResponse(snapshot=registry_pb2.Snapshot(providers=providers))

    def publish_session(self, lease: Lease, endpoint: str) -> bytes:
        session = draft_session(lease, endpoint)
        self.registry.sessions[bytes.fromhex(session.session_id)] = session.document
        return bytes.fromhex(session.session_id)


@asynccontextmanager
async def router_bench(
    folder: Path,
    *,
    nodes: int = 1,
    offered: Collection[Endpoint] = endpoints.DEFINED,
    whole: bool = False,
    policy: KeeperTwin | None = None,
    credentials: Mapping[str, Credentials] | None = None,
    collateral: CollateralSource | None = None,
    trust_domain: str = "mesh.test",
    keyset_days: int = 7,
    clock: Callable[[], float] = time.time,
    keyset_clock: Callable[[], float] = time.time,
    most_put_off: int = MOST_PUT_OFF,
    routing: RoutingSettings | None = None,
    monotonic: Callable[[], float] = time.monotonic,
    allowances: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
    outward: Outward | None = None,
    window: AcceptanceWindow | None = None,
) -> AsyncIterator[RouterBench]:
    """A router that has verified this many nodes, which give whole answers or do not. `policy`, if not the default, may
    list foreign providers. `keyset_clock` is the one by which keysets end.
    """
    member, registry, ledger = MemberTwin(policy), registry_twin(), LedgerTwin()
    outward = outward or Outward(("localhost",), ("127.0.0.1",))
    workload = Workload(f"spiffe://{trust_domain}/router/one", keyset_days * DAY_SECONDS, outward.listed, keyset_clock)
    metrics = Metrics(lambda: workload.newest.not_after)
    twins = [NodeTwin(f"n{number}", offered, gives_whole_answers=whole) for number in range(nodes)]
    servers: list[grpc.aio.Server] = []

    async def listen(add: Callable[[grpc.aio.Server], None]) -> str:
        server = grpc.aio.server()
        add(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    target = await listen(
        lambda server: registry_pb2_grpc.add_ProviderRegistryServiceServicer_to_server(registry, server)
    )
    registry_peer = PeerTwin(target, None)
    for twin in twins:
        twin.target = await listen(twin.add_to)
        member.peers[twin.target] = PeerTwin(twin.target, twin.lease)
    upstreams = Upstreams(
        cast(Any, member), cast(Any, registry_peer), settings=routing, metrics=metrics.routing, clock=monotonic
    )
    async with Reading() as reading, open_receipt_store(folder / "receipts.sqlite", most_put_off=most_put_off) as store:
        adapters = Adapters(credentials or {}, lambda: cast(CollateralSource, collateral), reading)
        record = SessionRecord(cast(Any, ledger), store.documents)
        foreign = ForeignProviders(member.policy, adapters.of, record, reading)
        gates = Gates(allowances)
        usage = Usage(cast(Any, ledger), ledger.key, UsageCopies(store.usage).keep)
        quotas = Quotas(QuotaFile(folder / "quotas.json"), {}, wall)
        sessions = Sessions(upstreams, foreign)

        async def find_session(session_id: str) -> bytes:
            await ledger.until_copied()
            return await sessions.find(session_id)

        issuance = Issuance(cast(Any, ledger), cast(Any, ledger), store, cast(Any, ledger), find_session)
        opening = Opening(workload, window or AcceptanceWindow(), reading)
        exchanges = Exchanges(
            member.policy,
            workload,
            opening,
            reading,
            Routes(upstreams, foreign),
            issuance,
            5.0,
            metrics,
            gates,
            usage,
            quotas,
            clock,
        )
        bench = RouterBench(
            member,
            registry,
            registry_peer,
            twins,
            servers[1:],
            upstreams,
            foreign,
            ledger,
            sessions,
            store,
            outward,
            workload,
            issuance,
            exchanges,
            metrics,
            gates,
            usage,
            quotas,
        )
        for twin in twins:
            bench.publish_session(twin.lease, twin.target)
        upstreams.take(bench.snapshot(*(twin.provider() for twin in twins)))
        await upstreams.verify()
        try:
            yield bench
        finally:
            for peer in (*member.peers.values(), registry_peer):
                await peer.close()
            for server in servers:
                await server.stop(None)


def prompt(**members: Any) -> bytes:
    return jcs.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **members})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def aborts(receipt: Receipt) -> list[str]:
    return [event.reason for event in receipt.events if isinstance(event, Aborted)]


async def until_waiting(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        await event.wait()
