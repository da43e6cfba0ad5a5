"""Channels to peers: only the appraised key answers, and only for as long as it is believed."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.certificate import MeshCertificate, Subject, key_pem, pem_of
from libs.identity.member import Member
from libs.identity.peers import Peer, PeerUnavailable
from libs.identity.renewal import Credential
from libs.policy.revocation import RevocationKind
from libs.rpc.address import parse_address
from libs.rpc.calls import Call, Proceed
from libs.rpc.errors import remote_errors
from libs.rpc.middleware import standard_middleware
from libs.rpc.policies import ANY_ROLE, MethodRule, ServiceBinding
from libs.rpc.server import serving
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore
from tests.fakes.revocations import REASONS, value_of
from tests.fakes.small_mesh import LEDGER, RoleGate, ledger_servicer

EVIDENCE = "teemesh.evidence.v1.EvidenceService"


@dataclass(slots=True)
class Ticker:
    """A tail that says something whenever the test wants it to."""

    ticks: asyncio.Queue[None] = field(default_factory=asyncio.Queue)

    async def tail(self) -> AsyncIterator[ledger_pb2.TailResponse]:
        while True:
            yield ledger_pb2.TailResponse()
            await self.ticks.get()

    @property
    def binding(self) -> ServiceBinding:
        return ServiceBinding(
            LEDGER,
            lambda server: ledger_pb2_grpc.add_LedgerServiceServicer_to_server(ledger_servicer(self.tail), server),
            {f"/{LEDGER}/Tail": MethodRule(roles=frozenset({"router"}), long_lived=True)},
        )


@asynccontextmanager
async def ledger_at(
    mesh: JoinedMesh, kms: KmsCore, ticker: Ticker, listen: str = "127.0.0.1:0"
) -> AsyncIterator[tuple[Member, str]]:
    async with mesh.member("ledger", kms, listen=listen) as member, member.serve([ticker.binding]) as running:
        yield member, f"127.0.0.1:{running.port}"


def tail_on(channel: grpc.aio.Channel) -> Any:
    return ledger_pb2_grpc.LedgerServiceStub(channel).Tail(ledger_pb2.TailRequest())


async def ended(call: Any) -> MeshError:
    with pytest.raises(MeshError) as error, remote_errors():
        await call.read()
    return error.value


async def moved(peer: Peer, before: grpc.aio.Channel) -> grpc.aio.Channel:
    """Wait until new calls get another channel, and return it."""
    async with asyncio.timeout(20):
        while (now := await peer.channel(10)) is before:
            peer.sweep()
            await asyncio.sleep(0.01)
    return now


async def refusal(peer: Peer, timeout: float = 10) -> str:
    with pytest.raises(MeshError) as error:
        await peer.channel(timeout)
    return error.value.reason


@pytest.fixture
async def router(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[Member]:
    async with mesh.member("router", kms) as member:
        yield member


async def test_a_peer_is_appraised_once_and_then_cheap(mesh: JoinedMesh, kms: KmsCore, router: Member) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (ledger, target):
        peer = router.peer("ledger", target)
        with pytest.raises(PeerUnavailable):
            _ = peer.lease
        assert peer.live_lease() is None
        first, second = await asyncio.gather(peer.channel(10), peer.channel(10))
        assert first is second is await peer.channel(10)
        assert peer.lease.certificate.spki == ledger.identity.current.certificate.spki
        assert [evidence.digest for evidence in router.known_evidence()] == [
            router.identity.current.evidence.digest,
            ledger.identity.current.evidence.digest,
        ]
        assert await tail_on(first).read() == ledger_pb2.TailResponse()


async def test_a_restarted_peer_is_appraised_again(mesh: JoinedMesh, kms: KmsCore, router: Member) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (_, target):
        peer = router.peer("ledger", target)
        stale = await peer.channel(10)
        first = peer.lease
    async with ledger_at(mesh, kms, Ticker(), target) as (ledger, _):
        assert (await ended(tail_on(stale))).code is Code.UNAVAILABLE  # The channel believes the first key alone.
        fresh = await peer.channel(10)
        assert fresh is not stale
        assert peer.lease.certificate.spki == ledger.identity.current.certificate.spki != first.certificate.spki
        assert await tail_on(fresh).read() == ledger_pb2.TailResponse()


class Impostor(evidence_pb2_grpc.EvidenceServiceServicer):
    """Shows evidence that is not about its own key, and accepts everybody."""

    def __init__(self, document: bytes) -> None:
        self._document = document

    async def GetEvidence(  # noqa: N802
        self, request: evidence_pb2.GetEvidenceRequest, context: Any
    ) -> evidence_pb2.GetEvidenceResponse:
        return evidence_pb2.GetEvidenceResponse(document=self._document)

    async def PresentEvidence(  # noqa: N802
        self, request: evidence_pb2.PresentEvidenceRequest, context: Any
    ) -> evidence_pb2.PresentEvidenceResponse:
        return evidence_pb2.PresentEvidenceResponse(lease_until_ms=2**52)

    async def WatchRenewals(  # noqa: N802
        self, request: evidence_pb2.WatchRenewalsRequest, context: Any
    ) -> AsyncIterator[evidence_pb2.WatchRenewalsResponse]:
        yield evidence_pb2.WatchRenewalsResponse()


@asynccontextmanager
async def impostor(kms: KmsCore, ledger: Member, listen: str, ticker: Ticker) -> AsyncIterator[None]:
    """A key of its own, in a certificate that the mesh CA signed for a ledger, over the real ledger's evidence."""
    key = ec.generate_private_key(ec.SECP256R1())
    proof = ledger.identity.current.evidence
    der = kms.ca.issue_svid(Subject(TRUST_DOMAIN, "ledger", "1", proof.digest), key.public_key(), time.time())
    credentials = grpc.ssl_server_credentials([(key_pem(key), pem_of(der))], ledger.ca_pem, require_client_auth=True)
    rule = MethodRule(roles=ANY_ROLE, lease=False)
    binding = ServiceBinding(
        EVIDENCE,
        lambda server: evidence_pb2_grpc.add_EvidenceServiceServicer_to_server(Impostor(proof.document), server),
        {f"/{EVIDENCE}/GetEvidence": rule, f"/{EVIDENCE}/PresentEvidence": rule},
    )
    methods = {**binding.methods, **ticker.binding.methods}
    middleware = standard_middleware(RoleGate(), methods)
    async with serving(listen, credentials, [binding, ticker.binding], middleware, drain_seconds=0):
        yield


