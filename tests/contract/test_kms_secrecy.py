"""What a KMS releases is nowhere in clear: not on the wire, not inside TLS, not in a log, an error or a traceback."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc.aio
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import bootstrap_pb2 as bootstrap_pb
from teemesh.kms.v1 import bootstrap_pb2_grpc as bootstrap_grpc
from teemesh.kms.v1 import kms_pb2 as pb
from teemesh.kms.v1 import kms_pb2_grpc as pb_grpc

from libs import logs
from libs.identity.authority import proven_kms
from libs.identity.certificate import key_pem, make_csr
from libs.identity.member import Member
from libs.identity.sealed import ReceiverKey, release_info
from libs.policy.orders import JOIN_KMS, Order, SignedOrder
from libs.policy.releases import KeyAlgorithm
from libs.tee.challenge import Challenge
from services.kms.joining import newcomer_prover, own_subject, receive_root
from services.kms.root import Root
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.kms_callers import operator
from tests.fakes.relay import Recording, inside_tls, wire
from tests.fakes.running_kms import RunningKms, running_kms
from tests.fakes.secrets import Secrets, scalar, secrets_of_root

_SECONDS = 10.0
VAULT = "ledger-vault/acme"
KEYS = {
    "ledger-keyring": KeyAlgorithm.AES_256,
    "models/a": KeyAlgorithm.AES_256,
    "agents/claims": KeyAlgorithm.ED25519,
    "environment/agent": KeyAlgorithm.X25519,
}
HOLDERS = {"ledger": ("ledger-keyring", VAULT), "node": ("models/a",), "agent": ("agents/claims", "environment/agent")}


@pytest.fixture
async def running(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[RunningKms]:
    async with running_kms(mesh, kms) as kms_service:
        yield kms_service


@pytest.fixture
def service_log() -> Iterator[io.StringIO]:
    """This process's log as a service writes it; a test goes on where a process would have ended."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    with contextlib.redirect_stderr(io.StringIO()) as written:
        logs.configure("kms", "1", json=True)
        yield written
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("httpx").setLevel(logging.NOTSET)


def secrets_of(mesh: JoinedMesh, running: RunningKms) -> Secrets:
    """Everything that the KMS knows and nobody else may read."""
    month = running.keys.book.newest(VAULT)
    released = {(name, epoch): algorithm for name, algorithm in KEYS.items() for epoch in (1, 2)}
    of_root = secrets_of_root(
        mesh.root,
        {**released, (VAULT, month): KeyAlgorithm.AES_256, ("agents/letters", 1): KeyAlgorithm.P_256},
    )
    return Secrets({**of_root.named, "TLS key": scalar(running.member.identity.current.key)})


class Wiretap:
    """Members that reach the KMS over relays, and all that passed them."""

    def __init__(self, mesh: JoinedMesh, running: RunningKms, stack: AsyncExitStack) -> None:
        self._mesh = mesh
        self._running = running
        self._stack = stack
        self.outside: list[Recording] = []
        self.inside: list[Recording] = []
        self.answers: list[bytes] = []
        """Sealed keys, as they came."""

    async def member(self, role: str, claims: dict[str, Any], instance: str = "1") -> tuple[Member, str]:
        """A member, and the address at which it reaches the KMS."""
        running, enter = self._running, self._stack.enter_async_context
        member = await enter(self._mesh.member(role, running.core, claims=claims, instance=instance))
        near = await enter(wire(running.target))
        ours, theirs = member.identity.current, running.member.identity.current
        within = await enter(inside_tls(near.address, theirs, ours, member.ca_pem))
        far = await enter(wire(within.address))
        self.outside += [near, far]
        self.inside.append(within)
        return member, far.address

    async def release(self, role: str) -> None:
        """Have every key of a role released, and open it."""
        receiver = ReceiverKey()
        member, target = await self.member(role, {"hpke_key": receiver.public.hex(), "models": []})
        stub = pb_grpc.KmsServiceStub(await member.peer("kms", target).channel(_SECONDS))
        for name in HOLDERS[role]:
            algorithm = KEYS.get(name, KeyAlgorithm.AES_256)
            wanted = pb.ReleaseKeyRequest(name=name, algorithm=pb.KeyAlgorithm.ValueType(algorithm.number))
            answer = await stub.ReleaseKey(wanted, timeout=_SECONDS)
            opened = receiver.open(answer.sealed_key, release_info(name, answer.epoch, member.spiffe_id, algorithm))
            assert opened == self._running.core.keyring.material(name, answer.epoch, algorithm)
            self.answers.append(answer.sealed_key)

    async def join(self) -> None:
        """Receive the root as another instance."""
        receiver = ReceiverKey()
        member, target = await self.member("kms", {"hpke_key": receiver.public.hex()}, "2")
        signed = SignedOrder(Order(TRUST_DOMAIN, JOIN_KMS, own_subject(member), 2**33))
        for signer in self._mesh.operators[:2]:
            signed = signed.signed_by(signer)
        prover = newcomer_prover(member.guest, self._mesh.collateral, receiver)
        root = await receive_root(member, prover, receiver, target, signed.document)
        assert root.secret == self._mesh.root


@asynccontextmanager
async def wiretap(mesh: JoinedMesh, running: RunningKms) -> AsyncIterator[Wiretap]:
    async with AsyncExitStack() as stack:
        yield Wiretap(mesh, running, stack)


