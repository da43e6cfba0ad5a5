"""It is responsible for `teemesh reset`: removing a local mesh's state, its keys and its ledger with it."""

from __future__ import annotations

import argparse
import shutil
import sys

from libs.errors import MeshError
from services.cli.mesh.layout import Layout, StateUnusable, add_state_option, layout_of
from services.cli.mesh.lock import holding


class ResetNotConfirmed(MeshError):
    """Nobody said yes."""

    reason = "RESET_NOT_CONFIRMED"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh reset`."""
    parser = subparsers.add_parser("reset", help="remove a local mesh's state: keys, policy, ledger and all")
    add_state_option(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    layout = layout_of(args)
    if not layout.root.exists():
        print(f"nothing to remove: {layout.root} does not exist")
        return 0
    if not layout.exists:
        raise StateUnusable(f"{layout.root} is no mesh's state folder: nothing was removed")
    if not args.yes:
        _confirm(layout)
    remove(layout)
    print(f"{layout.root} is removed")
    return 0


def remove(layout: Layout) -> None:
    """Remove the state folder. Raises `MeshRunning` while a mesh runs in it, and `StateUnusable`."""
    with holding(layout.lock):
        try:
            shutil.rmtree(layout.root)
        except OSError as error:
            raise StateUnusable(f"cannot remove {error.filename}: {error.strerror}") from error


def _confirm(layout: Layout) -> None:
    if not sys.stdin.isatty():
        raise ResetNotConfirmed("nobody is there to ask: say --yes to remove the ledger and every key")
    answer = input(f"Remove {layout.root}, its ledger and every key in it? Type yes: ")
    if answer.strip().lower() != "yes":
        raise ResetNotConfirmed("nothing was removed")