async def test_another_key_cannot_answer_in_an_appraised_peers_place(
    mesh: JoinedMesh, kms: KmsCore, router: Member
) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (ledger, target):
        peer = router.peer("ledger", target)
        channel = await peer.channel(10)
    async with impostor(kms, ledger, target, Ticker()):
        assert (await ended(tail_on(channel))).code is Code.UNAVAILABLE
        assert await refusal(peer) == "SPKI_MISMATCH"


async def test_a_refused_peer_loses_its_channel_and_everything_on_it(
    mesh: JoinedMesh, kms: KmsCore, router: Member
) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (_, target):
        peer = router.peer("ledger", target)
        call = tail_on(await peer.channel(10))
        router.policy.accept(mesh.successor(router.policy.current))
        assert await call.read() == ledger_pb2.TailResponse()
        router.policy.accept(mesh.successor(router.policy.current, roles=mesh.without("ledger")))
        assert (await ended(call)).code is Code.UNAVAILABLE
        assert await refusal(peer) == "MEASUREMENT_NOT_ALLOWED"


async def test_a_link_that_was_given_up_takes_no_call_while_its_connection_is_still_there(
    mesh: JoinedMesh, kms: KmsCore, router: Member
) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (_, target):
        peer = router.peer("ledger", target)
        link = await peer.link(10)
        assert peer.is_live(link)
        peer.disconnect()
        # Nothing has run since: the connection is closed when something does.
        assert (link.is_ready, peer.is_live(link)) == (True, False)


async def test_an_address_is_forgotten_unless_there_is_a_connection_to_it(
    mesh: JoinedMesh, kms: KmsCore, router: Member
) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (_, target):
        connected, idle = router.peer("ledger", target), router.peer("ledger", "127.0.0.1:9")
        await connected.channel(10)
        assert not router.forget("ledger", target)
        assert router.forget("ledger", "127.0.0.1:9")
        assert router.peer("ledger", target) is connected
        assert router.peer("ledger", "127.0.0.1:9") is not idle


