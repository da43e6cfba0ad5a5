"""The `teemesh` command: `teemesh <command> --help`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from libs.errors import MeshError

_COMMANDS = {
    "up": "local.up",
    "down": "local.down",
    "status": "mesh.status",
    "doctor": "doctor.command",
    "reset": "local.reset",
    "chat": "chat.command",
    "verify": "chat.verify",
    "ledger": "ledger.command",
    "kms": "kms.command",
    "policy": "policy.command",
    "evidence": "evidence.command",
    "providers": "providers.command",
    "sessions": "sessions.command",
    "tenants": "tenants.command",
    "weights": "weights.command",
    "pipeline": "pipelines.command",
    "operator-key": "mesh.operators",
}
"""Commands and their modules in this package, in the order in which help lists them."""

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, 1 for an error (one line on standard error), 130 for Ctrl-C."""
    given = sys.argv[1:] if arguments is None else arguments
    args = _parser(given).parse_args(given)
    try:
        return _run(args)
    except KeyboardInterrupt:
        return _INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    code = 1
    try:
        code = args.run(args)
    except* MeshError as group:  # A bare one too.
        refusal = _first(group)
        sys.stderr.write(f"teemesh: {refusal.reason}: {refusal}\n")
    return code


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="teemesh", description="Confidential AI inference that anyone can check.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Loading every command takes longer than most of them run: who names one waits for that one.
    named = [module for name, module in _COMMANDS.items() if name in given[:1]]
    for module in named or _COMMANDS.values():
        importlib.import_module(f"services.cli.{module}").add_parser(subparsers)
    return parser


def _first(group: BaseExceptionGroup[MeshError]) -> MeshError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


if __name__ == "__main__":
    sys.exit(main())
