"""It is responsible for one run of a local mesh: prepared, started, joined as an operator, described, stopped."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from rich.console import Console

from libs.errors import Code, MeshError
from libs.files import write_durably
from libs.policy.document import Policy
from services.cli.chat.demo import demonstrate
from services.cli.ledger.key import fetch_ledger_vkey
from services.cli.local.children import Child, Children, State
from services.cli.local.config import Addresses, write_devtee_config, write_service_configs
from services.cli.local.description import describe, write_vendor_root
from services.cli.local.display import Display
from services.cli.local.engine import EMBEDDED, MODEL, LocalEngine
from services.cli.local.join_order import order_join
from services.cli.local.next_steps import next_steps
from services.cli.local.platform import dstack_kms_root
from services.cli.local.policy import LocalOperators, ensure_policy, newest_policy, open_operators, write_composes
from services.cli.local.tenant import ensure_tenant, store_tenant
from services.cli.local.witness import ledgers_witness, witness_vkey, write_witness_config
from services.cli.mesh import ports
from services.cli.mesh.layout import Layout
from services.cli.mesh.mesh_file import MeshDescription, remove_mesh_file, write_mesh_file
from services.cli.mesh.operator_certificate import OperatorCertificate
from services.cli.mesh.patience import patiently
from services.cli.mesh.roster import DEVTEE, JOBS, WITNESS, processes, role_of
from services.cli.mesh.served import until_served

_TICK_SECONDS = 0.2
_START_SECONDS = 240.0
"""How long a mesh that is to end by itself may take until it is ready; another one may take for ever."""


class MeshNotReady(MeshError):
    """The mesh did not become ready."""

    code = Code.DEADLINE_EXCEEDED
    reason = "MESH_NOT_READY"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line asks for."""

    router_port: int
    demo: bool = False
    exit: bool = False
    kms_replica: bool = False
    """Whether a second instance of the KMS runs."""
    ledger_members: int = 1
    """How many members keep the log."""
    jobs: int = 0
    """How many guests there are for stages of pipelines."""
    certificate_seconds: int | None = None
    """Life of the services' certificates; None: as in production."""
    keyset_seconds: int | None = None
    """Life of the router's keysets; None: as in production."""
    engine: LocalEngine = EMBEDDED
    """The node's."""