async def test_a_stream_outlives_a_renewal_but_not_its_peers_refusal(
    mesh: JoinedMesh, kms: KmsCore, router: Member
) -> None:
    ticker = Ticker()
    async with ledger_at(mesh, kms, ticker) as (_, target):
        peer = router.peer("ledger", target)
        before = await peer.channel(10)
        call = tail_on(before)
        assert await call.read() == ledger_pb2.TailResponse()
        await router.identity.obtain()
        assert await peer.channel(10) is before  # Until another connection is there, calls go on over this one.
        await moved(peer, before)
        ticker.ticks.put_nowait(None)
        assert await call.read() == ledger_pb2.TailResponse()
        router.policy.accept(mesh.successor(router.policy.current, roles=mesh.without("ledger")))
        assert (await ended(call)).code is Code.UNAVAILABLE


async def test_nothing_on_a_channel_outlives_its_lease(mesh: JoinedMesh, kms: KmsCore, router: Member) -> None:
    clock = Clock()
    async with ledger_at(mesh, kms, Ticker()) as (_, target):
        peer = Peer("ledger", target, router.identity, router.policy, lambda: kms.ca.spki, clock)
        call = tail_on(await peer.channel(10))
        assert await call.read() == ledger_pb2.TailResponse()
        clock.now = peer.lease.until - 1
        peer.sweep()
        assert not call.done()
        clock.now += 1
        peer.sweep()
        assert (await ended(call)).code is Code.UNAVAILABLE
        await peer.close()


async def test_a_server_that_refuses_this_service_says_why(mesh: JoinedMesh, kms: KmsCore, router: Member) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (ledger, target):
        ledger.policy.accept(mesh.successor(ledger.policy.current, roles=mesh.without("router")))
        assert await refusal(router.peer("ledger", target)) == "MEASUREMENT_NOT_ALLOWED"


async def test_a_server_that_forgot_this_service_is_shown_the_evidence_again(
    mesh: JoinedMesh, kms: KmsCore, router: Member
) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (ledger, target), asyncio.timeout(20):
        peer = router.peer("ledger", target)
        call = tail_on(await peer.channel(10))
        await call.read()
        refused = mesh.successor(ledger.policy.current, roles=mesh.without("router"))
        ledger.policy.accept(refused)
        assert (await ended(call)).reason == "EVIDENCE_REQUIRED"
        # The refusal's reason shows as soon as the link that the server forgot is given up.
        while (reason := await _reason_of_a_tail(peer)) == "EVIDENCE_REQUIRED":
            pass
        assert reason not in (None, "EVIDENCE_REQUIRED")
        ledger.policy.accept(mesh.successor(ledger.policy.current))
        assert await _reason_of_a_tail(peer) is None


async def _reason_of_a_tail(peer: Peer) -> str | None:
    """Why the ledger's log cannot be read over this peer now, if it cannot."""
    try:
        with remote_errors():
            await tail_on(await peer.channel(10)).read()
    except MeshError as error:
        return error.reason
    return None


async def test_a_member_of_another_role_is_not_the_peer(mesh: JoinedMesh, kms: KmsCore, router: Member) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (_, target):
        assert await refusal(router.peer("kms", target)) == "PEER_UNREACHABLE"


async def test_a_member_of_another_mesh_is_not_the_peer(mesh: JoinedMesh, router: Member) -> None:
    async with ledger_at(mesh, mesh.kms("other", root=bytes(32)), Ticker()) as (_, target):
        assert await refusal(router.peer("ledger", target)) == "PEER_UNREACHABLE"


async def test_who_is_away_or_silent_is_unavailable(router: Member) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        assert await refusal(router.peer("ledger", target), timeout=0.2) in {"PEER_UNREACHABLE", "PEER_UNAVAILABLE"}
    assert await refusal(router.peer("ledger", target)) == "PEER_UNREACHABLE"


@pytest.mark.parametrize("kind", REASONS)
async def test_the_channel_to_a_revoked_peer_closes_and_its_stream_ends(
    mesh: JoinedMesh, kms: KmsCore, kind: RevocationKind
) -> None:
    async with (
        mesh.member("router", kms) as router,
        ledger_at(mesh, kms, Ticker()) as (_, target),
        asyncio.timeout(20),
    ):
        peer = router.peer("ledger", target)
        call = tail_on(await peer.channel(10))
        assert await call.read() == ledger_pb2.TailResponse()
        router.policy.accept_revocations([mesh.revocation(kind, value_of(kind, peer.lease))])
        assert (await ended(call)).code is Code.UNAVAILABLE
        assert peer.live_lease() is None
        assert peer.refusal == REASONS[kind]
        with pytest.raises(MeshError) as error:
            await peer.channel(10)
        assert error.value.reason == REASONS[kind]


