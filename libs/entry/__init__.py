"""It is responsible for how every service process begins and ends: configuration in, one clear line out when it fails.

`python -m services.<name> <config.toml>` runs a service, `--check-config` only reads its configuration. Exit status 0
after a clean stop, 2 when the configuration is refused, 1 (or the error's own `exit_status`) otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from libs import logs
from libs.config import ConfigInvalid, load
from libs.errors import MeshError
from libs.process import protect_memory

T = TypeVar("T")


def run(service: str, kind: type[T], main: Callable[[T], Awaitable[None]]) -> int:
    """Run a service's `main` on the configuration named on the command line; return the exit status.

    From then on this process cannot be dumped, traced or read by others of its user.
    """
    parser = argparse.ArgumentParser(prog=f"python -m services.{service}")
    parser.add_argument("config", type=Path, help="TOML file")
    parser.add_argument("--check-config", action="store_true", help="read the configuration and stop")
    arguments = parser.parse_args()
    try:
        config = load(arguments.config, kind)
    except ConfigInvalid as error:
        return _refuse(service, error, 2)
    if arguments.check_config:
        return 0
    logs.configure(service, _instance_of(config), json=getattr(config, "log_json", None))
    failure: MeshError | None = None
    try:
        protect_memory()
        asyncio.run(_await(main, config))
    except* MeshError as group:  # Also catches a bare one.
        failure = _leaf(group)
    return 0 if failure is None else _refuse(service, failure, getattr(failure, "exit_status", 1))


async def _await(main: Callable[[T], Awaitable[None]], config: T) -> None:
    await main(config)


def _refuse(service: str, error: MeshError, status: int) -> int:
    sys.stderr.write(f"{service}: {error.reason}: {error}\n")
    return status


def _leaf(group: BaseExceptionGroup[MeshError]) -> MeshError:
    """The first error of the group that is not a group itself."""
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, BaseExceptionGroup) else first


def _instance_of(config: object) -> str:
    return str(getattr(getattr(config, "member", None), "instance", "1"))
