"""It is responsible for `teemesh down`: ending the mesh that runs in a state folder, from another terminal."""

from __future__ import annotations

import argparse
import os
import signal
import time

from libs.errors import Code, MeshError
from services.cli.mesh.layout import Layout, add_state_option, layout_of
from services.cli.mesh.lock import is_held, open_holder

_POLL_SECONDS = 0.1
"""The lock is asked, not the process: it is also held by one that has not yet written who it is."""
_STOP_SECONDS = 120.0
"""Eight services may each drain for a while."""


class MeshNotStopped(MeshError):
    """The mesh still runs."""

    code = Code.DEADLINE_EXCEEDED
    reason = "MESH_NOT_STOPPED"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh down`."""
    parser = subparsers.add_parser("down", help="stop the mesh that runs in a state folder")
    add_state_option(parser)
    parser.add_argument(
        "--timeout-seconds", type=float, default=_STOP_SECONDS, help="how long it may take (default: %(default)s)"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    layout = layout_of(args)
    if stop(layout, args.timeout_seconds):
        print(f"the mesh in {layout.root} is stopped")
    else:
        print(f"no mesh runs in {layout.root}")
    return 0


def stop(layout: Layout, timeout_seconds: float) -> bool:
    """Stop the running mesh and wait until it has ended; False when none ran. Raises `MeshNotStopped`."""
    deadline = time.monotonic() + timeout_seconds
    ran = asked = False
    while is_held(layout.lock):
        ran = True
        # Once: a second signal would end it without its own clean-up.
        if not asked:
            asked = _ask(layout)
        if time.monotonic() >= deadline:
            raise MeshNotStopped(f"the mesh in {layout.root} has not ended after {timeout_seconds:g} s")
        time.sleep(_POLL_SECONDS)
    return ran


def _ask(layout: Layout) -> bool:
    """Send SIGTERM to the process that holds the lock; False when it cannot be told yet which that is."""
    process = open_holder(layout.lock)
    if process is None:
        return False
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
    except ProcessLookupError:
        return False  # It has just ended, and so will the lock.
    finally:
        os.close(process)
    return True