class MeshRun:
    """A run in a prepared state folder that this process holds."""

    def __init__(self, layout: Layout, options: RunOptions, console: Console) -> None:
        self._layout = layout
        self._options = options
        self._console = console
        self._display = Display(console, self._rows)
        self._children: Mapping[str, Child] = {}

    async def run(self) -> int:
        """Serve until cancelled or, when asked to, until the demonstration is over; return the exit status."""
        layout = self._layout
        remove_mesh_file(layout.mesh_file)
        router_port = self._options.router_port
        # In a thread, because both wait for ports that linger: Ctrl-C must be heard meanwhile.
        await asyncio.to_thread(ports.require_router_port, router_port)
        addresses = Addresses(await asyncio.to_thread(ports.assign, layout.ports, router_port), router_port)
        operators = open_operators(layout)
        try:
            with self._display.showing():
                async with AsyncExitStack() as stack:
                    children = Children(layout, stack, self._ended)
                    self._children = children.all
                    try:
                        return await self._run_all(children, addresses, operators)
                    finally:
                        self._display.say("stopping")
        finally:
            remove_mesh_file(layout.mesh_file)

    async def _run_all(self, children: Children, addresses: Addresses, operators: LocalOperators) -> int:
        # The group ends before the children do: what they do then is no news.
        async with asyncio.TaskGroup() as tasks:
            ticking = tasks.create_task(self._tick())
            await self._start(children, addresses, operators)
            code = await self._serve(addresses, operators)
            ticking.cancel()
        return code

    async def _start(self, children: Children, addresses: Addresses, operators: LocalOperators) -> None:
        """Start everyone; the platform, whose reference values policy needs, is waited for, and a new witness."""
        layout = self._layout
        names = self._names
        guests = (*names, *JOBS[: self._options.jobs])
        write_devtee_config(layout, addresses, guests)
        engine = self._options.engine
        composes = write_composes(
            layout, operators, await dstack_kms_root(layout), engine.template(), jobs=self._options.jobs > 0
        )
        devtee = await children.start(DEVTEE)
        weights = await engine.manifest()
        write_durably(layout.weights_manifest, weights.document + b"\n", mode=0o644)
        await devtee.until_ready()
        write_vendor_root(layout)
        policy = ensure_policy(layout, operators, composes, {MODEL: [weights.digest.hex()]}, int(time.time()))
        self._display.say(f"policy version {policy.version} holds, digest {policy.digest.hex()}")
        await self._start_witness(children, addresses, operators, policy)
        write_service_configs(
            layout,
            addresses,
            layout.policy(policy.version),
            certificate_seconds=self._options.certificate_seconds,
            keyset_seconds=self._options.keyset_seconds,
            engine=engine,
            names=guests,
            witnesses=[ledgers_witness(layout, addresses)],
        )
        if self._options.kms_replica:
            order_join(layout, operators, composes["kms"], int(time.time()))
        for name in names:
            await children.start(name)

    async def _start_witness(
        self, children: Children, addresses: Addresses, operators: LocalOperators, policy: Policy
    ) -> None:
        """Start the witness. The ledger is told its key, so one that never ran is waited for."""
        write_witness_config(self._layout, addresses, operators, self._layout.policy(policy.version))
        has_run = self._layout.witness_verifier_keys.exists()
        witness = await children.start(WITNESS)
        if not has_run:
            await witness.until_ready()

    async def _serve(self, addresses: Addresses, operators: LocalOperators) -> int:
        """Do the operator's part until cancelled, or until there is nothing more to do."""
        names = self._names
        bootstraps = [addresses.of(f"{name}_bootstrap") for name in names if role_of(name) == "kms"]
        certificate = OperatorCertificate(self._layout, bootstraps, lambda: self._policy(operators), operators.keys[0])
        try:
            async with asyncio.timeout(_START_SECONDS if self._options.exit else None):
                mesh = await self._join(addresses, operators, certificate)
        except TimeoutError as error:
            raise MeshNotReady(f"not ready after {_START_SECONDS:.0f} s: {self._unready()}") from error
        async with asyncio.TaskGroup() as tasks:
            upkeep = [
                tasks.create_task(certificate.keep(self._display.say)),
                tasks.create_task(self._keep_described(mesh, addresses, operators, certificate)),
            ]
            passed = await self._demonstrate()
            if not self._options.exit:
                self._display.write(next_steps(self._layout, mesh))
                await asyncio.Event().wait()
            for task in upkeep:
                task.cancel()
        return 0 if passed else 1

    async def _join(
        self, addresses: Addresses, operators: LocalOperators, certificate: OperatorCertificate
    ) -> MeshDescription:
        """Get the operator's certificate, make the tenant known, and write mesh.json once clients can be served."""
        await self._children["kms"].until_ready()
        await certificate.obtain()
        tenant = ensure_tenant(self._layout)
        await self._children["registry"].until_ready()
        await patiently(
            lambda: store_tenant(tenant, addresses.of("registry"), certificate.current, operators.tenant_admin)
        )
        await asyncio.gather(*(child.until_ready() for child in self._children.values()))
        mesh = describe(
            self._layout,
            addresses,
            operators,
            self._policy(operators),
            api_key=tenant.api_key,
            ledger_vkey=await patiently(lambda: self._ledger_vkey(addresses, operators, certificate)),
            witness_vkey=witness_vkey(self._layout),
            pids=self._pids(),
        )
        await until_served(mesh.router_url, mesh.router_ca, mesh.model)
        write_mesh_file(self._layout.mesh_file, mesh)
        self._display.tick()
        self._display.say("ready")
        return mesh

    async def _keep_described(
        self,
        mesh: MeshDescription,
        addresses: Addresses,
        operators: LocalOperators,
        certificate: OperatorCertificate,
    ) -> None:
        """Keep mesh.json true while services restart and policies are published."""
        ledger, vkey_of = self._children["ledger"], mesh.services["ledger"]
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            vkey = mesh.ledger_vkey
            try:
                policy = self._layout.policy(self._policy(operators).version)
                if ledger.pid != vkey_of and ledger.state is State.READY:
                    restarted = ledger.pid
                    vkey = await self._ledger_vkey(addresses, operators, certificate)
                    vkey_of = restarted
            except MeshError as error:
                self._display.say(f"mesh.json is not up to date: {error.reason}: {error}")
                await asyncio.sleep(1)
                continue
            now = dataclasses.replace(mesh, services=self._pids(), policy=policy, ledger_vkey=vkey)
            if now != mesh:
                write_mesh_file(self._layout.mesh_file, now)
                mesh = now

    async def _demonstrate(self) -> bool:
        if not self._options.demo:
            return True
        with self._display.paused():
            return await demonstrate(self._layout.root, self._console)

    async def _ledger_vkey(
        self, addresses: Addresses, operators: LocalOperators, certificate: OperatorCertificate
    ) -> str:
        return await fetch_ledger_vkey(addresses.of("ledger"), certificate.current, self._policy(operators))

    async def _tick(self) -> None:
        while True:
            self._display.tick()
            await asyncio.sleep(_TICK_SECONDS)

    @property
    def _names(self) -> tuple[str, ...]:
        return processes(kms_replica=self._options.kms_replica, ledger_members=self._options.ledger_members)

    def _policy(self, operators: LocalOperators) -> Policy:
        policy = newest_policy(self._layout, operators)
        if policy is None:
            raise RuntimeError("policy used before the first was signed")
        return policy

    def _rows(self) -> Mapping[str, Child]:
        return self._children

    def _pids(self) -> dict[str, int | None]:
        return {name: child.pid for name, child in self._children.items()}

    def _unready(self) -> str:
        waiting = [child for child in self._children.values() if child.state is not State.READY]
        return ", ".join(f"{child.name} ({child.status or child.state})" for child in waiting) or "nobody is to blame"

    def _ended(self, name: str, how: str) -> None:
        self._display.say(f"{how} (see {self._layout.log(name)})")
