"""KMS processes that may die at any write, and what they need around them: ledger, broker, collateral, guest agents.

The ledger is a process too and nats-server is real; the TEE is software, in this process. So this process can ask the
guest agent for what seals the root, and knows every key that must come out.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import tomli_w

from libs.identity.bootstrap_leaf import make_bootstrap_leaf
from libs.process import tethered
from libs.process.readiness import Readiness, listening
from libs.rpc.middleware import public_middleware
from libs.rpc.server import serving
from libs.tee.dstack import Guest
from services.attestation.collateral import CollateralCache, Held
from services.attestation.gpu_tokens import GpuTokens
from services.attestation.servicer import CollateralServicer, collateral_binding
from services.kms.root import Root, open_root
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.ports import free_ports
from tests.fakes.running_broker import running_broker

ROOT = Path(__file__).parents[2]
_READY_SECONDS = 60.0


class NoRootYet(Exception):
    """There is no sealed root, and this process makes none."""


@dataclass(frozen=True, slots=True)
class Dying:
    """At which of its own writes a process dies; `serving`: counted from the time that it is told to."""

    module: ClassVar = "tests.faults.dying"
    step: int
    torn: bool
    serving: bool

    def options(self) -> list[str]:
        flags = ["--torn"] * self.torn + ["--serving"] * self.serving
        return ["--step", str(self.step), *flags]

    @classmethod
    def draw(cls, chance: random.Random, steps: int, *, serving: bool) -> Dying:
        return cls(chance.randint(1, steps), chance.random() < 0.5, serving)


@dataclass(frozen=True, slots=True)
class Later:
    """How far a process's clock jumps when it is told to."""

    module: ClassVar = "tests.faults.later"
    seconds: float

    def options(self) -> list[str]:
        return ["--seconds", str(self.seconds)]


class Service:
    """One service as a process that is killed and started again, over the same files."""

    def __init__(self, name: str, instance: str, folder: Path) -> None:
        self.name = name
        self.state = folder / f"{name}-{instance}"
        self.log = folder / f"{name}-{instance}.log"
        self._config = folder / f"{name}-{instance}.toml"
        self._notify = folder / f"{name}-{instance}.ready"
        self._process: asyncio.subprocess.Process | None = None
        self.is_running = False
        """Whether it was started, and nobody has waited for its end yet."""
        self._readiness: Readiness

    def configure(self, config: Mapping[str, Any]) -> None:
        self._config.write_text(tomli_w.dumps(config))

    @contextmanager
    def heard(self) -> Iterator[Service]:
        """Hear what it says of itself, from whichever process."""
        with listening(self._notify) as self._readiness:
            yield self

    async def start(self, bent: Dying | Later | None = None) -> None:
        module = [bent.module, self.name] if bent else [f"services.{self.name}"]
        options = bent.options() if bent else []
        self._readiness.forget()
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tethered([sys.executable, "-m", *module, str(self._config), *options]),
                cwd=ROOT,
                env={**os.environ, "NOTIFY_SOCKET": str(self._notify)},
                stdout=log,
                stderr=log,
            )
        self.is_running = True

    async def ready(self) -> bool:
        """Wait until it serves; False when it ended before."""
        async with asyncio.timeout(_READY_SECONDS):
            readiness = asyncio.ensure_future(self._readiness.until_ready())
            ended = asyncio.ensure_future(self.ended())
            await asyncio.wait([readiness, ended], return_when=asyncio.FIRST_COMPLETED)
            is_ready = readiness.done()
            for waiting in (readiness, ended):
                waiting.cancel()
            await asyncio.gather(readiness, ended, return_exceptions=True)
            return is_ready

    def epochs_begun(self) -> dict[str, int]:
        """The newest epoch of each key that this KMS has said it changed, which it says before anybody hears of it."""
        lines = [line for line in self.log.read_bytes().splitlines() if b'"key changed"' in line and line[-1:] == b"}"]
        changes = [json.loads(line) for line in lines]
        # In order: the last one counts.
        return {change["name"]: change["epoch"] for change in changes}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def tell(self) -> None:
        """Have it count its steps from now on, or its clock jump."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGUSR1)

    async def ended(self) -> int:
        """Wait for its end; return its exit status, negative for a signal."""
        assert self._process is not None
        return await self._process.wait()

    async def kill(self) -> int:
        """End it, if it has not ended; return its exit status."""
        if self._process is None:
            return -signal.SIGKILL
        if self._process.returncode is None:
            self._process.kill()
        self.is_running = False
        return await self.ended()


class _Collateral:
    """The machine's own vendor statements, behind the attestation service's listener."""

    def __init__(self, mesh: JoinedMesh) -> None:
        self._mesh = mesh

    async def held(self, quote: bytes) -> Held:
        return Held(self._mesh.collateral.current(), 2.0**33)


@asynccontextmanager
async def serving_collateral(mesh: JoinedMesh) -> AsyncIterator[str]:
    """The attestation service's bootstrap listener; gives its address."""
    binding = collateral_binding(CollateralServicer(cast(CollateralCache, _Collateral(mesh)), GpuTokens(None, 1)))
    leaf = make_bootstrap_leaf("attestation", TRUST_DOMAIN)
    limits = public_middleware(binding.methods, calls_per_second=1000.0)
    async with serving("127.0.0.1:0", leaf.credentials, [binding], limits, drain_seconds=0) as running:
        yield f"127.0.0.1:{running.port}"