async def test_keys_and_root_cross_in_clear_neither_on_the_wire_nor_inside_tls(
    mesh: JoinedMesh, running: RunningKms
) -> None:
    secrets = secrets_of(mesh, running)
    async with wiretap(mesh, running) as tap, operator(running) as ada:
        for role in HOLDERS:
            await tap.release(role)
        await ada.RotateKey(pb.RotateKeyRequest(name="models/a", epoch=2), timeout=_SECONDS)
        await tap.release("node")
        await tap.join()
        outside = b"\n\n".join(recording.everything for recording in tap.outside)
        inside = b"\n\n".join(recording.everything for recording in tap.inside)
    assert len(tap.answers) == 6
    assert all(sealed in inside and sealed not in outside for sealed in tap.answers)  # The tap hears what is said.
    assert secrets.found_in(outside) == []
    assert secrets.found_in(inside) == []


async def test_who_is_certified_learns_no_key_of_the_kms(mesh: JoinedMesh, running: RunningKms) -> None:
    async with wire(running.bootstrap) as tap, proven_kms(tap.address, TRUST_DOMAIN, mesh.keeper("seen").current) as to:
        stub = bootstrap_grpc.KmsBootstrapServiceStub(to.channel)
        offered = await stub.CreateIssuanceChallenge(bootstrap_pb.CreateIssuanceChallengeRequest(), timeout=_SECONDS)
        key = ec.generate_private_key(ec.SECP256R1())
        document = mesh.evidence("router", Challenge.decode(offered.challenge), key).document
        request = bootstrap_pb.IssueCertificateRequest(csr=make_csr(key), document=document, instance="1")
        issued = await stub.IssueCertificate(request, timeout=_SECONDS)
        said = offered.SerializeToString() + issued.SerializeToString() + to.ca_certificate
        secrets = Secrets({**secrets_of(mesh, running).named, "the router's key": scalar(key)})
        assert tap.everything
        assert secrets.found_in(tap.everything + said + document + request.csr) == []


async def test_no_log_line_refusal_or_traceback_holds_a_key(
    mesh: JoinedMesh, running: RunningKms, service_log: io.StringIO
) -> None:
    secrets = secrets_of(mesh, running)
    async with wiretap(mesh, running) as tap:
        for role in HOLDERS:
            await tap.release(role)
        await tap.join()
        receiver = ReceiverKey()
        member, target = await tap.member("agent", {"hpke_key": receiver.public.hex()}, "2")
        stub = pb_grpc.KmsServiceStub(await member.peer("kms", target).channel(_SECONDS))
        told = [await refusal_of(stub, name, algorithm) for name, algorithm in REFUSED]
        running.log.away = True
        told.append(await refusal_of(stub, "agents/claims", KeyAlgorithm.ED25519))
        # The worst that a bug could say: the key itself, in every form.
        running.log.broken = RuntimeError(written_down(secrets))
        told.append(await refusal_of(stub, "agents/claims", KeyAlgorithm.ED25519))
    assert "INTERNAL" in told[-1]
    assert "KEY_NOT_RELEASED" in told[0]
    assert secrets.found_in("".join(told).encode()) == []
    said = service_log.getvalue()
    assert '"event": "key released"' in said
    assert "RuntimeError" in said  # With its traceback, and without its text.
    assert "release.py" in said
    assert secrets.found_in(said.encode()) == []


REFUSED = (
    ("agents/letters", KeyAlgorithm.P_256),
    ("agents/claims", KeyAlgorithm.P_256),
    ("models/a", KeyAlgorithm.AES_256),
    ("Agents", KeyAlgorithm.AES_256),
)


async def refusal_of(stub: pb_grpc.KmsServiceStub, name: str, algorithm: KeyAlgorithm) -> str:
    """Everything that a caller is told with a refusal: code, message, details, metadata."""
    request = pb.ReleaseKeyRequest(name=name, algorithm=pb.KeyAlgorithm.ValueType(algorithm.number))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.ReleaseKey(request, timeout=_SECONDS)
    metadata = [*error.value.initial_metadata(), *error.value.trailing_metadata()]
    return repr(error.value) + "".join(f"{name}={value!r}" for name, value in metadata)


def written_down(secrets: Secrets) -> str:
    return " ".join(form for secret in secrets.named.values() for form in (secret.hex(), repr(secret)))


async def test_what_holds_keys_does_not_show_them(mesh: JoinedMesh, running: RunningKms) -> None:
    core, current = running.core, running.member.identity.current
    holders = (running, core, core.keyring, core.ca, running.keys, running.member, current, Root(mesh.root))
    shown = "".join(f"{holder!r} {holder}" for holder in holders)
    assert secrets_of(mesh, running).found_in(shown.encode()) == []


@pytest.mark.parametrize("before", [b"", b"x", b"xy"])
def test_the_search_finds_a_planted_key_in_every_form(mesh: JoinedMesh, before: bytes) -> None:
    planted = bytes(range(100, 116)) + bytes(range(10, 26))
    secrets = Secrets({"planted": planted, "other": bytes(range(32, 64))})
    for form in (
        planted,
        planted.hex().encode(),
        planted.hex().upper().encode(),
        base64.b64encode(before + planted + b"more"),
        base64.urlsafe_b64encode(before + planted + b"more"),
        base64.encodebytes(before * 20 + planted + b"more"),
        planted.hex(" ").encode(),
        str(int.from_bytes(planted, "big")).encode(),
        repr(list(planted)).encode(),
        repr(planted).encode(),
        json.dumps({"key": repr(planted)}).encode(),
    ):
        assert secrets.found_in(b"something " + form + b" else") == ["planted"]
    assert secrets.found_in(b"something else") == []


def test_the_search_finds_a_private_key_in_pem() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    assert Secrets({"key": scalar(key)}).found_in(b"said: " + key_pem(key)) == ["key"]