@pytest.mark.parametrize("kind", [RevocationKind.NODE, RevocationKind.MEASUREMENT])
async def test_who_is_revoked_while_it_is_being_connected_to_is_no_peer(
    mesh: JoinedMesh, kms: KmsCore, router: Member, kind: RevocationKind
) -> None:
    """Nothing is there yet that the revocation could close, and the peer chooses how long its answers take."""
    async with mesh.member("ledger", kms) as ledger:
        value = ledger.spiffe_id if kind is RevocationKind.NODE else mesh.tds["ledger"].compose_hash.hex()

        async def revoke_meanwhile(call: Call, proceed: Proceed) -> Any:
            answer = await proceed()
            if call.method == f"/{EVIDENCE}/PresentEvidence":
                router.policy.accept_revocations([mesh.revocation(kind, value)])
            return answer

        async with ledger.serve([Ticker().binding], [revoke_meanwhile]) as running:
            peer = router.peer("ledger", f"127.0.0.1:{running.port}")
            assert await refusal(peer) == REASONS[kind]
            assert peer.live_lease() is None


@pytest.mark.parametrize(
    ("kind", "reason"), [(RevocationKind.KEY, "KEY_REVOKED"), (RevocationKind.NODE, "NODE_REVOKED")]
)
async def test_a_revoked_callers_stream_ends_with_the_reason(
    mesh: JoinedMesh, kms: KmsCore, kind: RevocationKind, reason: str
) -> None:
    async with (
        mesh.member("router", kms) as router,
        ledger_at(mesh, kms, Ticker()) as (ledger, target),
        asyncio.timeout(20),
    ):
        peer = router.peer("ledger", target)
        call = tail_on(await peer.channel(10))
        assert await call.read() == ledger_pb2.TailResponse()
        certificate = router.identity.current.certificate
        value = certificate.spki_sha256.hex() if kind is RevocationKind.KEY else certificate.spiffe_id
        ledger.policy.accept_revocations([mesh.revocation(kind, value)])
        assert (await ended(call)).reason == reason


@asynccontextmanager
async def cuttable(target: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """A way to `target` that passes bytes on until it is cut; connections made afterwards pass again."""
    address = parse_address(target)
    writers: set[asyncio.StreamWriter] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(address.host, address.port)
        both = {writer, there_writer}
        writers.update(both)
        await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))
        writers.difference_update(both)

    def cut() -> None:
        for writer in writers:
            writer.transport.abort()

    async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", cut
        cut()


async def test_a_connection_that_breaks_after_the_peer_renewed_is_a_fresh_one_for_the_next_call(
    mesh: JoinedMesh, kms: KmsCore, router: Member
) -> None:
    """gRPC would try the old pin for ever: the server shows that key no more."""
    async with (
        ledger_at(mesh, kms, Ticker()) as (ledger, target),
        cuttable(target) as (way, cut),
        asyncio.timeout(20),
    ):
        peer = Peer("ledger", way, router.identity, router.policy, lambda: kms.ca.spki)
        before = await peer.channel(10)
        await ledger.identity.obtain()
        cut()
        while before.get_state() is grpc.ChannelConnectivity.READY:
            await before.wait_for_state_change(grpc.ChannelConnectivity.READY)
        fresh = await peer.channel(10)
        assert await tail_on(fresh).read() == ledger_pb2.TailResponse()
        assert peer.lease.certificate == ledger.identity.current.certificate
        await peer.close()


async def test_a_peer_that_renews_between_handshake_and_connection_is_connected_to_at_once(
    mesh: JoinedMesh, kms: KmsCore, router: Member
) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (ledger, target):
        before = ledger.identity.current.certificate

        class RenewingMeanwhile(Peer):
            """The leaf that it takes first is replaced before it is used."""

            async def _take_leaf(self, credential: Credential, timeout: float) -> MeshCertificate:
                leaf = await super()._take_leaf(credential, timeout)
                if leaf == before:
                    await ledger.identity.obtain()
                return leaf

        peer = RenewingMeanwhile("ledger", target, router.identity, router.policy, lambda: kms.ca.spki)
        assert await tail_on(await peer.channel(10)).read() == ledger_pb2.TailResponse()
        assert peer.lease.certificate == ledger.identity.current.certificate != before
        await peer.close()