class KmsMesh:
    """Two instances of the KMS, of which the second joins the first, and one ledger."""

    def __init__(self, mesh: JoinedMesh) -> None:
        mesh.draft["key_releases"].append({"name": "ledger-resume", "roles": ["ledger"]})
        mesh.seed = mesh.sign(mesh.draft)
        self.mesh = mesh
        names = ("kms", "kms_bootstrap", "second", "second_bootstrap", "ledger", "https", "broker", "nats")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.kms = Service("kms", "1", mesh.folder)
        self.newcomer = Service("kms", "2", mesh.folder)
        self.ledger = Service("ledger", "1", mesh.folder)
        self.order = mesh.folder / "join.order"
        self.guest: Guest
        self.attestation = ""

    def address(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    @asynccontextmanager
    async def prepared(self) -> AsyncIterator[KmsMesh]:
        """Everything that needs no root: the guest agent, collateral, and every process's configuration."""
        mesh = self.mesh
        async with AsyncExitStack() as stack:
            socket_path = await stack.enter_async_context(mesh.guest(mesh.tds["kms"]))
            ledger_socket = await stack.enter_async_context(mesh.guest(mesh.tds["ledger"]))
            self.guest = await stack.enter_async_context(Guest(socket_path))
            self.attestation = await stack.enter_async_context(serving_collateral(mesh))
            for service in (self.kms, self.newcomer, self.ledger):
                stack.enter_context(service.heard())
                stack.push_async_callback(service.kill)
            self.kms.configure(self._kms("1", socket_path, "kms"))
            join = {
                "kms": self.address("kms"),
                "kms_bootstrap": self.address("kms_bootstrap"),
                "order": str(self.order),
            }
            self.newcomer.configure({**self._kms("2", socket_path, "second"), "join": join})
            self.ledger.configure(self._ledger(ledger_socket))
            yield self

    @asynccontextmanager
    async def logging(self, core: KmsCore) -> AsyncIterator[None]:
        """The broker and the ledger. A KMS must serve."""
        async with running_broker(self.mesh, core, listen=self.address("broker"), nats_port=self.ports["nats"]):
            await self.ledger.start()
            assert await self.ledger.ready(), self.ledger.log.read_text()
            yield
            await self.ledger.kill()

    async def root_of(self, service: Service) -> bytes | None:
        """The root that a KMS holds, opened as it opens it; None where there is none. Raises `RootNotOpened`."""

        async def none() -> Root:
            raise NoRootYet

        try:
            return (await open_root(self.guest, service.state, None, none)).secret
        except NoRootYet:
            return None

    def member(self, service: str, instance: str, guest_socket: Path) -> dict[str, Any]:
        """The table [member] of a service."""
        seed = self.mesh.folder / "seed.json"
        seed.write_bytes(self.mesh.seed)
        return {
            "instance": instance,
            "trust_domain": TRUST_DOMAIN,
            "listen": "127.0.0.1:0",
            "state_dir": str(self.mesh.folder / f"{service}-{instance}"),
            "guest_socket": str(guest_socket),
            "seed_policy": str(seed),
            "kms": [self.address("kms")],
            "kms_bootstrap": [self.address("kms_bootstrap")],
            "attestation_bootstrap": self.attestation,
            "statement_poll_seconds": 0.2,
            "drain_seconds": 0.0,
        }

    def events(self, service: str, instance: str) -> dict[str, str]:
        """The table [events] of a service."""
        outbox = self.mesh.folder / f"{service}-{instance}" / "outbox"
        return {
            "nats_url": f"tls://{self.address('nats')}",
            "broker": self.address("broker"),
            "outbox": str(outbox),
        }

    def _kms(self, instance: str, guest_socket: Path, listener: str) -> dict[str, Any]:
        return {
            "member": {**self.member("kms", instance, guest_socket), "listen": self.address(listener)},
            "events": self.events("kms", instance),
            "ledger": self.address("ledger"),
            "bootstrap_listen": self.address(f"{listener}_bootstrap"),
            "bootstrap_calls_per_second": 1000.0,
        }

    def _ledger(self, guest_socket: Path) -> dict[str, Any]:
        return {
            "member": {**self.member("ledger", "1", guest_socket), "listen": self.address("ledger")},
            "events": self.events("ledger", "1"),
            "data_dir": str(self.mesh.folder / "log"),
            "https_listen": self.address("https"),
            "ip_addresses": ["127.0.0.1"],
            "checkpoint_seconds": 0.1,
        }
