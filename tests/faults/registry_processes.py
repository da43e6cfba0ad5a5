"""Two registry processes over one nats-server, which all may die at any time, and what they need around them.

The KMS, collateral and guest agents are in this process: what is to survive here is the registry.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from libs.identity.gpu_watch import GpuSettings
from libs.identity.member import Member, join
from services.broker.supervision import Broker
from services.devtee.machine import VirtualTd
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.ports import free_ports
from tests.fakes.running_broker import RunningBroker, running_broker
from tests.fakes.running_kms import RunningKms, running_kms
from tests.faults.kms_processes import Service, serving_collateral

_GPUS = GpuSettings()


class RegistryMesh:
    """Two registries, one nats-server, one KMS."""

    def __init__(self, mesh: JoinedMesh, lease_seconds: float) -> None:
        self.mesh = mesh
        self.lease_seconds = lease_seconds
        self.core: KmsCore = mesh.kms()
        self.registries = (Service("registry", "1", mesh.folder), Service("registry", "2", mesh.folder))
        *ports, self._nats_port = free_ports(len(self.registries) + 1)
        self.addresses = tuple(f"127.0.0.1:{port}" for port in ports)
        self._broker: RunningBroker
        self._kms: RunningKms
        self._attestation = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything; the registries serve once this begins, and none of it is left when it ends."""
        mesh = self.mesh
        async with AsyncExitStack() as stack:
            self._kms = await stack.enter_async_context(running_kms(mesh, self.core, clock=time.monotonic))
            self._attestation = await stack.enter_async_context(serving_collateral(mesh))
            socket = await stack.enter_async_context(mesh.guest(mesh.tds["registry"]))
            self._broker = await stack.enter_async_context(running_broker(mesh, self.core, nats_port=self._nats_port))
            for service, address in zip(self.registries, self.addresses, strict=True):
                stack.enter_context(service.heard())
                stack.push_async_callback(service.kill)
                service.configure(self._config(service, address, socket))
                await service.start()
            for service in self.registries:
                assert await service.ready(), service.log.read_text()[-4000:]
            yield

    @asynccontextmanager
    async def joined(
        self,
        role: str,
        instance: str,
        claims: Mapping[str, Any],
        td: VirtualTd | None = None,
        *,
        attestation: str = "",
        gpus: GpuSettings = _GPUS,
    ) -> AsyncIterator[Member]:
        """A member in this process, that follows the KMS as every service does."""
        mesh = self.mesh
        async with mesh.guest(td or mesh.tds[role]) as socket:
            addresses = {**self._kms_addresses(), "attestation_bootstrap": attestation or self._attestation}
            settings = mesh.settings(role, instance, socket, **addresses)
            async with join(
                settings, role, claims, collateral=mesh.collateral, registry=self.addresses, gpus=gpus
            ) as member:
                yield member

    @property
    def nats(self) -> Broker:
        return self._broker.nats

    async def kill_nats(self) -> None:
        """Kill the nats-server that answers now; return when it is dead. Its supervisor starts another."""
        await self.nats.until_ready()
        assert self.nats.pid is not None
        os.kill(self.nats.pid, signal.SIGKILL)
        await self.nats.until_ended()

    def _kms_addresses(self) -> dict[str, Any]:
        return {"kms": (self._kms.target,), "kms_bootstrap": (self._kms.bootstrap,)}

    def _config(self, service: Service, address: str, socket: Path) -> dict[str, Any]:
        seed = self.mesh.folder / "seed.json"
        seed.write_bytes(self.mesh.seed)
        instance = service.state.name.rpartition("-")[2]
        return {
            "member": {
                "instance": instance,
                "trust_domain": TRUST_DOMAIN,
                "listen": address,
                "state_dir": str(service.state),
                "guest_socket": str(socket),
                "seed_policy": str(seed),
                "kms": [self._kms.target],
                "kms_bootstrap": [self._kms.bootstrap],
                "attestation_bootstrap": self._attestation,
                "statement_poll_seconds": 0.2,
                "drain_seconds": 0.0,
            },
            "events": {**self._broker.settings, "outbox": str(service.state / "outbox")},
            # Nobody answers there: what the registry has to say to the log waits in its outbox.
            "ledger": "127.0.0.1:9",
            "lease_seconds": self.lease_seconds,
        }
