"""It is responsible for one run of a local mesh: prepared, started, joined as an operator, described, shown, stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from rich.console import Console

from libs.errors import Code, MeshError
from libs.policy.document import Policy
from services.cli import ports
from services.cli.children import Child, Children
from services.cli.demo import demonstrate
from services.cli.description import describe, write_vendor_root
from services.cli.display import Display
from services.cli.layout import Layout
from services.cli.ledger_key import fetch_ledger_vkey
from services.cli.local_config import MODEL, Addresses, write_devtee_config, write_service_configs
from services.cli.local_policy import LocalOperators, ensure_policy, newest_policy, open_operators, write_composes
from services.cli.mesh_file import MeshDescription, remove_mesh_file, write_mesh_file
from services.cli.next_steps import next_steps
from services.cli.operator_certificate import OperatorCertificate
from services.cli.patience import patiently
from services.cli.roster import DEVTEE, SERVICES
from services.cli.tenant import ensure_tenant, store_tenant
from services.cli.weights import packaged_weights, weights_digest

_TICK_SECONDS = 0.2
_START_SECONDS = 240.0
"""How long a mesh that is to end by itself may take until it is ready."""


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


class MeshRun:
    """A run in a prepared state folder that this process holds."""

    def __init__(self, layout: Layout, options: RunOptions, console: Console) -> None:
        self._layout = layout
        self._options = options
        self._display = Display(console, self._rows)
        self._children: Children | None = None
        self._written: MeshDescription | None = None

    async def run(self) -> int:
        """Serve until cancelled or, when asked to, until the demonstration is over; return the exit status."""
        layout = self._layout
        remove_mesh_file(layout.mesh_file)
        ports.require_router_port(self._options.router_port)
        addresses = Addresses(ports.assign(layout.ports, self._options.router_port), self._options.router_port)
        operators = open_operators(layout)
        composes = write_composes(layout, operators)
        # In a thread, for it reads a hundred megabytes.
        weights = await asyncio.to_thread(lambda: weights_digest(packaged_weights()))
        write_devtee_config(layout, addresses)
        try:
            with self._display.showing():
                async with AsyncExitStack() as stack:
                    self._children = Children(layout, stack, self._ended)
                    ticking = await stack.enter_async_context(_background(self._tick()))
                    await (await self._children.start(DEVTEE)).until_ready()
                    policy = ensure_policy(layout, operators, composes, {MODEL: [weights]}, int(time.time()))
                    self._display.say(f"policy version {policy.version} is signed by {len(operators.keys)} operators")
                    write_service_configs(layout, addresses, layout.policy(policy.version))
                    for service in SERVICES:
                        await self._children.start(service)
                    code = await self._serve(operators, addresses)
                    ticking.cancel()
                    return code
        finally:
            remove_mesh_file(layout.mesh_file)
