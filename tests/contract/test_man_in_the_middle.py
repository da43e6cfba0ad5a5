"""A man in the middle of bootstrap and of replication, with a CA and a software TEE of his own: he obtains nothing, and
his victim's log names him.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from teemesh.kms.v1 import bootstrap_pb2, bootstrap_pb2_grpc, replication_pb2, replication_pb2_grpc

from libs.errors import MeshError
from libs.identity.authority import KmsAuthority
from libs.identity.bootstrap_leaf import make_bootstrap_leaf
from libs.identity.certificate import Subject, parse, pem_of
from libs.identity.renewal import Credential, Prover
from libs.rpc.address import parse_address
from libs.rpc.channel import fetch_leaf, open_channel
from libs.rpc.middleware import public_middleware, standard_middleware
from libs.rpc.policies import ANY_ROLE, MethodRule, ServiceBinding
from libs.rpc.server import serving
from libs.tee.challenge import Challenge
from libs.tee.dstack import Guest
from libs.tee.evidence import Evidence
from services.devtee.machine import Machine
from services.kms.bootstrap import bootstrap_binding
from services.kms.issuance import ISSUANCE
from services.kms.joining import own_subject, receive_root
from services.kms.replication import PURPOSE, replication_binding
from tests.contract.test_kms_replication import SECOND, Newcomer, newcomer, order
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.refusals import refusal
from tests.fakes.running_kms import RunningKms, bootstrap_listener, running_kms
from tests.fakes.small_mesh import RoleGate
from tests.unit.libs.identity.test_authority import Request
from tests.unit.libs.identity.test_peers import EVIDENCE

_BOOTSTRAP = f"kms-bootstrap.{TRUST_DOMAIN}"


@dataclass(slots=True)
class Loot:
    """Everything that the man was told or given, by the name of the call."""

    calls: list[str] = field(default_factory=list)
    wire: bytearray = field(default_factory=bytearray)


@pytest.fixture
def theirs() -> Iterator[JoinedMesh]:
    """The man's own mesh: the same code and trust domain, his operators, his software TEE, his CA."""
    with tempfile.TemporaryDirectory(prefix="man") as folder:
        yield JoinedMesh(Path(folder), Machine.create(int(time.time())))


