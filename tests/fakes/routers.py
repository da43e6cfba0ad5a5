"""A router's exchanges among behaving twins: nodes over gRPC, a registry, a ledger that can fall silent."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import grpc
import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.inference.v1 import inference_pb2, inference_pb2_grpc, whole_answer_pb2, whole_answer_pb2_grpc
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs import jcs
from libs.aci import endpoints, whole_answers
from libs.aci import receipt as receipts
from libs.aci.encoding import digest
from libs.aci.endpoints import Endpoint
from libs.aci.receipt import Receipt
from libs.aci.receipt_events import Aborted, Generated, RequestReceived, ResponseReturned
from libs.errors import Code, MeshError
from libs.identity.collateral import CollateralSource
from libs.identity.freshness import PolicyStale
from libs.identity.lease import Lease
from libs.identity.peers import PeerUnavailable
from libs.policy.constraints import VERIFIED_ONLY, Constraints
from libs.policy.document import Policy
from libs.policy.foreign import ForeignProvider
from libs.policy.revoked import NOTHING_REVOKED, Revoked
from libs.rpc.errors import STATUS_DETAILS_KEY, status_of
from libs.transparency.leaf import Kind
from services.node.shares import TenantShares, TenantShareTaken
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
from tests.fakes.leases import MODEL, WEIGHTS, node_lease
from tests.fakes.ledgers import TENANT, LedgerTwin

CHAT = endpoints.CHAT.path
PATIENCE_SECONDS = 20.0

BUFFERED = (b'{"id":"chatcmpl-1","choi', b'ces":[{"finish_reason":"stop","message":{"content":"yes"}}]}')
STREAMED = (
    b'data: {"id":"chatcmpl-2","choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n',
    b'data: {"id":"chatcmpl-2","choices":[{"delta":{"content":"b"},"finish_reason":null}]}\n\n',
    b'data: {"id":"chatcmpl-2","choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
)


class SessionUnknown(MeshError):
    code = Code.NOT_FOUND
    reason = "SESSION_UNKNOWN"


class AnswerTooLarge(MeshError):
    code = Code.RESOURCE_EXHAUSTED
    reason = whole_answers.TOO_LARGE


class NodeTwin(inference_pb2_grpc.InferenceServiceServicer, whole_answer_pb2_grpc.WholeAnswerServiceServicer):
    """One verified node. It answers what it is told, and may refuse, wait, break off or forge its receipt."""

    def __init__(
        self, instance: str, offered: Collection[Endpoint] = endpoints.DEFINED, *, gives_whole_answers: bool = False
    ) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.lease = node_lease(
            instance,
            more_claims={
                "receipt_key": self.key.public_key().public_bytes_raw().hex(),
                "engine_args_sha256": "00" * 32,
                "endpoints": endpoints.paths(offered),
                **({whole_answers.CLAIM: True} if gives_whole_answers else {}),
            },
        )
        self.status = 200
        self.content_type = "application/json"
        self.chunks: Sequence[bytes] = BUFFERED
        self.refuses = False
        self.refuses_as_too_large = False
        self.refuses_as_too_slow = False
        self.shares = TenantShares(0)
        """What each tenant may have here at once; 0: as much as comes."""
        self.breaks_at: int | None = None
        self.waits_at: int | None = None
        self.waits_before_head = False
        self.silent_seconds = 0.0
        """How long it gives nothing before it sends an empty chunk."""
        self.forges = False
        self.said: Mapping[str, Any] = {}
        """What its receipt says instead of what it would: body, endpoint, model, receipt_id."""
        self.generated: Generated | None = None
        """What its receipt says that its engine did."""
        self.meanwhile: Callable[[], None] | None = None
        """What happens once it has a prompt."""
        self.goes_on: asyncio.Event | None = None
        """Until when it holds back its answers, while it has so many."""
        self.running = 0
        self.most_running = 0
        self.requests: list[inference_pb2.InferRequest] = []
        self.asked_whole = 0
        """How many of them were to be answered in one message."""
        self.omits: Literal["head", "conclusion"] | None = None
        """What is missing in one message."""
        self.refuses_as_too_long = False
        self.waiting = asyncio.Event()
        self.go_on = asyncio.Event()
        """Set by a test: it waits no longer."""
        self.left = asyncio.Event()
        self.target = ""

    def stream(self, *chunks: bytes) -> None:
        self.content_type = "text/event-stream"
        self.chunks = chunks or STREAMED

    async def Infer(self, request: Any, context: Any) -> AsyncIterator[inference_pb2.InferResponse]:  # noqa: N802
        try:
            with self.shares.held(request.tenant_id):
                async with aclosing(self._infer(request, context)) as parts:
                    async for part in parts:
                        yield part
        except TenantShareTaken as error:
            details = ((STATUS_DETAILS_KEY, status_of(error).SerializeToString()),)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error), details)

    async def _infer(self, request: Any, context: Any) -> AsyncGenerator[inference_pb2.InferResponse, None]:
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        if self.meanwhile is not None:
            self.meanwhile()
        try:
            if self.goes_on is not None:
                await self.goes_on.wait()
            if self.refuses:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
            if self.refuses_as_too_slow:
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no time is left")
            if self.refuses_as_too_large:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large")
            if self.waits_before_head:
                await self._wait()
            yield inference_pb2.InferResponse(
                head=inference_pb2.Head(status=self.status, content_type=self.content_type)
            )
            for number, chunk in enumerate([*self.chunks, None]):
                if self.breaks_at == number:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the engine is gone")
                if self.waits_at == number:
                    await self._wait()
                if chunk == b"":
                    await self._be_silent()
                if chunk is not None:
                    yield inference_pb2.InferResponse(chunk=chunk)
            receipt = self.receipt(request.body, request.endpoint)
            yield inference_pb2.InferResponse(conclusion=inference_pb2.Conclusion(receipt=receipt))
        finally:
            self.running -= 1
            self.left.set()

    def add_to(self, server: grpc.aio.Server) -> None:
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, server)
        whole_answer_pb2_grpc.add_WholeAnswerServiceServicer_to_server(self, server)

    async def InferWhole(self, request: Any, context: Any) -> whole_answer_pb2.InferWholeResponse:  # noqa: N802
        self.asked_whole += 1
        answer = whole_answer_pb2.InferWholeResponse()
        async with aclosing(cast(AsyncGenerator[Any, None], self.Infer(request.request, context))) as parts:
            async for message in parts:
                match message.WhichOneof("part"):
                    case "head":
                        answer.head.MergeFrom(message.head)
                    case "chunk":
                        answer.body += message.chunk
                    case _:
                        answer.conclusion.MergeFrom(message.conclusion)
        if self.refuses_as_too_long:
            status = status_of(AnswerTooLarge("too long"))
            details = ((STATUS_DETAILS_KEY, status.SerializeToString()),)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "", details)
        if self.omits is not None:
            answer.ClearField(self.omits)
        return answer

    async def ListModels(self, request: Any, context: Any) -> inference_pb2.ListModelsResponse:  # noqa: N802
        return inference_pb2.ListModelsResponse()

    def receipt(self, body: bytes, endpoint: str = CHAT) -> bytes:
        returned = digest(b"other" if self.forges else b"".join(self.chunks))
        unsigned = Receipt(
            receipt_id=self.said.get("receipt_id", "rcpt-node"),
            chat_id=None,
            model=self.said.get("model", MODEL),
            workload_keyset_digest=digest(b"node"),
            endpoint=self.said.get("endpoint", endpoint),
            method="POST",
            served_at=1,
            events=(
                RequestReceived(digest(self.said.get("body", body))),
                *(() if self.generated is None else (self.generated,)),
                ResponseReturned(returned),
            ),
            key_id="node-receipt",
        )
        return receipts.sign(unsigned, self.key)

    def provider(self, endpoint: str | None = None, **changes: Any) -> registry_pb2.Provider:
        """What the registry says of it."""
        endpoint = endpoint or self.target
        provider = registry_pb2.Provider(
            spiffe_id=self.lease.certificate.spiffe_id,
            endpoint=endpoint,
            models=[registry_pb2.Model(id=MODEL, weights_sha256=bytes.fromhex(WEIGHTS))],
            spki_sha256=self.lease.certificate.spki_sha256,
            session_id=bytes.fromhex(draft_session(self.lease, endpoint).session_id),
            lease_until_ms=int(self.lease.until * 1000),
            load=registry_pb2.Load(capacity=4),
        )
        provider.MergeFrom(registry_pb2.Provider(**changes))
        return provider

    async def _be_silent(self) -> None:
        over = asyncio.Event()
        asyncio.get_running_loop().call_later(self.silent_seconds, over.set)
        await over.wait()

    async def _wait(self) -> None:
        self.waiting.set()
        await self.go_on.wait()


@dataclass(frozen=True, slots=True)
class LinkTwin:
    """A connection to one key of a peer."""

    channel: grpc.aio.Channel
    lease: Lease


class PeerTwin:
    """An appraised peer: its lease, and a channel while it can be reached."""

    def __init__(self, target: str, lease: Lease | None) -> None:
        self.known = lease
        self.reachable = True
        self.renewed: Lease | None = None
        self.keeps_old_links = False
        self.refusal: str | None = None
        self.meanwhile: Callable[[], None] | None = None
        """What happens while it is being reached."""
        self._channel = grpc.aio.insecure_channel(target)

    @property
    def lease(self) -> Lease:
        return cast(Lease, self.known)

    def is_live(self, link: LinkTwin) -> bool:
        return self.known is not None and (link.lease is self.known or self.keeps_old_links)

    def is_newest(self, link: LinkTwin) -> bool:
        return link.lease is self.known

    async def link(self, timeout: float, preferred: LinkTwin | None = None) -> LinkTwin:
        if self.meanwhile is not None:
            self.meanwhile()
        if not self.reachable:
            raise PeerUnavailable("no answer")
        if self.renewed is not None:
            self.known = self.renewed
        if preferred is not None and self.is_live(preferred):
            return preferred
        return LinkTwin(self._channel, self.lease)

    async def channel(self, timeout: float) -> grpc.aio.Channel:
        return (await self.link(timeout)).channel

    async def close(self) -> None:
        await self._channel.close(None)


@dataclass(slots=True)
class PolicyTwin:
    version: int = 3
    digest: bytes = b"\x03" * 32
    models: Mapping[str, frozenset[str]] = field(default_factory=lambda: {MODEL: frozenset({WEIGHTS})})
    fresh: bool = True
    revoked: Revoked = NOTHING_REVOKED
    foreign_providers: tuple[ForeignProvider, ...] = ()
    constraints: Constraints = VERIFIED_ONLY

    @property
    def current(self) -> PolicyTwin:
        return self

    def require_fresh(self) -> PolicyTwin:
        if not self.fresh:
            raise PolicyStale("no policy statement")
        return self


class KeeperTwin:
    """A policy that was read, in force until another is."""

    def __init__(self, policy: Policy) -> None:
        self.current = policy
        self._advanced = asyncio.Event()

    def require_fresh(self) -> Policy:
        return self.current

    def enact(self, policy: Policy) -> None:
        self.current = policy
        advanced, self._advanced = self._advanced, asyncio.Event()
        advanced.set()

    async def advanced(self) -> Policy:
        await self._advanced.wait()
        return self.current


class MemberTwin:
    """A router that has joined: its policy, and a peer for each address."""

    def __init__(self, policy: KeeperTwin | None = None) -> None:
        self.policy: Any = PolicyTwin() if policy is None else policy
        self.peers: dict[str, PeerTwin] = {}

    def peer(self, role: str, target: str, *, answer_bytes: int = 0) -> PeerTwin:
        if target not in self.peers:
            self.peers[target] = PeerTwin("127.0.0.1:1", None)
            self.peers[target].reachable = False
        return self.peers[target]


class RegistryTwin(registry_pb2_grpc.ProviderRegistryServiceServicer):
    """Holds sessions; whatever it lists is the test's word."""

    def __init__(self) -> None:
        self.sessions: dict[bytes, bytes] = {}
        self.events: asyncio.Queue[registry_pb2.WatchResponse] = asyncio.Queue()

    async def GetSession(self, request: Any, context: Any) -> registry_pb2.GetSessionResponse:  # noqa: N802
        document = self.sessions.get(request.session_id)
        if document is None:
            status = status_of(SessionUnknown("no session of that id"))
            await context.abort(grpc.StatusCode.NOT_FOUND, "", ((STATUS_DETAILS_KEY, status.SerializeToString()),))
        return registry_pb2.GetSessionResponse(document=document or b"")

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[registry_pb2.WatchResponse]:  # noqa: N802
        while True:
            yield await self.events.get()


def _registry() -> RegistryTwin:
    return RegistryTwin()  # type: ignore[abstract]  # The other methods stay unimplemented.


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
    member, registry, ledger = MemberTwin(policy), _registry(), LedgerTwin()
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
