"""The ledger as a process of its own. KMS, guest agents and nats-server around it are real; the TEE is software."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import tomli_w
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.ledger.v1 import ledger_pb2_grpc

from libs.events.publish import EventSettings, Publisher, open_publisher
from libs.identity.bootstrap_leaf import make_bootstrap_leaf
from libs.identity.certificate import Subject, key_pem, pem_of
from libs.identity.freshness import PolicyKeeper
from libs.identity.ledger_writer import LedgerWriter
from libs.identity.member import Member
from libs.identity.peers import Peer
from libs.identity.renewal import Prover
from libs.identity.sealed import ReceiverKey
from libs.policy.orders import Order, SignedOrder
from libs.process import tethered
from libs.process.readiness import Readiness, listening
from libs.rpc.channel import open_channel
from libs.rpc.middleware import public_middleware
from libs.rpc.server import serving
from services.attestation.collateral import CollateralCache, Held
from services.attestation.gpu_tokens import GpuTokens
from services.attestation.servicer import CollateralServicer, collateral_binding
from services.kms.bootstrap import KmsBootstrapServicer, bootstrap_binding
from services.kms.currency import Currency
from services.kms.decisions import Decisions
from services.kms.keys import KeyService, open_keys
from services.kms.log_reading import LogReading
from services.kms.logged import Logged
from services.kms.publication import Publication
from services.kms.revocation import Revocations
from services.kms.servicer import KmsServicer, kms_binding
from services.kms.statements import StatementSource
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh
from tests.fakes.ports import free_port
from tests.fakes.running_broker import RunningBroker, running_broker
from tests.mesh.processes import descendants

_ROOT = Path(__file__).parents[4]


class _Collateral:
    """The machine's own vendor statements, behind the attestation service's listener."""

    def __init__(self, mesh: JoinedMesh) -> None:
        self._mesh = mesh

    async def held(self, quote: bytes) -> Held:
        return Held(self._mesh.collateral.current(), _now() + 86400.0)


def _now() -> int:
    return int(time.time())


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The ports of what a ledger needs."""

    kms: int
    bootstrap: int
    attestation: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where one ledger process is, and what it has."""

    instance: str
    target: str
    https: str
    folder: Path
    guest: Path
    data_dir: Path


class LedgerProcess:
    """One ledger process, which may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._config = folder / "ledger.toml"
        self._notify = folder / "ledger.ready"
        self._log = folder / "ledger.log"
        """What it says, of its newest start: a pipe that nobody reads would stop it."""
        self._process: asyncio.subprocess.Process | None = None

    def configure(self, config: Mapping[str, Any]) -> None:
        self._config.write_text(tomli_w.dumps(config))

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(
        self,
        *,
        ready: bool = True,
        command: Sequence[str] = ("-m", "services.ledger"),
        options: Sequence[str] = (),
    ) -> None:
        """Start it; with `ready`, wait until it says that it serves."""
        environment = {**os.environ, "NOTIFY_SOCKET": str(self._notify)}
        with listening(self._notify) as readiness, self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tethered([sys.executable, *command, str(self._config), *options]),
                cwd=_ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )
            if ready:
                await self._until_ready(readiness)

    async def _until_ready(self, readiness: Readiness) -> None:
        assert self._process is not None
        try:
            async with asyncio.timeout(60):
                await readiness.until_ready()
        except TimeoutError as error:
            said = self._log.read_text()[-4000:]
            raise AssertionError(f"it does not serve; its exit status is {self._process.returncode}: {said}") from error

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def child(self, module: str) -> int:
        """The process id of a child of its own."""
        assert self._process is not None
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(self._process.pid)}
        return next(pid for pid, command in commands.items() if module.encode() in command)

    def send(self, number: int) -> None:
        """Send a signal to the process as it runs."""
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self, number: int = signal.SIGKILL) -> int:
        """End it and return its exit status."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.send_signal(number)
        return (await self.ended())[0]

    async def ended(self) -> tuple[int, str]:
        """Wait until it has ended; return its exit status and its last words."""
        assert self._process is not None
        async with asyncio.timeout(60):
            code = await self._process.wait()
        self._process = None
        return code, self._log.read_text()


class LiveMesh:
    """Everything around one ledger process, which may be killed and started again."""

    def __init__(self, mesh: JoinedMesh, kms_reserve_bytes: int = 0) -> None:
        """`kms_reserve_bytes` of the KMS's outbox are for what is essential."""
        mesh.draft["key_releases"].append({"name": "ledger-resume", "roles": ["ledger"]})
        mesh.seed = mesh.sign(mesh.draft)
        self.mesh = mesh
        self.kms = mesh.kms()
        self._kms_reserve_bytes = kms_reserve_bytes
        self.data_dir = mesh.folder / "ledger-data"
        self.target = f"127.0.0.1:{free_port()}"
        self.https = f"127.0.0.1:{free_port()}"
        self.witnesses: list[dict[str, Any]] = []
        """Tables of the ledger's configuration; all of them are the quorum."""
        self.process = LedgerProcess(mesh.folder)
        self.kms_target: str
        """Of the KMS's mesh listener."""
        self.broker: RunningBroker
        self.member: Member
        """The KMS's."""
        self.decisions: Decisions
        self.keys: KeyService
        self.logged: Logged
        """Of the keys that were opened last."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[LiveMesh]:
        """Run what the ledger needs; the ledger itself is the test's to start."""
        async with AsyncExitStack() as stack:
            mesh, kms = self.mesh, self.kms
            self.broker = await stack.enter_async_context(self._broker())
            collateral = collateral_binding(
                CollateralServicer(cast(CollateralCache, _Collateral(mesh)), GpuTokens(None, 1))
            )
            leaf = make_bootstrap_leaf("attestation", TRUST_DOMAIN)
            attestation = await stack.enter_async_context(
                serving("127.0.0.1:0", leaf.credentials, [collateral], public_middleware(collateral.methods))
            )
            log_key = Ed25519PrivateKey.generate()
            claims = {
                "ca_spki_sha256": kms.ca.spki_sha256.hex(),
                "root_epoch": 1,
                "log_key": log_key.public_key().public_bytes_raw().hex(),
            }
            member = await stack.enter_async_context(mesh.member("kms", kms, claims=claims))
            publisher = await stack.enter_async_context(
                self.publisher(member, log_key, reserve_bytes=self._kms_reserve_bytes)
            )
            decisions = Decisions(publisher)
            publication = Publication(kms.policy, decisions)
            self.member, self.decisions = member, decisions
            self.keys, reading_log = self.key_service()
            await self.logged.introduce()
            statements = StatementSource(kms.ca, kms.policy)
            revocations = Revocations(kms.policy, decisions)
            servicer = KmsServicer(kms.ca, kms.policy, statements, publication, revocations, self.keys, decisions)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            reading = tasks.create_task(reading_log.keep())
            stack.callback(reading.cancel)
            inner = await stack.enter_async_context(member.serve([kms_binding(servicer)]))
            leaf = make_bootstrap_leaf("kms", TRUST_DOMAIN)
            prover = Prover(member.guest, mesh.collateral, {"role": "kms", **claims})
            bootstrap = bootstrap_binding(
                KmsBootstrapServicer(prover, leaf.spki, kms.ca, kms.challenges, kms.issuance, decisions)
            )
            outer = await stack.enter_async_context(
                serving("127.0.0.1:0", leaf.credentials, [bootstrap], public_middleware(bootstrap.methods))
            )
            self.kms_target = f"127.0.0.1:{inner.port}"
            await self._configure(stack, Surroundings(inner.port, outer.port, attestation.port))
            try:
                yield self
            finally:
                await self.stop()

    async def stop(self) -> None:
        """End what was started."""
        await self.kill()

    def _broker(self) -> AbstractAsyncContextManager[RunningBroker]:
        return running_broker(self.mesh, self.kms)

    def key_service(
        self, *, policy: PolicyKeeper | None = None, currency: Currency | None = None
    ) -> tuple[KeyService, LogReading]:
        """The KMS's keys as they are on disk, and what reads the log for them."""
        member, kms = self.member, self.kms
        policy, currency = policy or kms.policy, currency or Currency()
        keys = open_keys(self.mesh.folder, member.spiffe_id, kms.keyring, kms.ca, policy, self.decisions, currency)
        ledger = self.ledger(member)
        self.logged = Logged(policy, self.decisions, keys.book.pages.place)
        return keys, LogReading(member.spiffe_id, ledger, keys.book, policy, keys.unlogged, self.logged, currency)

    @asynccontextmanager
    async def router(self) -> AsyncIterator[Router]:
        """A router that has joined and writes."""
        log_key, receiver = Ed25519PrivateKey.generate(), ReceiverKey()
        claims = {"log_key": log_key.public_key().public_bytes_raw().hex(), "hpke_key": receiver.public.hex()}
        async with (
            self.mesh.member("router", self.kms, claims=claims) as member,
            self.publisher(member, log_key) as publisher,
        ):
            yield Router(member, self.ledger(member), publisher, receiver)

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[ledger_pb2_grpc.LedgerServiceStub]:
        """The ledger as an operator named ada calls it."""
        key, certificate = self.operator_files()
        async with open_channel(
            self.target,
            root_pem=self.member.ca_pem,
            server_name=f"ledger.{TRUST_DOMAIN}",
            key_pem=key,
            certificate_pem=certificate,
        ) as channel:
            yield ledger_pb2_grpc.LedgerServiceStub(channel)

    def operator_files(self) -> tuple[bytes, bytes]:
        """Key and certificate of an operator named ada, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = Subject(TRUST_DOMAIN, "operator", "ada", None)
        return key_pem(key), pem_of(self.kms.ca.issue_svid(subject, key.public_key(), time.time()))

    def order(self, action: str, subject: str, *, signers: int = 2, not_after: int = 2**33) -> bytes:
        """What so many operators signed."""
        signed = SignedOrder(Order(TRUST_DOMAIN, action, subject, not_after, "a test"))
        for key in self.mesh.operators[:signers]:
            signed = signed.signed_by(key)
        return signed.document

    @asynccontextmanager
    async def publisher(
        self, member: Member, log_key: Ed25519PrivateKey, *, reserve_bytes: int = 0
    ) -> AsyncIterator[Publisher]:
        settings = EventSettings(self.broker.url, self.broker.target, self.mesh.folder / f"{member.role}-outbox")
        ledger = self.ledger(member)
        async with open_publisher(member, settings, ledger, log_key=log_key, reserve_bytes=reserve_bytes) as publisher:
            yield publisher

    async def start(self, *, ready: bool = True, dies_at: int = 0, torn: bool = False) -> None:
        """Start the ledger; with `ready`, wait until it says that it serves.

        With `dies_at` it kills itself at that write of its own, counted from `arm` on; see `tests.faults.dying`.
        """
        if not dies_at:
            await self.process.start(ready=ready)
            return
        options = ["--step", str(dies_at), "--serving", *(["--torn"] if torn else [])]
        command = ("-m", "tests.faults.dying", "ledger")
        await self.process.start(ready=ready, command=command, options=options)

    def arm(self) -> None:
        """Have a ledger that dies by itself begin to count."""
        self.process.send(signal.SIGUSR1)

    async def kill(self, number: int = signal.SIGKILL) -> int:
        """End the ledger and return its exit status."""
        return await self.process.kill(number)

    async def ended(self) -> tuple[int, str]:
        """Wait until the ledger has ended; return its exit status and its last words."""
        return await self.process.ended()

    def ledger(self, member: Member) -> Peer | LedgerWriter:
        """The ledger as a member reaches it."""
        return member.peer("ledger", self.target)

    async def _configure(self, stack: AsyncExitStack, surroundings: Surroundings) -> None:
        """Write the ledger's file."""
        guest = await stack.enter_async_context(self.mesh.guest(self.mesh.tds["ledger"]))
        place = Place("1", self.target, self.https, self.mesh.folder, guest, self.data_dir)
        self.process.configure(self.config(place, surroundings))

    def config(self, place: Place, surroundings: Surroundings) -> dict[str, Any]:
        """The configuration of one ledger process."""
        seed = self.mesh.folder / "seed.json"
        seed.write_bytes(self.mesh.seed)
        return {
            "member": {
                "instance": place.instance,
                "trust_domain": TRUST_DOMAIN,
                "listen": place.target,
                "state_dir": str(place.folder / "ledger-state"),
                "guest_socket": str(place.guest),
                "seed_policy": str(seed),
                "kms": [f"127.0.0.1:{surroundings.kms}"],
                "kms_bootstrap": [f"127.0.0.1:{surroundings.bootstrap}"],
                "attestation_bootstrap": f"127.0.0.1:{surroundings.attestation}",
                "drain_seconds": 0.5,
            },
            "events": {**self.broker.settings, "outbox": str(place.folder / "ledger-outbox")},
            "data_dir": str(place.data_dir),
            "https_listen": place.https,
            "ip_addresses": ["127.0.0.1"],
            "checkpoint_seconds": 0.1,
            "witnesses": self.witnesses,
            "witness_quorum": len(self.witnesses),
            "witness_seconds": 0.1,
        }


class Router:
    """A router as the ledger knows it."""

    def __init__(
        self, member: Member, ledger: Peer | LedgerWriter, publisher: Publisher, receiver: ReceiverKey
    ) -> None:
        self.member = member
        self.ledger = ledger
        self.publisher = publisher
        self.receiver = receiver