@pytest.fixture
async def running(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[RunningKms]:
    async with running_kms(mesh, kms) as kms_service:
        yield kms_service


class BootstrapMan(bootstrap_pb2_grpc.KmsBootstrapServiceServicer):
    """Passes every question on to the real KMS; what he answers about himself he may make up."""

    def __init__(self, kms: bootstrap_pb2_grpc.KmsBootstrapServiceStub, loot: Loot) -> None:
        self._kms = kms
        self._loot = loot
        self.prover: Prover | None = None
        """His own TEE, if he answers with its evidence."""
        self.ca_certificate: bytes | None = None
        """The CA that he offers, if it is not the real one."""
        self.spki = b""
        """Of his leaf."""

    async def GetKmsEvidence(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._loot.calls.append("GetKmsEvidence")
        answer = await self._kms.GetKmsEvidence(request, timeout=10)
        document = answer.document
        if self.prover is not None:
            document = (await self.prover.prove(Challenge.decode(request.challenge), self.spki)).document
        return bootstrap_pb2.GetKmsEvidenceResponse(
            document=document, ca_certificate=self.ca_certificate or answer.ca_certificate
        )

    async def CreateIssuanceChallenge(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._loot.calls.append("CreateIssuanceChallenge")
        return await self._kms.CreateIssuanceChallenge(request, timeout=10)

    async def CreateOperatorChallenge(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._loot.calls.append("CreateOperatorChallenge")
        return await self._kms.CreateOperatorChallenge(request, timeout=10)

    async def IssueCertificate(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._loot.calls.append("IssueCertificate")
        return await self._kms.IssueCertificate(request, timeout=10)

    async def IssueOperatorCertificate(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._loot.calls.append("IssueOperatorCertificate")
        return await self._kms.IssueOperatorCertificate(request, timeout=10)


@dataclass(frozen=True, slots=True)
class BootstrapMiddle:
    man: BootstrapMan
    loot: Loot
    target: str


@asynccontextmanager
async def bootstrap_man(kms_address: str) -> AsyncIterator[BootstrapMiddle]:
    loot = Loot()
    real = await fetch_leaf(kms_address, server_name=_BOOTSTRAP, timeout=10)
    own = make_bootstrap_leaf("kms", TRUST_DOMAIN)
    async with open_channel(kms_address, root_pem=pem_of(real), server_name=_BOOTSTRAP) as channel:
        man = BootstrapMan(bootstrap_pb2_grpc.KmsBootstrapServiceStub(channel), loot)
        man.spki = own.spki
        binding: ServiceBinding = bootstrap_binding(man)  # type: ignore[arg-type]  # The same four methods.
        middleware = public_middleware(binding.methods)
        async with serving("127.0.0.1:0", own.credentials, [binding], middleware, drain_seconds=0) as listening:
            yield BootstrapMiddle(man, loot, f"127.0.0.1:{listening.port}")


def named(logs: list[Any], address: str) -> Any:
    """What the victim's log says of who answered at the address; it says it once."""
    (line,) = [line for line in logs if line["event"] == "refused who answered" and line["address"] == address]
    assert line["log_level"] == "warning"
    return line


@pytest.mark.parametrize(
    ("shows", "reason"),
    [
        ("the real evidence", "SPKI_MISMATCH"),
        ("the real evidence and his own CA", "SPKI_MISMATCH"),
        ("evidence of his own TEE and his own CA", "VENDOR_ROOT_NOT_TRUSTED"),
        ("evidence of his own TEE and the real CA", "VENDOR_ROOT_NOT_TRUSTED"),
    ],
)
async def test_a_man_at_the_bootstrap_listener_obtains_nothing_and_is_named(
    mesh: JoinedMesh, running: RunningKms, theirs: JoinedMesh, shows: str, reason: str
) -> None:
    their_ca = theirs.kms(root=bytes(32)).ca
    offered = their_ca if "his own CA" in shows else running.core.ca
    claims = {"role": "kms", "ca_spki_sha256": offered.spki_sha256.hex()}
    request = Request(mesh)
    entries = len(running.log.outbox)
    async with (
        theirs.guest(theirs.tds["kms"]) as socket,
        Guest(socket) as guest,
        bootstrap_man(running.bootstrap) as middle,
    ):
        middle.man.ca_certificate = offered.certificate
        if "his own TEE" in shows:
            middle.man.prover = Prover(guest, theirs.collateral, claims)
        leaf = await fetch_leaf(middle.target, server_name=_BOOTSTRAP, timeout=10)
        with capture_logs() as logs, pytest.raises(MeshError) as error:
            await KmsAuthority((middle.target,), TRUST_DOMAIN).issue(request, mesh.keeper("victim").current)
    assert error.value.reason == reason
    line = named(logs, middle.target)
    assert (line["reason"], line["leaf_sha256"]) == (reason, sha256(leaf).hexdigest())
    # He was asked who he is, and then nothing more: no request to take over, and none that the KMS got from him.
    assert middle.loot.calls == ["GetKmsEvidence"]
    assert request.proved == 0
    assert len(running.log.outbox) == entries


@asynccontextmanager
async def wiretap(target: str) -> AsyncIterator[tuple[str, Loot]]:
    """A way to `target` that passes bytes on as they are, and keeps them."""
    address, loot = parse_address(target), Loot()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                loot.wire += data
                writer.write(data)
        writer.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(address.host, address.port)
        await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))

    async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", loot


async def test_a_man_who_passes_a_bootstrap_on_reads_nothing_of_it(mesh: JoinedMesh, kms: KmsCore) -> None:
    request = Request(mesh)
    async with bootstrap_listener(mesh, kms) as address, wiretap(address) as (tapped, loot):
        issued = await KmsAuthority((tapped,), TRUST_DOMAIN).issue(request, mesh.keeper("victim").current)
    assert len(loot.wire) > len(issued.certificate)
    for secret in (request.csr, request.spki, issued.certificate, kms.ca.certificate, b"app_compose", b"mesh CA"):
        assert secret not in loot.wire


class ReplicationMan(replication_pb2_grpc.KmsReplicationServiceServicer, evidence_pb2_grpc.EvidenceServiceServicer):
    """Gives out a document as his own evidence, accepts everybody's, and waits for a newcomer to ask for a root."""

    def __init__(self, document: bytes, loot: Loot) -> None:
        self._document = document
        self._loot = loot

    async def GetEvidence(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._loot.calls.append("GetEvidence")
        return evidence_pb2.GetEvidenceResponse(document=self._document)

    async def PresentEvidence(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._loot.calls.append("PresentEvidence")
        return evidence_pb2.PresentEvidenceResponse(lease_until_ms=2**52)

    async def WatchRenewals(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._loot.calls.append("WatchRenewals")
        yield evidence_pb2.WatchRenewalsResponse()

    async def BeginJoin(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._loot.calls.append("BeginJoin")
        return replication_pb2.BeginJoinResponse()

    async def FinishJoin(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._loot.calls.append("FinishJoin")
        return replication_pb2.FinishJoinResponse()


@asynccontextmanager
async def replication_man(shown: Credential, client_ca: bytes) -> AsyncIterator[tuple[str, Loot]]:
    loot = Loot()
    man = ReplicationMan(shown.evidence.document, loot)
    rule = MethodRule(roles=ANY_ROLE, lease=False)
    exchange = ServiceBinding(
        EVIDENCE,
        lambda server: evidence_pb2_grpc.add_EvidenceServiceServicer_to_server(man, server),
        {f"/{EVIDENCE}/{call}": rule for call in ("GetEvidence", "PresentEvidence", "WatchRenewals")},
    )
    giving: ServiceBinding = replication_binding(man)  # type: ignore[arg-type]  # The same two methods.
    credentials = grpc.ssl_server_credentials(
        [(shown.key_pem, shown.certificate.pem)], client_ca, require_client_auth=True
    )
    middleware = standard_middleware(RoleGate(), {**exchange.methods, **giving.methods})
    async with serving("127.0.0.1:0", credentials, [exchange, giving], middleware, drain_seconds=0) as listening:
        yield f"127.0.0.1:{listening.port}", loot


async def refused(mesh: JoinedMesh, second: Newcomer, target: str) -> str:
    """The reason with which a newcomer that operators ordered refuses who would give it the root."""
    given = order(mesh, own_subject(second.member)).document
    with pytest.raises(MeshError) as error:
        await receive_root(second.member, second.prover, second.receiver, target, given)
    return error.value.reason


def certified(kms: KmsCore, key: ec.EllipticCurvePrivateKey, evidence: Evidence) -> Credential:
    subject = Subject(TRUST_DOMAIN, "kms", "1", evidence.digest)
    return Credential(key, parse(kms.ca.issue_svid(subject, key.public_key(), time.time())), evidence)


async def test_a_man_at_replication_with_a_ca_of_his_own_is_not_asked_and_is_named(
    mesh: JoinedMesh, running: RunningKms, theirs: JoinedMesh
) -> None:
    his = theirs.kms(root=bytes(32))
    key = ec.generate_private_key(ec.SECP256R1())
    shown = certified(his, key, theirs.evidence("kms", his.challenges.issue(ISSUANCE), key))
    async with newcomer(mesh, running) as second, replication_man(shown, running.member.ca_pem) as (target, loot):
        with capture_logs() as logs:
            assert await refused(mesh, second, target) == "PEER_UNREACHABLE"
    line = named(logs, target)
    assert line["reason"] == "PEER_UNREACHABLE"
    assert line["claims_to_be"] == f"spiffe://{TRUST_DOMAIN}/kms/1"
    assert line["leaf_sha256"] == sha256(shown.certificate.der).hexdigest()
    assert loot.calls == []


@pytest.mark.parametrize(
    ("shows", "reason"),
    [("evidence of his own TEE", "VENDOR_ROOT_NOT_TRUSTED"), ("the real evidence", "SPKI_MISMATCH")],
)
async def test_a_man_at_replication_whom_the_mesh_ca_certified_is_not_asked_either_and_is_named(
    mesh: JoinedMesh, running: RunningKms, theirs: JoinedMesh, shows: str, reason: str
) -> None:
    """Even a CA that was deceived does not help him: the evidence is about another key, or under another root."""
    key = ec.generate_private_key(ec.SECP256R1())
    evidence = running.member.identity.current.evidence
    if "his own TEE" in shows:
        evidence = theirs.evidence("kms", running.core.challenges.issue(ISSUANCE), key)
    shown = certified(running.core, key, evidence)
    async with newcomer(mesh, running) as second, replication_man(shown, running.member.ca_pem) as (target, loot):
        with capture_logs() as logs:
            assert await refused(mesh, second, target) == reason
    line = named(logs, target)
    assert (line["reason"], line["claims_to_be"]) == (reason, shown.certificate.spiffe_id)
    assert line["leaf_sha256"] == sha256(shown.certificate.der).hexdigest()
    assert loot.calls == ["GetEvidence"]


async def test_a_man_between_a_newcomer_and_the_kms_is_given_no_root_and_is_named(
    mesh: JoinedMesh, running: RunningKms
) -> None:
    """He has a connection of his own to the KMS, as another instance, and the newcomer's evidence for its challenge."""
    async with (
        newcomer(mesh, running) as second,
        mesh.member("kms", running.core, instance="3") as man,
    ):
        channel = await man.peer("kms", running.target).channel(10)
        stub = replication_pb2_grpc.KmsReplicationServiceStub(channel)
        own = Challenge.unsigned(issuer=SECOND, purpose=PURPOSE, now=int(time.time()))
        shown = running.member.identity.current.certificate.spki_sha256
        asked = replication_pb2.BeginJoinRequest(challenge=own.encode(), spki_sha256=shown)
        begun = await stub.BeginJoin(asked, timeout=10)
        document = await second.evidence(Challenge.decode(begun.challenge))
        given = order(mesh, own_subject(second.member)).document
        request = replication_pb2.FinishJoinRequest(document=document, signed_order=given)
        with capture_logs() as logs:
            assert await refusal(stub.FinishJoin(request, timeout=10)) == "SPKI_MISMATCH"
        (line,) = [line for line in logs if line["event"] == "a join was refused"]
        assert (line["peer"], line["reason"]) == (man.spiffe_id, "SPKI_MISMATCH")
        assert line["leaf_sha256"] == sha256(man.identity.current.certificate.der).hexdigest()
    (said,) = [body for _, body in running.log.outbox if body.get("decision") == "refused"]
    assert (said["name"], said["spiffe_id"], said["reason"]) == ("root", man.spiffe_id, "SPKI_MISMATCH")


async def test_a_man_who_passes_a_replication_on_reads_nothing_of_it(mesh: JoinedMesh, running: RunningKms) -> None:
    async with newcomer(mesh, running) as second, wiretap(running.target) as (tapped, loot):
        given = order(mesh, own_subject(second.member)).document
        root = await receive_root(second.member, second.prover, second.receiver, tapped, given)
    assert root.secret == mesh.root
    assert len(loot.wire) > len(given)
    current = second.member.identity.current
    for secret in (mesh.root, given, current.certificate.der, current.evidence.document, second.receiver.public):
        assert secret not in loot.wire
