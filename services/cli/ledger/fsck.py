"""It is responsible for `teemesh ledger fsck`: what the ledger's own start would say of a log, before one is tried.

The ledger's code runs in a process of its own, as every service's does; its exit status is this command's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from libs.process import tethered
from services.cli.ledger.files import add_log_argument, log_folder

_SOURCE_ROOT = Path(__file__).parents[3]


def add_fsck(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `teemesh ledger fsck`."""
    add_log_argument(parser)
    parser.add_argument(
        "--repair-derived", action="store_true", help="remove what is derived from the segments: a start makes it anew"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    options = [name for name in ("repair_derived", "json") if getattr(args, name)]
    command = [sys.executable, "-m", "services.ledger.fsck", str(log_folder(args).absolute())]
    command += [f"--{name.replace('_', '-')}" for name in options]
    return subprocess.run(tethered(command), cwd=_SOURCE_ROOT, check=False).returncode
