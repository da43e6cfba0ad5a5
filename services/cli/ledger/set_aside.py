"""It is responsible for `teemesh ledger set-aside`: a ledger that is kept down by a damaged file beside its log starts.

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


def add_set_aside(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `teemesh ledger set-aside`."""
    parser.add_argument("file", metavar="FILE", help="owed.log or quarantine.log")
    add_log_argument(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "services.ledger.set_aside", str(log_folder(args).absolute()), args.file]
    command += ["--json"] * args.json
    return subprocess.run(tethered(command), cwd=_SOURCE_ROOT, check=False).returncode
