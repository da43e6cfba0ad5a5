"""Composition root of the development TEE.

`python -m services.devtee config.toml [--check-config] [--machine-only]`
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from libs import config, logs
from libs.errors import Code, MeshError
from libs.process import notify_ready, notify_stopping, until_terminated
from services.devtee.config import InstanceSettings, Settings
from services.devtee.guest import serving_guest
from services.devtee.machine import Machine, VirtualTd
from services.devtee.methods import GuestMethods
from services.devtee.reference import publish, reference_values
from services.devtee.state import StateDirectory, holding
from services.devtee.vendors import serving_vendors


class InstancesAmbiguous(MeshError):
    """Two instances share a name or a socket, or there is none."""

    code = Code.INVALID_ARGUMENT
    reason = "INSTANCES_AMBIGUOUS"


class ComposeUnreadable(MeshError):
    """An instance's app-compose file cannot be read."""

    code = Code.FAILED_PRECONDITION
    reason = "COMPOSE_UNREADABLE"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.devtee", description="Development TEE.")
    parser.add_argument("config", type=Path)
    parser.add_argument("--check-config", action="store_true", help="read the configuration and stop")
    parser.add_argument(
        "--machine-only", action="store_true", help="make the machine if there is none, say what it is, and stop"
    )
    arguments = parser.parse_args()
    try:
        settings = config.load(arguments.config, Settings)
        check(settings)
    except MeshError as error:
        return _refuse(error, 2)
    if arguments.check_config:
        return 0
    logs.configure("devtee", "devtee")
    try:
        if arguments.machine_only:
            make_machine(settings)
        else:
            asyncio.run(run(settings))
    except MeshError as error:
        return _refuse(error, 1)
    return 0


def check(settings: Settings) -> None:
    """Judge what the types cannot. Raises `InstancesAmbiguous`, `ListenAddressRefused`."""
    settings.pccs_address()
    names = {instance.name for instance in settings.instances}
    sockets = {instance.socket for instance in settings.instances}
    if not settings.instances or not len(names) == len(sockets) == len(settings.instances):
        raise InstancesAmbiguous("every instance needs a name and a socket of its own, and there must be one")


async def run(settings: Settings) -> None:
    """Serve until terminated."""
    host, port = settings.pccs_address()
    with holding(settings.state_dir) as state:
        machine = state.machine(_now())
        tds = {instance.name: _boot(machine, state, instance) for instance in settings.instances}
        async with AsyncExitStack() as stack:
            pccs_url = await stack.enter_async_context(serving_vendors(host, port, machine, _now))
            for instance in settings.instances:
                methods = GuestMethods(tds[instance.name], _now)
                await stack.enter_async_context(serving_guest(instance.socket, methods))
            path = publish(settings.state_dir, reference_values(machine, tds, pccs_url))
            structlog.get_logger().info("development evidence is served", reference=str(path), pccs_url=pccs_url)
            notify_ready()
            await until_terminated()
            notify_stopping()


def make_machine(settings: Settings) -> None:
    """Publish what is known before any app-compose is: they may be measured with this machine's keys."""
    with holding(settings.state_dir) as state:
        publish(settings.state_dir, reference_values(state.machine(_now()), {}, pccs_url=None))


def _boot(machine: Machine, state: StateDirectory, instance: InstanceSettings) -> VirtualTd:
    try:
        compose = instance.app_compose.read_bytes()
    except OSError as error:
        raise ComposeUnreadable(f"cannot read {instance.app_compose}: {error.strerror or error}") from error
    return machine.boot(compose, state.identity(instance.name), _now())


def _refuse(error: MeshError, status: int) -> int:
    sys.stderr.write(f"devtee: {error.reason}: {error}\n")
    return status


def _now() -> int:
    return int(time.time())


if __name__ == "__main__":
    sys.exit(main())
